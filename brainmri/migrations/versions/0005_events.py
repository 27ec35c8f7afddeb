"""The log of account changes; when one-time passwords expire.

Revision ID: 0005
Revises: 0004
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user_id", sa.Integer),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("what", sa.String(40), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("before", sa.String(200), nullable=False),
        sa.Column("after", sa.String(200), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_user_id", "events", ["user_id"])
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER events_{change.lower()} BEFORE {change} ON events "
                "BEGIN SELECT RAISE(ABORT, 'events are only added'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION refuse_event_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'events are only added'; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE ON events "
            "FOR EACH ROW EXECUTE FUNCTION refuse_event_change()"
        )

    one_time = op.create_table(
        "one_time_passwords",
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("expires_at", TIME, nullable=False),
    )
    # Those given out before get a week from now.
    users = sa.table("users", sa.column("id"), sa.column("must_change_password", sa.Boolean))
    in_a_week = sa.literal(datetime.now(UTC) + timedelta(days=7), TIME)
    op.execute(
        one_time.insert().from_select(
            ["user_id", "expires_at"], sa.select(users.c.id, in_a_week).where(users.c.must_change_password)
        )
    )


def downgrade() -> None:
    op.drop_table("one_time_passwords")
    op.drop_table("events")  # and its triggers
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_event_change()")
