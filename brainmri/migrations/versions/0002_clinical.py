"""Patients, studies, verdicts, kept edits, issued reports, and the lines that deletions leave.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "patients",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("pseudonym", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("birth_date", sa.Date),
        sa.Column("sex", sa.String(10), nullable=False),
        sa.Column("search_key", sa.String(300), nullable=False),
        sa.UniqueConstraint("pseudonym", name="uq_patients_pseudonym"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_patients_user_id", "patients", ["user_id"])
    op.create_table(
        "studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("patient_id", sa.Integer, sa.ForeignKey("patients.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("study_uid", sa.String(64)),
        sa.Column("title", sa.String(200), nullable=False),
        sa.UniqueConstraint("patient_id", "study_uid", name="uq_studies_patient_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_studies_patient_id", "studies", ["patient_id"])
    op.create_table(
        "study_records",
        sa.Column("record_id", sa.Integer, sa.ForeignKey("records.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("studies.id", ondelete="CASCADE"), nullable=False),
        sa.Column("series_uid", sa.String(64)),
        sa.Column("series_index", sa.Integer),
        sa.Column("series_length", sa.Integer),
        sa.Column("position_mm", sa.Double),
    )
    op.create_index("ix_study_records_study_id", "study_records", ["study_id"])
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("record_id", sa.Integer, sa.ForeignKey("records.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("verdict", sa.String(40), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("ix_verdicts_record_id", "verdicts", ["record_id"])
    op.create_table(
        "edits",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("patient_id", sa.Integer, sa.ForeignKey("patients.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("what", sa.String(100), nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
    )
    op.create_index("ix_edits_patient_id", "edits", ["patient_id"])
    op.create_table(
        "reports",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("record_id", sa.Integer, sa.ForeignKey("records.id", ondelete="CASCADE"), nullable=False),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("users.id")),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("status", sa.String(10), nullable=False),
        sa.Column("findings", sa.Text, nullable=False),
        sa.Column("impression", sa.Text, nullable=False),
        sa.Column("methods", sa.JSON, nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("canonical_sha256", sa.String(64), nullable=False),
        sa.Column("pdf_sha256", sa.String(64), nullable=False),
        sa.Column("pdf", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("pdf_sha256", name="uq_reports_pdf_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_reports_record_id", "reports", ["record_id"])
    op.create_table(
        "deletions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user_id", sa.Integer),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("what", sa.String(200), nullable=False),
    )


def downgrade() -> None:
    for table in ("deletions", "reports", "edits", "verdicts", "study_records", "studies", "patients"):
        op.drop_table(table)
