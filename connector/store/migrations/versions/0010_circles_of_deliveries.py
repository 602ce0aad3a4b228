"""circles of deliveries

Revision: 0010, after 0009
"""

from alembic import op
import sqlalchemy as sa

revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('outbox', schema=None) as batch_op:
        batch_op.add_column(sa.Column('circle', sa.String(length=16), nullable=False, server_default='partners'))
        batch_op.add_column(sa.Column('host', sa.String(length=255), nullable=False, server_default=''))
    op.execute("UPDATE outbox SET circle = 'lasting_others' WHERE kind = 'push'")
    op.execute("UPDATE outbox SET circle = 'known' WHERE audience = ''")


def downgrade() -> None:
    with op.batch_alter_table('outbox', schema=None) as batch_op:
        batch_op.drop_column('host')
        batch_op.drop_column('circle')
