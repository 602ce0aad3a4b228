"""How Alembic runs our migrations: on the connection that `database` hands it, in one transaction."""

from alembic import context

from connector.store.tables import ConnectorTable

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=ConnectorTable.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
