"""Measured times of layers.

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "layer_times",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("shape", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("measured_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_layer_times"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_layer_times_tenant_id_tenants"),
    )
    op.create_index("ix_layer_times_tenant_id_shape", "layer_times", ["tenant_id", "shape"])


def downgrade() -> None:
    op.drop_table("layer_times")
