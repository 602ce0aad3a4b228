"""what for a negotiation is

Revision: 0011, after 0010
"""

from alembic import op
import sqlalchemy as sa

revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('negotiation', schema=None) as batch_op:
        batch_op.add_column(sa.Column('purpose', sa.Text(), nullable=False, server_default=''))


def downgrade() -> None:
    with op.batch_alter_table('negotiation', schema=None) as batch_op:
        batch_op.drop_column('purpose')
