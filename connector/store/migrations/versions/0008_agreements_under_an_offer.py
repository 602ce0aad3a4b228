"""agreements of one consumer under one offer

Revision: 0008, after 0007
"""

from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index('agreement_under', 'agreement', ['offer_id', 'consumer', 'ended_at'])


def downgrade() -> None:
    op.drop_index('agreement_under', table_name='agreement')
