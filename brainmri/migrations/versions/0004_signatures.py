"""Reports keep the signer's account and whom they were issued for; studies their date; deleted signed reports a line.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("reports", sa.Column("username", sa.String(64), nullable=False, server_default=""))
    op.add_column("reports", sa.Column("patient_id", sa.Integer))
    op.add_column("reports", sa.Column("patient_title", sa.String(300)))
    op.execute(
        "UPDATE reports SET username = COALESCE((SELECT username FROM users WHERE users.id = reports.user_id), '')"
    )
    op.add_column("studies", sa.Column("study_date", sa.Date))
    op.create_table(
        "deleted_reports",
        sa.Column("pdf_sha256", sa.String(64), primary_key=True),
        sa.Column("record_id", sa.Integer, nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("deleted_at", TIME, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("deleted_reports")
    op.drop_column("studies", "study_date")
    for column in ("patient_title", "patient_id", "username"):
        op.drop_column("reports", column)
