"""quotas and departures of the hub."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "hub_quotas",
        sa.Column("account", sa.String(length=96), nullable=False),
        sa.Column("bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("repos_max", sa.BigInteger(), nullable=True),
        sa.Column("waiting_bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("guest_bytes_max", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_hub_quotas")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "hub_retired_names",
        sa.Column("key", sa.String(length=96), nullable=False),
        sa.Column("became", sa.String(length=96), nullable=True),
        sa.Column("retired_us", sa.BigInteger(), nullable=False),
        sa.Column("free_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_hub_retired_names")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "hub_waiting",
        sa.Column("account", sa.String(length=96), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("guest", sa.Boolean(), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("pk_hub_waiting")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("hub_waiting", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_hub_waiting_key"), ["key"], unique=False)

    with op.batch_alter_table("hub_discussion_events", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_hub_discussion_events_author"), ["author"], unique=False
        )

    with op.batch_alter_table("hub_repo_contents", schema=None) as batch_op:
        # What a repo held before was in one of its branches.
        batch_op.add_column(
            sa.Column("published", sa.Boolean(), nullable=False, server_default=sa.true())
        )
        batch_op.create_index(batch_op.f("ix_hub_repo_contents_sha256"), ["sha256"], unique=False)

    with op.batch_alter_table("hub_uploads", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("guest", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch_op.create_index(batch_op.f("ix_hub_uploads_account"), ["account"], unique=False)


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("hub_uploads", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hub_uploads_account"))
        batch_op.drop_column("guest")

    with op.batch_alter_table("hub_repo_contents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hub_repo_contents_sha256"))
        batch_op.drop_column("published")

    with op.batch_alter_table("hub_discussion_events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hub_discussion_events_author"))

    with op.batch_alter_table("hub_waiting", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hub_waiting_key"))

    op.drop_table("hub_waiting")
    op.drop_table("hub_retired_names")
    op.drop_table("hub_quotas")
