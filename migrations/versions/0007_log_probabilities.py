"""log-probabilities of an answer's tokens, where they were asked for

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("output_chunks", sa.Column("logprobs", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("output_chunks", "logprobs")
