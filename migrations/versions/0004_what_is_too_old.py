"""what is too old is found by an index, and a conversation knows when it was last used

Revision: 0004, after 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("conversations", sa.Column("used_at", sa.Double(), nullable=False, server_default="0"))
    op.execute(
        """
        UPDATE conversations SET used_at = COALESCE(
            (SELECT MAX(items.created_at) FROM items WHERE items.conversation_id = conversations.id),
            created_at
        )
        """
    )
    op.create_index("ix_conversations_used_at", "conversations", ["used_at"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_index("ix_webhook_events_created_at", "webhook_events", ["created_at"])
    op.create_index(
        "ix_responses_deleted",
        "responses",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_responses_deleted", "responses")
    op.drop_index("ix_webhook_events_created_at", "webhook_events")
    op.drop_index("ix_idempotency_keys_created_at", "idempotency_keys")
    op.drop_index("ix_conversations_used_at", "conversations")
    op.drop_column("conversations", "used_at")
