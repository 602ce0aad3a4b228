"""credentials that we hold

Revision: 0015, after 0014
"""

from alembic import op
import sqlalchemy as sa

revision = '0015'
down_revision = '0014'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'held_credential',
        sa.Column('id', sa.String(length=64), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('issuer', sa.String(length=255), nullable=False),
        sa.Column('types', sa.JSON(), nullable=False),
        sa.Column('expires', sa.Float(), nullable=True),
        sa.Column('jwt', sa.Text(), nullable=False),
        sa.Column('holder_pid', sa.String(length=255), nullable=False),
        sa.Column('stored_at', sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_held_credential')),
    )


def downgrade() -> None:
    op.drop_table('held_credential')
