"""How to read a dataset that was agreed on: programs to copy, for our client, Arrow over HTTP, Flight and ADBC.

No program holds a ticket: it asks the connector for one, with its reader's own token. Names come from the owner, so
each is written as a Python literal or a quoted SQL name. A test runs every program as the page shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from connector.console.page import Desk
from connector.console.view.formatting import term
from connector.dsp.messages import address_of
from connector.dsp.states import CONSUMER, STARTED
from connector.errors import HanseError, NotFound
from connector.federation.tables import Holdings
from connector.management.auth import Caller
from connector.store import Store
from connector.store.tables import Transfer
from policies.contracts.columns import quote_identifier

_STREAM = frozenset(("stream", "train", "read", "use"))  # last words of the actions that permit it
_QUERY = frozenset(("query", "use"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read, from where. `connector`: the base address of our management API.

    `streams`: whether its rows may be streamed, else only asked about in SQL; `queries`: whether SQL is permitted as
    such, else as a stream; `groups`: whether answers are about groups only. `http`, `flight`: where the address of the
    transfer, `address` in the programs, has the two; no `flight`: nowhere.
    """

    connector: str
    transfer: str
    owner: str
    dataset: str
    purpose: str = ""
    streams: bool = True
    queries: bool = True
    groups: bool = False
    http: str = 'address["endpoint"]'
    flight: str = ""

    @property
    def sql(self) -> str:
        name = ".".join(map(quote_identifier, (self.owner, self.dataset)))
        return f"SELECT count(*) AS n FROM {name}" if self.groups else f"SELECT * FROM {name} LIMIT 10"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read it: a title, when to take it, what it needs, and the program."""

    title: str
    about: str
    needs: str
    code: str


def ways(reading: Reading) -> list[Way]:
    """Every way that the owner offers, the easiest first."""
    found = [
        Way("Hanse's client", "Reconnects, renews tickets, checks that all has come.", "hanse", _client(reading)),
        Way("Arrow over HTTP", "Through every proxy, with any Arrow library.", "pyarrow", _http(reading)),
    ]
    if reading.flight:
        needs, sql = "pyarrow", "adbc-driver-flightsql pyarrow"
        if reading.streams:
            found.append(Way("Arrow Flight", "All rows, in parts that can be read at once.", needs, _flight(reading)))
        found.append(Way("ADBC Flight SQL", "SQL from notebooks and BI tools.", sql, _adbc(reading)))
    return found


def _client(reading: Reading) -> str:
    name = f"{reading.owner}/{reading.dataset}"
    purpose = f", purpose={reading.purpose!r}" if reading.purpose else ""
    if not reading.streams:
        asked = f"answer = space.query({reading.sql!r}{purpose})\nprint(answer.to_arrow())"
    else:
        asked = f"data = space.agree({name!r}{purpose})\nfor batch in data.stream():\n    print(batch.num_rows)"
    return f"import hanse\n\nspace = hanse.connect({reading.connector!r})  # the token: HANSE_TOKEN\n{asked}"


def _http(reading: Reading) -> str:
    if reading.streams:
        query = f"?purpose={quote(reading.purpose, safe='')}" if reading.purpose else ""
        path, body = f"/datasets/{quote(reading.dataset, safe='')}/rows{query}", ""
    else:
        envelope = {"sql": reading.sql, **({"purpose": reading.purpose} if reading.purpose else {})}
        path, body = "/query", f", json.dumps({envelope!r}).encode()"
    return f"""\
import json
import os
import urllib.request

import pyarrow as pa


def ask(url, bearer, body=None):
    headers = {{"authorization": "Bearer " + bearer}}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers))


where = {_address(reading)!r}
address = json.load(ask(where, os.environ["HANSE_TOKEN"]))
url = {reading.http} + {path!r}
rows, end = 0, {{}}
with pa.ipc.open_stream(ask(url, address["ticket"]{body})) as reader:
    for batch, metadata in reader.iter_batches_with_custom_metadata():
        rows += batch.num_rows
        end = json.loads((metadata or {{}}).get(b"hanse.end", "{{}}"))
