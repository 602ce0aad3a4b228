"""The catalogue's database. The only room of the catalogue that imports SQLAlchemy. Queries live with their aggregate;
callers never see a `select`.

`await store.write(work)` and `await store.read(work)` run the plain function `work(tx)` as one transaction in a thread
of the store. A write is committed, durably, before `write` returns.
"""

from catalogue.store.engine import CatalogueStore
from catalogue.store.transaction import CatalogueTransaction

__all__ = ["CatalogueStore", "CatalogueTransaction"]
