"""who asked for an agreement

Revision: 0017, after 0016
"""

from alembic import op
import sqlalchemy as sa

revision = '0017'
down_revision = '0016'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('negotiation', schema=None) as batch_op:
        batch_op.add_column(sa.Column('asked_by', sa.String(length=255), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('negotiation', schema=None) as batch_op:
        batch_op.drop_column('asked_by')
