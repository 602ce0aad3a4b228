"""what was verified of a counterparty when an agreement was made

Revision: 0019, after 0018
"""

from alembic import op
import sqlalchemy as sa

revision = '0019'
down_revision = '0018'
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ('negotiation', 'agreement'):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column('verified', sa.JSON(), server_default='{}', nullable=False))


def downgrade() -> None:
    for table in ('agreement', 'negotiation'):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column('verified')
