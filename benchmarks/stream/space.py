"""What the benchmark runs against: owners and consumers as real connectors, and the servers they are compared with.

Three owners, each a connector of its own: one over HTTP, one whose streams are prepared, one that speaks TLS and has
a consumer that does; datasets are agreed on with the policies that their names say.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.stream.tables import Table
from benchmarks.stream.usage import Tree
from tests.support.certificates import self_signed
from tests.support.ports import free_range
from tests.support.processes import POLICY, Process

_SETTINGS = {
    "TICKET_SECONDS": "86400", "STREAMS_MAX": "64", "QUERY_SECONDS": "120", "WORKER_MEMORY_MB": "1024",
}  # fmt: skip


@dataclass
class Space:
    """Everything that runs. `datasets` maps a name to its owner and transfer."""

    certificate: Path
    consumers: dict[str, Process]  # by owner
    owners: dict[str, Process]
    ports: dict[str, int]
    trees: dict[str, Tree]
    datasets: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # owner, transfer, agreement

    def address(self, dataset: str) -> tuple[str, str]:
        """The URL of a dataset's rows, and a ticket."""
        api = self.consumers[self.datasets[dataset][0]].api()
        found = api.get(f"/transfers/{self.datasets[dataset][1]}/address")
        api.close()
        return str(found["endpoint"]).rstrip("/"), str(found["ticket"])

    def flight(self, dataset: str) -> tuple[str, str, str]:
        """Where its owner speaks Flight, the dataset's name, and a ticket."""
        owner = self.owners[self.datasets[dataset][0]]
        scheme = "grpc+tls" if owner.certificate else "grpc"
        return f"{scheme}://127.0.0.1:{owner.settings['FLIGHT_PORT']}", dataset, self.address(dataset)[1]

    def tree(self, dataset: str) -> Tree:
        """The processes of its owner."""
        running = self.owners[self.datasets[dataset][0]].running
        assert running is not None
        return Tree(running.pid)


@contextmanager
def running(folder: Path, tables: Sequence[Table]) -> Iterator[Space]:
    """Everything started and agreed on; killed at the end."""
    certificate = self_signed(folder / "certificate.pem")
    os.environ["SSL_CERT_FILE"] = str(certificate)  # the consumer and the readers believe it
    first = free_range(18)
    names = ("north", "ready", "secure", "south", "east")
    common = {**_SETTINGS, "SOURCE_ROOTS": str(tables[0].parquet.parent), "PREPARED_MB": "0"}
    extra = {
        "ready": {"PREPARED_MB": "20000"},
        "north": {"FLIGHT_PORT": str(first + 16)},
        "secure": {"FLIGHT_PORT": str(first + 17)},
    }
    made = {
        name: Process(
            name, folder / name, first + 2 * place, first + 2 * place + 1,
            settings={**common, **extra.get(name, {})},
            certificate=certificate if name in ("secure", "east") else None,
        )
        for place, name in enumerate(names)
    }  # fmt: skip
    ports = {
        name: first + 10 + place
        for place, name in enumerate(("raw", "raw-tls", "files", "flight", "flight-tls", "bare"))
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        started = [_start(name, port, certificate, tables) for name, port in ports.items()]
        for process in made.values():
            process.start()
        trees = {name: Tree(process.pid) for name, process in zip(ports, started, strict=True)}
        consumers = {"north": made["south"], "ready": made["south"], "secure": made["east"]}
        space = Space(certificate, consumers, made, ports, trees)
        for table in tables:
            _publish_all(space, table)
        for port in ports.values():
            _await(port)
        yield space
    finally:
        for process in started:
            process.kill()
            process.wait()
        for connector in made.values():
            connector.kill()


def _start(name: str, port: int, certificate: Path, tables: Sequence[Table]) -> subprocess.Popen[bytes]:
    kind, _, tls = name.partition("-")
    given = {
        "files": [str(tables[0].parquet.parent)],
        "bare": [str(table.parquet) for table in tables],
    }.get(kind) or [str(certificate) if tls else "", *(str(table.arrow) for table in tables)]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.stream.servers", kind, str(port), *given])


def _await(port: int) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port} after 60 s")


def _publish_all(space: Space, table: Table) -> None:
    filtered, masked = _filtered(table), _masked(table)
    for owner, name, path, policy in (
        ("north", "memory", table.arrow, POLICY),
        ("north", "one", table.one, POLICY),
        ("north", "open", table.parquet, POLICY),
        ("north", "filtered", table.parquet, filtered),
        ("north", "masked", table.parquet, masked),
        ("ready", "ready", table.parquet, POLICY),
        ("ready", "ready_filtered", table.parquet, filtered),
        ("secure", "secure", table.arrow, POLICY),
    ):
        agree(space, owner, f"{table.name}_{name}", path, policy)


def _filtered(table: Table) -> dict[str, Any]:
    wanted = table.filtered
    constraint = {
        "leftOperand": f"ds:row/{wanted.column}", "operator": wanted.operator, "rightOperand": wanted.value,
    }  # fmt: skip
    return {"permission": [{"action": "use", "constraint": [constraint]}]}


def _masked(table: Table) -> dict[str, Any]:
    column, method, argument = table.masked
    given = {"ds:column": column, "ds:method": method, "ds:argument": argument}
    constraints = [
        {"leftOperand": name, "operator": "eq", "rightOperand": value} for name, value in given.items() if value
    ]
    return {"permission": [{"action": "use", "duty": [{"action": "ds:mask", "constraint": constraints}]}]}


def agree(space: Space, owner: str, name: str, path: Path, policy: dict[str, Any]) -> None:
    """From a file to a started transfer."""
    process = space.owners[owner]
    agreement, transfer = space.consumers[owner].agree(process, *process.offer(name, path, policy))
    space.datasets[name] = (owner, transfer, agreement)
