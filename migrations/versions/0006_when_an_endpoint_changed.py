"""a webhook endpoint knows when its owner last changed it

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "webhook_endpoints", sa.Column("updated_at", sa.Double(), nullable=False, server_default="0")
    )
    op.execute("UPDATE webhook_endpoints SET updated_at = created_at")


def downgrade() -> None:
    op.drop_column("webhook_endpoints", "updated_at")
