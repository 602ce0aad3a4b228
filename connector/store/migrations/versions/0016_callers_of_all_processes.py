"""used tokens and presented credentials, for all processes

Revision: 0016, after 0015
"""

from alembic import op
import sqlalchemy as sa

revision = '0016'
down_revision = '0015'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'used_token',
        sa.Column('digest', sa.String(length=64), nullable=False),
        sa.Column('until', sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint('digest', name=op.f('pk_used_token')),
    )
    op.create_index(op.f('ix_used_token_until'), 'used_token', ['until'])
    op.create_table(
        'presented_credentials',
        sa.Column('holder', sa.String(length=255), nullable=False),
        sa.Column('at', sa.Float(), nullable=False),
        sa.Column('until', sa.Float(), nullable=False),
        sa.Column('credentials', sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint('holder', name=op.f('pk_presented_credentials')),
    )
    op.create_index(op.f('ix_presented_credentials_until'), 'presented_credentials', ['until'])


def downgrade() -> None:
    op.drop_table('presented_credentials')
    op.drop_table('used_token')
