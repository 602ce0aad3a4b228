"""The connector's only place that imports SQLAlchemy. Queries live with their aggregate; callers never see a `select`.

`await store.write(work)` and `await store.read(work)` run `work(tx)` as one transaction in a thread of the store.
`work` is a plain function: it cannot await, so no lock is ever held while somebody else's server is asked.
A write is committed, durably, before `write` returns; then its events are delivered to the bus.
"""

from connector.store.engine import UNKNOWN, Store
from connector.store.event_relay import Relay
from connector.store.transaction import Transaction

__all__ = ["UNKNOWN", "Relay", "Store", "Transaction"]
