"""logs that the catalogue is a witness for

Revision: 0005, after 0004
"""

from alembic import op
import sqlalchemy as sa

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('witnessed_log',
    sa.Column('origin', sa.String(length=255), nullable=False),
    sa.Column('member', sa.String(length=1024), nullable=False),
    sa.Column('vkey', sa.Text(), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('note', sa.Text(), nullable=False),
    sa.Column('cosignatures', sa.Text(), nullable=False),
    sa.Column('cosigned_at', sa.Float(), nullable=False),
    sa.Column('refused_at', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('origin')
    )


def downgrade() -> None:
    op.drop_table('witnessed_log')
