"""deliveries know their project and their receiver, and wait in line for it

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TABLE = "webhook_deliveries"


def upgrade() -> None:
    # Plain ALTERs: SQLite's way of rebuilding a table would drop one that attempts refer to.
    op.add_column(TABLE, sa.Column("project_id", sa.String(), nullable=False, server_default=""))
    op.add_column(TABLE, sa.Column("receiver", sa.Text(), nullable=False, server_default=""))
    op.add_column(TABLE, sa.Column("failure", sa.Text(), nullable=True))
    op.add_column(TABLE, sa.Column("replayed_after", sa.Integer(), nullable=False, server_default="0"))
    op.add_column(TABLE, sa.Column("waiting", sa.Boolean(), nullable=False, server_default=sa.false()))
    # Deliveries that stand here already are capped by their whole URL, which is stricter in no case.
    op.execute(
        """
        UPDATE webhook_deliveries
        SET receiver = COALESCE(endpoint_id, url),
            project_id = (SELECT project_id FROM webhook_events WHERE webhook_events.id = event_id)
        """
    )
    op.drop_index("ix_webhook_deliveries_endpoint_id", TABLE)
    op.create_index("ix_webhook_deliveries_endpoint", TABLE, ["endpoint_id", "created_at", "id"])
    op.create_index("ix_webhook_deliveries_project", TABLE, ["project_id", "created_at", "id"])
    op.create_index(
        "ix_webhook_deliveries_leased",
        TABLE,
        ["receiver", "lease_expires_at"],
        postgresql_where=sa.text("lease_expires_at IS NOT NULL"),
        sqlite_where=sa.text("lease_expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_webhook_deliveries_waiting",
        TABLE,
        ["receiver", "next_attempt_at"],
        postgresql_where=sa.text("waiting"),
        sqlite_where=sa.text("waiting = 1"),
    )


def downgrade() -> None:
    for name in ("waiting", "leased", "project", "endpoint"):
        op.drop_index(f"ix_webhook_deliveries_{name}", TABLE)
    op.create_index("ix_webhook_deliveries_endpoint_id", TABLE, ["endpoint_id"])
    for name in ("waiting", "replayed_after", "failure", "receiver", "project_id"):
        op.drop_column(TABLE, name)
