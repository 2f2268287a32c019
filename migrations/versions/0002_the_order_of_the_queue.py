"""the order of the queue: tiers, ranks, expiry, run time; limits of API keys

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

QUEUED = "status = 'queued'"


def upgrade() -> None:
    # Added one by one and with a default: SQLite can do that without copying the table.
    op.add_column("responses", sa.Column("tier", sa.String(16), nullable=False, server_default="default"))
    op.add_column("responses", sa.Column("rank", sa.Double(), nullable=False, server_default="0"))
    op.add_column("responses", sa.Column("ready", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("responses", sa.Column("expires_at", sa.Double(), nullable=True))
    op.add_column(
        "responses", sa.Column("max_run_seconds", sa.Double(), nullable=False, server_default="600")
    )
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.Integer(), nullable=True))
    # What waits already keeps its order: by the time of its acceptance.
    op.execute("UPDATE responses SET rank = created_at / 1e10")
    op.execute(
        "UPDATE responses SET ready = false WHERE status = 'queued' AND EXISTS ("
        "SELECT 1 FROM responses AS other WHERE other.status IN ('queued', 'in_progress') AND ("
        "(other.conversation_id = responses.conversation_id AND other.turn < responses.turn)"
        " OR other.id = responses.previous_response_id))"
    )
    op.drop_index("ix_responses_queued", table_name="responses")
    _index("ready", ["rank", "id"], f"{QUEUED} AND ready", f"{QUEUED} AND ready = 1")
    _index("lines", ["project_id", "tier", "rank"], QUEUED)
    _index("expiring", ["expires_at"], f"{QUEUED} AND expires_at IS NOT NULL")
    op.create_index("ix_responses_completed", "responses", ["completed_at"])


def _index(name: str, columns: list[str], where: str, sqlite_where: str | None = None) -> None:
    op.create_index(
        f"ix_responses_{name}",
        "responses",
        columns,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(sqlite_where or where),
    )
