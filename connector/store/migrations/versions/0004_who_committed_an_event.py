"""which process committed an event

Revision: 0004, after 0003
"""

from alembic import op
import sqlalchemy as sa

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ('audit_pending', 'audit_event'):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column('origin', sa.String(length=255), nullable=False, server_default=''))


def downgrade() -> None:
    for table in ('audit_pending', 'audit_event'):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column('origin')
