"""limits for each counterparty

Revision: 0003, after 0002
"""

from alembic import op
import sqlalchemy as sa

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

OPEN = "state NOT IN ('FINALIZED', 'COMPLETED', 'TERMINATED')"


def upgrade() -> None:
    op.create_table('begun',
    sa.Column('counterparty', sa.String(length=255), nullable=False),
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('full_until', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('counterparty', 'kind')
    )
    with op.batch_alter_table('begun', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_begun_full_until'), ['full_until'], unique=False)
    for table in ('negotiation', 'transfer'):
        op.create_index(f'{table}_open', table, ['counterparty', 'role'], unique=False,
            sqlite_where=sa.text(OPEN), postgresql_where=sa.text(OPEN))


def downgrade() -> None:
    for table in ('negotiation', 'transfer'):
        op.drop_index(f'{table}_open', table_name=table)
    op.drop_table('begun')
