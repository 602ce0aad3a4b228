"""Example programs that read an agreed dataset: the Hanse client, Arrow over HTTP, Flight and ADBC.

Programs contain no ticket; they request one from the connector with the user's token. Names come from the owner, so
each is written as a Python literal or a quoted SQL name. A test runs every program as the page shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from connector.console.page import PageRenderer
from connector.console.view.formatting import term
from connector.dsp.messages import address_of
from connector.dsp.states import CONSUMER, STARTED
from connector.errors import Absent, ConnectorError
from connector.federation.tables import Holdings
from connector.infra.client_wheel import install_line
from connector.management.sign_on.auth import Caller
from connector.store import Store
from connector.store.tables import Transfer
from policies.contracts.columns import quote_identifier

_STREAM = frozenset(("stream", "train", "read", "use"))  # last path segments of the actions that permit it
_QUERY = frozenset(("query", "use"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTarget:
    """The dataset to read. `connector`: the base address of the management API.

    `streams`: whether rows may be streamed; otherwise only SQL is permitted. `queries`: whether the query action is
    permitted; otherwise SQL runs under the stream action. `groups`: whether answers are aggregates only.
    `http`, `flight`: Python expressions for the endpoints in the transfer's `address`; empty `flight`: not offered.
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
class ReadProgram:
    """An example program: its title, when to use it, the command that installs what it needs, and its code."""

    title: str
    about: str
    install: str
    code: str


def list_programs(target: ReadTarget) -> list[ReadProgram]:
    """List a program for each access that the owner offers, the easiest first."""
    found = [
        ReadProgram(
            "Hanse's client",
            "Reconnects, renews tickets, checks that the answer is complete.",
            install_line(target.connector),
            _client(target),
        ),
        ReadProgram(
            "Arrow over HTTP", "Works through any proxy, with any Arrow library.", "pip install pyarrow", _http(target)
        ),
    ]
    if target.flight:
        needs, sql = "pip install pyarrow", "pip install adbc-driver-flightsql pyarrow"
        if target.streams:
            found.append(
                ReadProgram("Arrow Flight", "All rows, in parts that can be read in parallel.", needs, _flight(target))
            )
        found.append(ReadProgram("ADBC Flight SQL", "SQL from notebooks and BI tools.", sql, _adbc(target)))
    return found


def _client(target: ReadTarget) -> str:
    name = f"{target.owner}/{target.dataset}"
    purpose = f", purpose={target.purpose!r}" if target.purpose else ""
    if not target.streams:
        asked = f"answer = space.query({target.sql!r}{purpose})\nprint(answer.to_arrow())"
    else:
        asked = f"data = space.agree({name!r}{purpose})\nfor batch in data.stream():\n    print(batch.num_rows)"
    return f"import hanse\n\nspace = hanse.connect({target.connector!r})  # the token: HANSE_TOKEN\n{asked}"


def _http(target: ReadTarget) -> str:
    if target.streams:
        query = f"?purpose={quote(target.purpose, safe='')}" if target.purpose else ""
        path, body = f"/datasets/{quote(target.dataset, safe='')}/rows{query}", ""
    else:
        envelope = {"sql": target.sql, **({"purpose": target.purpose} if target.purpose else {})}
        path, body = "/query", f", json.dumps({envelope!r}).encode()"
    return f"""\
import json
import os
import urllib.request

import pyarrow as pa


def ask(url, bearer, body=None):
    headers = {{"authorization": "Bearer " + bearer}}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers))


where = {_address(target)!r}
address = json.load(ask(where, os.environ["HANSE_TOKEN"]))
url = {target.http} + {path!r}
rows, end = 0, {{}}
with pa.ipc.open_stream(ask(url, address["ticket"]{body})) as reader:
    for batch, metadata in reader.iter_batches_with_custom_metadata():
        rows += batch.num_rows
        end = json.loads((metadata or {{}}).get(b"hanse.end", "{{}}"))
assert end.get("status") == "complete", end  # a stream without its end record is not whole
print(rows)"""


