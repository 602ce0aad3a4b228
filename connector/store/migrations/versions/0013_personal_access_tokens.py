"""personal access tokens

Revision: 0013, after 0012
"""

from alembic import op
import sqlalchemy as sa

revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('api_token', schema=None) as batch_op:
        batch_op.add_column(sa.Column('owner', sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column('owner_name', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('label', sa.Text(), nullable=True))
        batch_op.add_column(sa.Column('last_used_at', sa.Float(), nullable=True))
        batch_op.create_index(batch_op.f('ix_api_token_owner'), ['owner'], unique=False)


def downgrade() -> None:
    # a personal access token would become an ordinary token, which outlives its owner
    op.execute("DELETE FROM api_token WHERE owner IS NOT NULL")
    with op.batch_alter_table('api_token', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_api_token_owner'))
        batch_op.drop_column('last_used_at')
        batch_op.drop_column('label')
        batch_op.drop_column('owner_name')
        batch_op.drop_column('owner')
