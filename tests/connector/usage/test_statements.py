"""How often a read asks the database: each statement costs processor time that everybody's reads share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from connector.dataplane import running_reads
from connector.engine.pool.protocol import Relation
from connector.events import ReadEnded, ReadStarted
from connector.infra.database.database import run_by_driver
from connector.store import Store, Transaction
from connector.store.tables import ConnectorTable
from connector.usage.grants import Grants
from tests.support import gate, provider
from tests.support.gate import atom

PROFILE = {"rows": 10, "columns": [{"name": "id", "type": "BIGINT"}]}
TOLD: dict[str, Any] = {"actor": provider.CONSUMER, "process": "r"}


@contextmanager
def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What statements do, and the table that they name first: those that SQLAlchemy runs, and those by the driver."""
    found: list[str] = []

    def heard(statement: str) -> None:
        words = statement.split()
        found.append(f"{words[0]} {next(word for word in words[1:] if word in ConnectorTable.metadata.tables)}")

    def by_sqlalchemy(_: Any, __: Any, statement: str, *___: Any) -> None:
        heard(statement)

    def by_driver(connection: Any, execute: Any, sql: str, parameters: Any) -> None:
        heard(sql)
        run_by_driver(connection, execute, sql, parameters)

    event.listen(store.engine, "before_cursor_execute", by_sqlalchemy)
    with monkeypatch.context() as patched:
        patched.setattr("connector.store.unit_of_work.run_by_driver", by_driver)
        yield found
    event.remove(store.engine, "before_cursor_execute", by_sqlalchemy)


async def test_a_read_under_known_contracts_asks_once_for_each_and_counts_each_in_one_statement(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, numbers = sqlite_store, range(3)
    policy = gate.agreement(atom("odrl:count", "lteq", "9"), action="odrl:use")

    def fill(tx: Transaction) -> None:
        for number in numbers:
            provider.insert(tx, policy, str(number), name=f"n{number}", relation=Relation("parquet"), profile=PROFILE)

    await store.write(fill)
    grants = Grants(store, facts_of=provider.member)
    grants.forget(await grants.examine(*map(provider.wanted, numbers)))  # compiles
    with counted(store, monkeypatch) as asked:
        read = await grants.examine(*map(provider.wanted, numbers))
    assert asked == ["SELECT agreement"] * 3
    with counted(store, monkeypatch) as asked:
        await grants.begin(read, lambda tx: running_reads.begin(tx, ReadStarted(**TOLD), instance="i"), read_id="r")
    assert asked == ["UPDATE grant_state"] * 3 + ["INSERT open_read", "INSERT audit_pending"]
    with counted(store, monkeypatch) as asked:
        await grants._look_for_ends()
    assert asked == ["SELECT grant_state", "SELECT transfer"]
    with counted(store, monkeypatch) as asked:
        await store.write(lambda tx: running_reads.end(tx, ReadEnded(**TOLD), instance="i"))
    assert asked == ["DELETE open_read", "INSERT audit_pending"]
    grants.forget(read)
