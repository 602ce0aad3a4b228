"""meanings of columns, citation and contact of a dataset

Revision: 0021, after 0020
"""

from alembic import op
import sqlalchemy as sa

revision = '0021'
down_revision = '0020'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('dataset', schema=None) as batch_op:
        batch_op.add_column(sa.Column('citation', sa.Text(), nullable=False, server_default=''))
        batch_op.add_column(sa.Column('contact', sa.Text(), nullable=False, server_default=''))
        batch_op.add_column(sa.Column('column_notes', sa.JSON(), nullable=False, server_default='{}'))


def downgrade() -> None:
    with op.batch_alter_table('dataset', schema=None) as batch_op:
        batch_op.drop_column('column_notes')
        batch_op.drop_column('contact')
        batch_op.drop_column('citation')
