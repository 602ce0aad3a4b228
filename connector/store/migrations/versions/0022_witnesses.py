"""logs that we are a witness for, and cosignatures of our log

Revision: 0022, after 0021
"""

from alembic import op
import sqlalchemy as sa

revision = '0022'
down_revision = '0021'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'witnessed_log',
        sa.Column('origin', sa.String(length=255), nullable=False),
        sa.Column('member', sa.String(length=1024), nullable=False),
        sa.Column('vkey', sa.Text(), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('note', sa.Text(), nullable=False),
        sa.Column('cosignatures', sa.Text(), nullable=False),
        sa.Column('cosigned_at', sa.Float(), nullable=False),
        sa.Column('refused_at', sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint('origin', name=op.f('pk_witnessed_log')),
    )
    op.create_table(
        'audit_cosignature',
        sa.Column('size', sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column('witness', sa.String(length=1024), nullable=False),
        sa.Column('lines', sa.Text(), nullable=False),
        sa.Column('cosigned_at', sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint('size', 'witness', name=op.f('pk_audit_cosignature')),
    )


def downgrade() -> None:
    op.drop_table('audit_cosignature')
    op.drop_table('witnessed_log')