assert end.get("status") == "complete", end  # a stream without its end record is not whole
print(rows)"""


def _flight(reading: Reading) -> str:
    headers = '\n    (b"authorization", b"Bearer " + address["ticket"].encode()),\n'
    if reading.purpose:
        headers += f'    (b"hanse-purpose", {reading.purpose.encode()!r}),\n'
    return f"""\
{_asking(reading)}
import pyarrow as pa
import pyarrow.flight as fl

options = fl.FlightCallOptions(headers=[{headers}])
wanted = fl.FlightDescriptor.for_path({reading.owner!r}, {reading.dataset!r})
with fl.connect({reading.flight}) as client:
    ends = client.get_flight_info(wanted, options).endpoints
    parts = [client.do_get(one.ticket, options).read_all() for one in ends]
print(pa.concat_tables(parts).num_rows)"""


def _adbc(reading: Reading) -> str:
    declared = {"hanse-purpose": reading.purpose, "hanse-action": "" if reading.queries else "stream"}
    more = "".join(
        f"\noptions[DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + {name!r}] = {value!r}"
        for name, value in declared.items()
        if value
    )
    return f"""\
{_asking(reading)}
from adbc_driver_flightsql import DatabaseOptions, dbapi

options = {{DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer " + address["ticket"]}}{more}
where = {reading.flight}
with dbapi.connect(where, db_kwargs=options, autocommit=True) as connection:
    with connection.cursor() as cursor:
        cursor.execute({reading.sql!r})
        print(cursor.fetch_arrow_table())"""


def _asking(reading: Reading) -> str:
    return f"""\
import json
import os
import urllib.request

asked = urllib.request.Request(
    {_address(reading)!r},
    headers={{"authorization": "Bearer " + os.environ["HANSE_TOKEN"]}},
)
address = json.load(urllib.request.urlopen(asked))
"""


def _address(reading: Reading) -> str:
    return f"{reading.connector}/api/v1/transfers/{quote(reading.transfer, safe=':')}/address"


def router(desk: Desk, *, holdings: Holdings, store: Store) -> APIRouter:
    routes = desk.router()

    @routes.get("/transfers/{pid}/connect")
    async def connect(request: Request, pid: str, caller: Caller = desk.may("consume")) -> Response:
        row = await store.read(lambda tx: tx.transfers.peek(pid))
        if row is None or row.role != CONSUMER or row.state != STARTED:
            raise NotFound(f"no transfer {pid[:100]!r} of ours is started; start one under its agreement")
        base = str(request.base_url).rstrip("/")
        try:
            reading, silent = of_contract(row, await holdings.contract(row.agreement_id), base), None
        except HanseError as error:
            reading, silent = None, error
        return await desk.page(
            request, "connect.html", where="transfers", transfer=row, reading=reading, error=silent,
            ways=ways(reading) if reading else [],
        )  # fmt: skip

    return routes


def of_contract(row: Transfer, contract: Mapping[str, Any], connector: str) -> Reading:
    """What can be read under a transfer, by what its owner says of the agreement."""
    contracts = list(contract["contracts"])
    streams = [one for one in contracts if one["aggregate"] is None and _permits(one, _STREAM)]
    chosen = (streams or contracts)[0]
    purpose = row.purpose or next(iter(chosen["purposes"]), "")
    return Reading(
        connector=connector,
        transfer=row.id,
        owner=str(contract["owner"]),
        dataset=str(contract["name"]),
        purpose=term(str(purpose)),
        streams=bool(streams),
        queries=_permits(chosen, _QUERY),
        groups=chosen["aggregate"] is not None,
        **_places(row),
    )


def _permits(contract: Mapping[str, Any], actions: frozenset[str]) -> bool:
    return any(action.rstrip("/").rpartition("/")[2] in actions for action in contract["actions"])


def _places(row: Transfer) -> dict[str, str]:
    """Where the address of a transfer tells HTTP and Flight, as Python: its format has the endpoint."""
    address = address_of(row.data_address)
    if address is not None and address.endpoint.startswith("grpc"):
        return {"http": 'address["properties"]["http"]', "flight": 'address["endpoint"]'}
    return {"flight": 'address["properties"]["flight"]'} if address is not None and address.get("flight") else {}
