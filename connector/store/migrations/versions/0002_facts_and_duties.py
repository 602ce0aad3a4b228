"""what the owner vouches for, the ledger of duties, and privacy budgets with their answers

Revision: 0002, after 0001
"""

from alembic import op
import sqlalchemy as sa

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('attestation',
    sa.Column('subject', sa.String(length=255), nullable=False),
    sa.Column('fact', sa.String(length=255), nullable=False),
    sa.Column('value', sa.String(length=255), nullable=False),
    sa.Column('valid_until', sa.Float(), nullable=True),
    sa.Column('evidence', sa.Text(), nullable=False),
    sa.Column('recorded_by', sa.String(length=255), nullable=False),
    sa.Column('recorded_at', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('subject', 'fact', 'value')
    )
    op.create_table('duty_evidence',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('agreement_id', sa.String(length=255), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('path', sa.String(length=255), nullable=False),
    sa.Column('given_by', sa.String(length=16), nullable=False),
    sa.Column('actor', sa.String(length=255), nullable=False),
    sa.Column('fulfilled_at', sa.Float(), nullable=False),
    sa.Column('evidence', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('duty_evidence', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_duty_evidence_agreement_id'), ['agreement_id'], unique=False)

    op.create_table('duty_watch',
    sa.Column('agreement_id', sa.String(length=255), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('path', sa.String(length=255), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('told_at', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('agreement_id', 'role', 'path')
    )
    with op.batch_alter_table('grant_state', schema=None) as batch_op:
        batch_op.add_column(sa.Column('epsilon_micro', sa.BigInteger(), nullable=False, server_default='0'))

    op.create_table('private_answer',
    sa.Column('agreement_id', sa.String(length=255), nullable=False),
    sa.Column('question', sa.String(length=255), nullable=False),
    sa.Column('epsilon_micro', sa.BigInteger(), nullable=False),
    sa.Column('answer', sa.LargeBinary(), nullable=False),
    sa.Column('answered_at', sa.Float(), nullable=False),
    sa.PrimaryKeyConstraint('agreement_id', 'question')
    )


def downgrade() -> None:
    op.drop_table('private_answer')
    with op.batch_alter_table('grant_state', schema=None) as batch_op:
        batch_op.drop_column('epsilon_micro')

    op.drop_table('duty_watch')
    with op.batch_alter_table('duty_evidence', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_duty_evidence_agreement_id'))

    op.drop_table('duty_evidence')
    op.drop_table('attestation')
