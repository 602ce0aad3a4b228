"""issued credentials

Revision: 0003, after 0002
"""

from alembic import op
import sqlalchemy as sa

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('issuance',
    sa.Column('id', sa.String(length=255), nullable=False),
    sa.Column('holder', sa.String(length=1024), nullable=False),
    sa.Column('holder_pid', sa.String(length=255), nullable=False),
    sa.Column('wanted', sa.JSON(), nullable=False),
    sa.Column('status', sa.String(length=16), nullable=False),
    sa.Column('token', sa.Text(), nullable=False),
    sa.Column('created_at', sa.Float(), nullable=False),
    sa.Column('attempts', sa.BigInteger(), nullable=False),
    sa.Column('next_at', sa.Float(), nullable=True),
    sa.Column('problem', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    with op.batch_alter_table('issuance', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_issuance_holder'), ['holder'], unique=False)
        batch_op.create_index(batch_op.f('ix_issuance_next_at'), ['next_at'], unique=False)

    op.create_table('credential',
    sa.Column('id', sa.String(length=255), nullable=False),
    sa.Column('issuance', sa.String(length=255), nullable=False),
    sa.Column('holder', sa.String(length=1024), nullable=False),
    sa.Column('type', sa.String(length=255), nullable=False),
    sa.Column('profile', sa.String(length=32), nullable=False),
    sa.Column('list_kind', sa.String(length=16), nullable=False),
    sa.Column('list_number', sa.BigInteger(), nullable=False),
    sa.Column('list_index', sa.BigInteger(), nullable=False),
    sa.Column('issued_at', sa.Float(), nullable=False),
    sa.Column('expires_at', sa.Float(), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('jwt', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('list_kind', 'list_number', 'list_index', name='uq_credential_place')
    )
    with op.batch_alter_table('credential', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_credential_holder'), ['holder'], unique=False)
        batch_op.create_index(batch_op.f('ix_credential_issuance'), ['issuance'], unique=False)

    op.create_table('status_list',
    sa.Column('kind', sa.String(length=16), nullable=False),
    sa.Column('number', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('used', sa.BigInteger(), nullable=False),
    sa.Column('revision', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('kind', 'number')
    )


def downgrade() -> None:
    op.drop_table('status_list')
    op.drop_table('credential')
    op.drop_table('issuance')
