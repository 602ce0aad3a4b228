"""leases of processes

Revision: 0009, after 0008
"""

from alembic import op
import sqlalchemy as sa

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('process_lease',
    sa.Column('run', sa.String(length=255), nullable=False),
    sa.Column('until', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('run')
    )


def downgrade() -> None:
    op.drop_table('process_lease')
