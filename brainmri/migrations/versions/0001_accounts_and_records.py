"""Accounts, sign-ins, invitations and records.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A copy of storage.UtcDateTime's underlying type: a revision must not change when the package does.
TIME = sa.DateTime(timezone=True)

RECORD_COLUMNS = (
    "id", "user_id", "created_at", "name", "name_key", "image_sha256", "file_sha256", "pixels_sha256", "label",
    "decision", "prediction_set", "probabilities", "logits", "ood_score", "ood_threshold", "model_id",
    "weights_sha256", "engine", "precision", "preprocessing", "software_version", "elapsed_ms", "transform", "height",
    "width", "source_format", "spacing_mm", "orientation", "sop_instance_uid", "frame", "notes",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("password_hash", sa.String(100), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("must_change_password", sa.Boolean, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_sign_in_at", TIME),
        sa.UniqueConstraint("username", name="uq_users_username"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sessions",
        sa.Column("id_sha256", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_seen_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("client", sa.String(200), nullable=False),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_table(
        "sign_in_failures",
        sa.Column("username", sa.String(64), primary_key=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_attempt_at", TIME, nullable=False),
        sa.Column("locked_until", TIME),
    )
    op.create_table(
        "invites",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("code_sha256", sa.String(64), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("note", sa.String(200), nullable=False),
        sa.Column("created_by", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_by", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("used_at", TIME),
        sa.UniqueConstraint("code_sha256", name="uq_invites_code_sha256"),
    )
    op.create_table(
        "records",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("name_key", sa.String(255), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("file_sha256", sa.String(64), nullable=False),
        sa.Column("pixels_sha256", sa.String(64), nullable=False),
        sa.Column("label", sa.String(40)),
        sa.Column("decision", sa.String(20), nullable=False),
        sa.Column("prediction_set", sa.JSON, nullable=False),
        sa.Column("probabilities", sa.JSON, nullable=False),
        sa.Column("logits", sa.JSON, nullable=False),
        sa.Column("ood_score", sa.Double, nullable=False),
        sa.Column("ood_threshold", sa.Double, nullable=False),
        sa.Column("model_id", sa.String(100), nullable=False),
        sa.Column("weights_sha256", sa.String(64), nullable=False),
        sa.Column("engine", sa.String(40), nullable=False),
        sa.Column("precision", sa.String(40), nullable=False),
        sa.Column("preprocessing", sa.String(100), nullable=False),
        sa.Column("software_version", sa.String(40), nullable=False),
        sa.Column("elapsed_ms", sa.Double, nullable=False),
        sa.Column("transform", sa.JSON, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("source_format", sa.String(40), nullable=False),
        sa.Column("spacing_mm", sa.JSON),
        sa.Column("orientation", sa.JSON),
        sa.Column("sop_instance_uid", sa.String(64)),
        sa.Column("frame", sa.Integer),
        sa.Column("notes", sa.JSON, nullable=False),
        sqlite_autoincrement=True,  # the number of a deleted record is never given again
    )
    op.create_index(
        "ix_records_user",
        "records",
        ["user_id", "created_at", "id", "name_key", "label", "decision", "model_id"],
    )
    op.create_index(
        "ix_records_all",
        "records",
        ["created_at", "id", "name_key", "label", "decision", "model_id", "user_id"],
    )
    op.create_index("ix_records_file_sha256", "records", ["file_sha256"])

    # An answer is immutable, whoever connects: the database itself refuses to change one.
    columns = ", ".join(f'"{name}"' for name in RECORD_COLUMNS)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER records_immutable BEFORE UPDATE OF {columns} ON records "
            "BEGIN SELECT RAISE(ABORT, 'records are immutable'); END"
        )
    else:
        op.execute(
            "CREATE FUNCTION refuse_record_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'records are immutable'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER records_immutable BEFORE UPDATE OF {columns} ON records "
            "FOR EACH ROW EXECUTE FUNCTION refuse_record_change()"
        )


def downgrade() -> None:
    op.execute("DROP TRIGGER records_immutable" + (" ON records" if op.get_bind().dialect.name != "sqlite" else ""))
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_record_change()")
    for table in ("records", "invites", "sign_in_failures", "sessions", "users"):
        op.drop_table(table)
