"""the media type of a push

Revision: 0018, after 0017
"""

from alembic import op
import sqlalchemy as sa

revision = '0018'
down_revision = '0017'
branch_labels = None
depends_on = None


def upgrade() -> None:
    arrow = 'application/vnd.apache.arrow.stream'
    with op.batch_alter_table('received', schema=None) as batch_op:
        batch_op.add_column(sa.Column('media', sa.String(length=255), nullable=False, server_default=arrow))


def downgrade() -> None:
    with op.batch_alter_table('received', schema=None) as batch_op:
        batch_op.drop_column('media')
