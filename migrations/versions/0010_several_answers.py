"""one request may have several answers, of other kinds than responses, and need not be stored

Revision: 0010, after 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("responses", sa.Column("kind", sa.String(16), nullable=False, server_default="response"))
    op.add_column("responses", sa.Column("parent_id", sa.String(), nullable=True))
    op.add_column("responses", sa.Column("choice", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("responses", sa.Column("stored", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.create_index(
        "ix_responses_parent",
        "responses",
        ["parent_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        sqlite_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "ix_responses_unstored",
        "responses",
        ["completed_at"],
        postgresql_where=sa.text("NOT stored"),
        sqlite_where=sa.text("stored = 0"),
    )


def downgrade() -> None:
    op.execute("DELETE FROM items WHERE response_id IN (SELECT id FROM responses WHERE kind <> 'response')")
    op.execute(
        "DELETE FROM output_chunks WHERE response_id IN (SELECT id FROM responses WHERE kind <> 'response')"
    )
    op.execute("DELETE FROM responses WHERE kind <> 'response'")
    op.drop_index("ix_responses_unstored", "responses")
    op.drop_index("ix_responses_parent", "responses")
    for column in ("stored", "choice", "parent_id", "kind"):
        op.drop_column("responses", column)
