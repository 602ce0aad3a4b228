"""The connector's database. The only room that imports SQLAlchemy. Queries live with their aggregate; callers never see
a `select`.

`await store.write(work)` and `await store.read(work)` run `work(tx)` as one transaction in a thread of the store.
`work` is a plain function: it cannot await, so no lock is held during a request to another server.
A write is durable before `write` returns. Its events are delivered to the bus after the commit.
"""

from connector.store.engine import UNKNOWN, Store
from connector.store.event_relay import EventRelay
from connector.store.transaction import Transaction

__all__ = ["UNKNOWN", "EventRelay", "Store", "Transaction"]