def _flight(target: ReadTarget) -> str:
    headers = '\n    (b"authorization", b"Bearer " + address["ticket"].encode()),\n'
    if target.purpose:
        headers += f'    (b"hanse-purpose", {target.purpose.encode()!r}),\n'
    return f"""\
{_ask_address(target)}
import pyarrow as pa
import pyarrow.flight as fl

options = fl.FlightCallOptions(headers=[{headers}])
wanted = fl.FlightDescriptor.for_path({target.owner!r}, {target.dataset!r})
with fl.connect({target.flight}) as client:
    ends = client.get_flight_info(wanted, options).endpoints
    parts = [client.do_get(one.ticket, options).read_all() for one in ends]
print(pa.concat_tables(parts).num_rows)"""


def _adbc(target: ReadTarget) -> str:
    declared = {"hanse-purpose": target.purpose, "hanse-action": "" if target.queries else "stream"}
    more = "".join(
        f"\noptions[DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + {name!r}] = {value!r}"
        for name, value in declared.items()
        if value
    )
    return f"""\
{_ask_address(target)}
from adbc_driver_flightsql import DatabaseOptions, dbapi

options = {{DatabaseOptions.AUTHORIZATION_HEADER.value: "Bearer " + address["ticket"]}}{more}
where = {target.flight}
with dbapi.connect(where, db_kwargs=options, autocommit=True) as connection:
    with connection.cursor() as cursor:
        cursor.execute({target.sql!r})
        print(cursor.fetch_arrow_table())"""


def _ask_address(target: ReadTarget) -> str:
    return f"""\
import json
import os
import urllib.request

asked = urllib.request.Request(
    {_address(target)!r},
    headers={{"authorization": "Bearer " + os.environ["HANSE_TOKEN"]}},
)
address = json.load(urllib.request.urlopen(asked))
"""


def _address(target: ReadTarget) -> str:
    return f"{target.connector}/api/v1/transfers/{quote(target.transfer, safe=':')}/address"


def router(pages: PageRenderer, *, holdings: Holdings, store: Store) -> APIRouter:
    routes = pages.router()

    @routes.get("/transfers/{pid}/connect")
    async def connect(request: Request, pid: str, caller: Caller = pages.may("consume")) -> Response:
        row = await store.read(lambda tx: tx.transfers.peek(pid))
        if row is None or row.role != CONSUMER or row.state != STARTED:
            raise Absent(f"no started transfer {pid[:100]!r} as consumer; start one under its agreement")
        base = str(request.base_url).rstrip("/")
        try:
            target, silent = target_from_contract(row, await holdings.contract(row.agreement_id), base), None
        except ConnectorError as error:
            target, silent = None, error
        return await pages.render(
            request, "connect.html", where="transfers", transfer=row, target=target, error=silent,
            programs=list_programs(target) if target else [],
        )  # fmt: skip

    return routes


def target_from_contract(row: Transfer, contract: Mapping[str, Any], connector: str) -> ReadTarget:
    """Return the target of a transfer, from the owner's contract summary."""
    contracts = list(contract["contracts"])
    streams = [one for one in contracts if one["aggregate"] is None and _permits(one, _STREAM)]
    chosen = (streams or contracts)[0]
    purpose = row.purpose or next(iter(chosen["purposes"]), "")
    return ReadTarget(
        connector=connector,
        transfer=row.id,
        owner=str(contract["owner"]),
        dataset=str(contract["name"]),
        purpose=term(str(purpose)),
        streams=bool(streams),
        queries=_permits(chosen, _QUERY),
        groups=chosen["aggregate"] is not None,
        **_address_expressions(row),
    )


def _permits(contract: Mapping[str, Any], actions: frozenset[str]) -> bool:
    return any(action.rstrip("/").rpartition("/")[2] in actions for action in contract["actions"])


def _address_expressions(row: Transfer) -> dict[str, str]:
    """Return the Python expressions for the HTTP and Flight endpoints; the transfer's format decides the main one."""
    address = address_of(row.data_address)
    if address is not None and address.endpoint.startswith("grpc"):
        return {"http": 'address["properties"]["http"]', "flight": 'address["endpoint"]'}
    return {"flight": 'address["properties"]["flight"]'} if address is not None and address.get("flight") else {}
