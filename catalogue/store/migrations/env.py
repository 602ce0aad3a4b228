"""How Alembic runs our migrations: on the connection that `database` hands it, in one transaction."""

from alembic import context

from catalogue.store.tables import CatalogueTable

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=CatalogueTable.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
