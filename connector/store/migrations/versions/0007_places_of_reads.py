"""places of reads

Revision: 0007, after 0006
"""

from alembic import op
import sqlalchemy as sa

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('read_place',
    sa.Column('read_id', sa.String(length=255), nullable=False),
    sa.Column('agreement_id', sa.String(length=255), nullable=False),
    sa.Column('until', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('read_id', 'agreement_id')
    )
    with op.batch_alter_table('read_place', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_read_place_agreement_id'), ['agreement_id'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('read_place', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_read_place_agreement_id'))

    op.drop_table('read_place')
