"""a job knows the worker that has its history in its cache

Revision: 0009, after 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("responses", sa.Column("home", sa.String(), nullable=True))
    op.add_column("responses", sa.Column("shared_at", sa.Double(), nullable=True))
    op.add_column("conversations", sa.Column("worker", sa.String(), nullable=True))
    op.create_index(
        "ix_responses_homes",
        "responses",
        ["home", "rank"],
        postgresql_where=sa.text("status = 'queued' AND ready AND home IS NOT NULL"),
        sqlite_where=sa.text("status = 'queued' AND ready = 1 AND home IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_responses_homes", "responses")
    op.drop_column("conversations", "worker")
    op.drop_column("responses", "shared_at")
    op.drop_column("responses", "home")
