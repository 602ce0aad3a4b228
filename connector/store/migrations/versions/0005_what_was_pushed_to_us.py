"""what was pushed to us

Revision: 0005, after 0004
"""

from alembic import op
import sqlalchemy as sa

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('received',
    sa.Column('transfer_id', sa.String(length=255), nullable=False),
    sa.Column('rows', sa.BigInteger(), nullable=False),
    sa.Column('batches', sa.BigInteger(), nullable=False),
    sa.Column('bytes', sa.BigInteger(), nullable=False),
    sa.Column('whole', sa.Boolean(), nullable=False),
    sa.Column('digest', sa.String(length=255), nullable=False),
    sa.Column('received_at', sa.Float(), nullable=False),
    sa.Column('removed_at', sa.Float(), nullable=True),
    sa.PrimaryKeyConstraint('transfer_id')
    )


def downgrade() -> None:
    op.drop_table('received')
