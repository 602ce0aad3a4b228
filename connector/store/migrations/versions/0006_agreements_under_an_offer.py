"""agreements of one consumer under one offer

Revision: 0006, after 0005
"""

from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index('agreement_under', 'agreement', ['offer_id', 'consumer', 'ended_at'])


def downgrade() -> None:
    op.drop_index('agreement_under', table_name='agreement')
