"""The steps that EDC and Hanse go together, in both directions. Each is a function; a step that fails raises."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq

from tests.interop.crawl import CatalogueProcess
from tests.interop.edc import PROTOCOL, Edc, reach
from tests.protocol.test_strict import NUMBERS, READY_MADE, TEXTS, ready
from tests.tck.product import Product

Json = dict[str, Any]
ODRL = "http://www.w3.org/ns/odrl.jsonld"
ROWS = 200
LONG_ROWS = 5_000_000  # a stream of them lasts for seconds
REVOKED_WITHIN = 1.0  # seconds
WITHDRAWN_WITHIN = 30.0  # seconds; a copy of the status list counts for some of them
MEMBER: Json = {  # all that the ready-made offers ask of a party, besides an active membership
    "country": "DE", "role": "analyst", "framework_agreements": ["manufacturing:1.0"],
}  # fmt: skip
RESEARCH: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [
                {
                    "leftOperand": "odrl:purpose",
                    "operator": "isAnyOf",
                    "rightOperand": ["https://w3id.org/dpv#ScientificResearch"],
                }
            ],
        }
    ]
}
OPEN: Json = {"permission": [{"action": "use"}]}
UNTIL: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [
                {
                    "leftOperand": "dateTime",
                    "operator": "lt",
                    "rightOperand": {"@value": "2099-01-01T00:00:00Z", "@type": "xsd:dateTime"},
                }
            ],
        }
    ]
}
EDC_POLICIES: dict[str, Json] = {  # asset of EDC -> its policy
    "asset": OPEN,
    "asset-purpose": RESEARCH,
    "asset-own-word": {
        "permission": [
            {
                "action": "use",
                "constraint": [
                    {"leftOperand": "https://edc.example/ns/tier", "operator": "eq", "rightOperand": "gold"}
                ],
            }
        ]
    },
    "asset-duty": {"permission": [{"action": "use", "duty": [{"action": "delete"}]}]},
    "asset-prohibition": {**OPEN, "prohibition": [{"action": "distribute"}]},
}
CSV = b"id,value\n" + b"".join(b"%d,v%d\n" % (number, number) for number in range(1_000))
STEPS: list[tuple[str, Callable[[Space], Awaitable[None]]]] = []
CREDENTIAL_STEPS: list[tuple[str, Callable[[Space], Awaitable[None]]]] = []  # after the others, over DCP alone


@dataclass
class Space:
    """Both sides, the owner's file at Hanse, and the servers of the run."""

    edc: Edc
    hanse: Product
    http: httpx2.AsyncClient
    directory: Path
    edc_base: str  # where Hanse finds EDC
    files: str  # where EDC finds its source, and where sinks are
    sunk: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    withdraw: Callable[[], None] | None = None  # EDC's credential; None where no credentials are presented
    set_status: Callable[[str], None] | None = None  # of Hanse at the catalogue that issued its credential
    issue: Callable[[str], str] | None = None  # a membership credential for a participant; None as above

    @property
    def steps(self) -> list[tuple[str, Callable[[Space], Awaitable[None]]]]:
        return STEPS if self.withdraw is None else [*STEPS, *CREDENTIAL_STEPS]

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Both connectors run while the block runs."""
        try:
            await asyncio.gather(self.edc.start(), self.hanse.start())
            yield
        finally:
            self.edc.stop()
            self.hanse.stop()

    @property
    def path(self) -> Path:
        return self.directory / "rows.parquet"

    @property
    def long_path(self) -> Path:
        return self.directory / "long.parquet"

    def expected(self) -> list[tuple[Any, ...]]:
        """The owner's rows as plain DuckDB reads them."""
        return _select(f"'{self.path}'")

    async def seed(self) -> None:
        """Datasets, offers and facts at Hanse; an asset at EDC."""
        columns = {name: [f"{name}-{n}" for n in range(ROWS)] for name in TEXTS}
        numbers = {name: [float(n) for n in range(ROWS)] for name in NUMBERS}
        await asyncio.to_thread(pq.write_table, pa.table(columns | numbers), self.path)
        await self.offer("plain", OPEN)
        await self.offer("research", RESEARCH)
        await asyncio.to_thread(pq.write_table, pa.table({"id": pa.array(range(LONG_ROWS))}), self.long_path)
        await self.offer("until", UNTIL)
        await self.offer("long", OPEN, self.long_path)
        for name, text in READY_MADE.items():
            _, policy, _ = ready(text)
            await self.offer(name, {key: value for key, value in policy.items() if key not in ("@id", "@type")})
        policy = {"@context": ODRL, "@type": "Set", **OPEN}
        await self.edc.post("/policydefinitions", {"@id": "all", "policy": policy})
        for name, rules in EDC_POLICIES.items():
            await self.offer_at_edc(name, rules)

    async def offer_at_edc(self, name: str, rules: Json) -> None:
        """An asset of EDC with this policy, for anybody to see."""
        asset = {"@id": name, "properties": {"name": "rows"}, "dataAddress": self.source()}
        await self.edc.post("/assets", asset)
        policy = {"@context": ODRL, "@type": "Set", **rules}
        await self.edc.post("/policydefinitions", {"@id": f"policy-{name}", "policy": policy})
        contract = {"@id": f"contract-{name}", "accessPolicyId": "all", "contractPolicyId": f"policy-{name}"}
        await self.edc.post("/contractdefinitions", {**contract, "assetsSelector": [_id_is(name)]})

    def source(self) -> Json:
        return {"@type": "DataAddress", "type": "HttpData", "baseUrl": f"{self.files}/source.csv"}

    async def offer(self, name: str, policy: Json, path: Path | None = None) -> None:
        dataset, place = f"urn:hanse:interop:{name}", str(path or self.path)
        await self.hanse.post("/datasets", {"id": dataset, "name": name.replace("-", "_"), "path": place})
        await self.hanse.post(
            "/offers", {"id": f"offer:{name}", "dataset": dataset, "policy": policy, "decide": "auto"}
        )

    def hanse_party(self) -> Json:
        place = self.hanse.place
        return {"counterPartyId": place.participant, "counterPartyAddress": place.base, "protocol": PROTOCOL}

    async def catalog(self, **query: Any) -> Json:
        asked: Json = {"@type": "CatalogRequest", **self.hanse_party()}
        if query:
            asked["querySpec"] = query
        return await self.edc.post("/catalog/request", asked)

    async def agree(self, name: str) -> str:
        """EDC negotiates for a dataset of Hanse; the agreement's id."""
        dataset = f"urn:hanse:interop:{name}"
        found = _listed(await self.catalog(filterExpression=[_id_is(dataset)]), "dataset")
        (offer,) = _listed(found[0], "hasPolicy")
        said = {"@context": ODRL, "assigner": self.hanse.place.participant, "target": dataset}
        body = {"@type": "ContractRequest", **self.hanse_party(), "policy": {**offer, **said}}
        made = await self.edc.post("/contractnegotiations", body)
        done = await self.edc.reach(f"/contractnegotiations/{made['@id']}", "FINALIZED")
        return str(done["contractAgreementId"])

    async def transfer(self, agreement: str, kind: str, **more: Any) -> str:
        asked = {**self.hanse_party(), "contractId": agreement, "transferType": kind, **more}
        return str((await self.edc.post("/transferprocesses", {"@type": "TransferRequest", **asked}))["@id"])

    async def read(self, address: Json) -> httpx2.Response:
        headers = {"Authorization": address["authorization"], "Accept": "text/csv"}
        return await self.http.get(address["endpoint"], headers=headers)

    async def get(self, path: str) -> Json:
        """One row of Hanse's management API."""
        return dict((await self.http.get(f"{self.hanse.place.management}{path}", headers=self._token())).json())

    async def owners_agreement(self, name: str) -> str:
        """The id of the agreement on a dataset of Hanse, at its owner."""
        agreements = (await self.http.get(f"{self.hanse.place.management}/agreements", headers=self._token())).json()
        return str(next(one["id"] for one in agreements if one["dataset"] == f"urn:hanse:interop:{name}"))

    async def owners_transfer(self, transfer: str) -> str:
        """The id at Hanse of a transfer of EDC."""
        rows = (await self.http.get(f"{self.hanse.place.management}/transfers", headers=self._token())).json()
        theirs = await self.edc.show(f"/transferprocesses/{transfer}")
        return str(next(one["id"] for one in rows if one["id"] == theirs["correlationId"]))

    async def edcs_transfer(self, transfer: str) -> str:
        """The id at EDC of a transfer of Hanse."""
        rows = await self.edc.query("/transferprocesses/request", {"@type": "QuerySpec", "limit": 200})
        return str(next(one["@id"] for one in rows if one.get("correlationId") == transfer))

    async def data(self, transfer: str) -> httpx2.Response:
        """What `hanse fetch` reads."""
        return await self.http.get(f"{self.hanse.place.management}/transfers/{transfer}/data", headers=self._token())

    async def lets_hanse_in(self) -> bool:
        """Whether EDC shows Hanse its catalogue."""
        asked = {"participant": self.edc.participant, "address": self.edc_base}
        url = f"{self.hanse.place.management}/catalog"
        reply = await self.http.get(url, params=asked, headers=self._token())
        if reply.status_code not in (200, 401, 502):
            reply.raise_for_status()
        return reply.status_code == 200

    def _token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.hanse.place.token_file.read_text().strip()}"}

    async def hanse_reaches(self, path: str, state: str) -> Json:
        return await reach(lambda: self.get(path), lambda row: "" if row.get("pending") else str(row["state"]), state)


def _select(source: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
    """All rows of a source, in an order of their own, as plain DuckDB reads them."""
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(f"SELECT * FROM {source} ORDER BY ALL").fetchall()


def _id_is(dataset: str) -> Json:
    return {"operandLeft": "https://w3id.org/edc/v0.0.1/ns/id", "operator": "=", "operandRight": dataset}


def _listed(document: Json, name: str) -> list[Json]:
    """The values of a member, whatever its prefix."""
    found = next((value for key, value in document.items() if re.split(r"[:#/]", key)[-1] == name), [])
    return found if isinstance(found, list) else [found]


def step(
    title: str, steps: list[tuple[str, Callable[[Space], Awaitable[None]]]] = STEPS
) -> Callable[[Callable[[Space], Awaitable[None]]], Callable[[Space], Awaitable[None]]]:
    def note(function: Callable[[Space], Awaitable[None]]) -> Callable[[Space], Awaitable[None]]:
        steps.append((title, function))
        return function

    return note


def _check(got: object, expected: object) -> None:
    if got != expected:
        raise RuntimeError(f"expected {str(expected)[:400]}, came {str(got)[:400]}")


# EDC as consumer.


@step("version documents of both")
async def versions(space: Space) -> None:
    for root in (space.hanse.place.root, space.edc.protocol):
        found = (await space.http.get(f"{root}/.well-known/dspace-version")).raise_for_status().json()
        _check("2025-1" in [one["version"] for one in found["protocolVersions"]], True)


@step("EDC reads Hanse's catalogue, all of it and one dataset by id")
async def catalogue(space: Space) -> None:
    _check(len(_listed(await space.catalog(), "dataset")), len(READY_MADE) + 4)
    one = await space.catalog(filterExpression=[_id_is("urn:hanse:interop:plain")])
    _check([found["@id"] for found in _listed(one, "dataset")], ["urn:hanse:interop:plain"])


@step("EDC asks for a part of Hanse's catalogue by offset and limit")
async def catalogue_part(space: Space) -> None:
    found = await space.catalog(offset=1, limit=2)
    _check(len(_listed(found, "dataset")) > 0, True)


@step("EDC agrees on an offer with a last day")
async def agree_until(space: Space) -> None:
    await space.agree("until")


@step("EDC agrees on an offer without conditions")
async def agree_open(space: Space) -> None:
    space.kept["agreement"] = await space.agree("plain")


def _ready_made(name: str) -> Callable[[Space], Awaitable[None]]:
    async def agree(space: Space) -> None:
        await space.agree(name)

    return agree


for _name in READY_MADE:
    step(f"EDC agrees on the ready-made offer {_name}")(_ready_made(_name))


@step("EDC pulls, and has what plain DuckDB has")
async def pull(space: Space) -> None:
    space.kept["pull"] = await space.transfer(space.kept["agreement"], "HttpData-PULL")
    await space.edc.reach(f"/transferprocesses/{space.kept['pull']}", "STARTED")
    reply = await space.read(await space.edc.address(space.kept["pull"]))
    _check((reply.status_code, reply.headers["content-type"].partition(";")[0]), (200, "text/csv"))
    (space.directory / "pulled.csv").write_bytes(reply.content)
    rows = _select(f"read_csv('{space.directory / 'pulled.csv'}')")
    _check(rows, space.expected())


@step("EDC pulls under an agreement for one purpose, which it cannot declare")
async def pull_for_purpose(space: Space) -> None:
    made = await space.transfer(await space.agree("research"), "HttpData-PULL")
    await space.edc.reach(f"/transferprocesses/{made}", "STARTED")
    _check((await space.read(await space.edc.address(made))).status_code, 200)


@step("EDC suspends, resumes and ends its pull")
async def control_pull(space: Space) -> None:
    path = f"/transferprocesses/{space.kept['pull']}"
    before = await space.edc.address(space.kept["pull"])
    await space.edc.post(f"{path}/suspend", {"@type": "SuspendTransfer", "reason": "a pause"})
    await space.edc.reach(path, "SUSPENDED")
    _check((await space.read(before)).status_code in (401, 403), True)
    await space.edc.post(f"{path}/resume", {})
    await space.edc.reach(path, "STARTED")
    async with asyncio.timeout(30):
        while (after := await space.edc.address(space.kept["pull"])) == before:
            await asyncio.sleep(0.1)
    _check((await space.read(after)).status_code, 200)
    await space.edc.post(f"{path}/terminate", {"@type": "TerminateTransfer", "reason": "enough"})
    await space.edc.reach(path, "TERMINATED")
    _check((await space.read(after)).status_code in (401, 403), True)


@step("Hanse pushes to EDC's sink what plain DuckDB has")
async def push(space: Space) -> None:
    sink = {"type": "HttpData", "baseUrl": f"{space.files}/sink/edc", "authKey": "Authorization", "authCode": "token"}
    made = await space.transfer(space.kept["agreement"], "HttpData-PUSH", dataDestination=sink)
    await space.edc.reach(f"/transferprocesses/{made}", "COMPLETED")
    with pa.ipc.open_stream(io.BytesIO(space.sunk["edc"])) as stream:
        table = stream.read_all()
    _check(_select("pushed", pushed=table), space.expected())


@step("the owner suspends, resumes and completes EDC's pull, and ends another")
async def owner_controls(space: Space) -> None:
    pulls = [await space.transfer(space.kept["agreement"], "HttpData-PULL") for _ in range(2)]
    for pull in pulls:
        await space.edc.reach(f"/transferprocesses/{pull}", "STARTED")
    ours = [await space.owners_transfer(pull) for pull in pulls]
    path = f"/transferprocesses/{pulls[0]}"
    before = await space.edc.address(pulls[0])
    await space.hanse.post(f"/transfers/{ours[0]}/suspend", {"reason": "a pause"})
    await space.edc.reach(path, "SUSPENDED")
    _check((await space.read(before)).status_code in (401, 403), True)
    await space.hanse.post(f"/transfers/{ours[0]}/resume", {})
    await space.edc.reach(path, "STARTED")
    await space.hanse.post(f"/transfers/{ours[0]}/complete", {})
    await space.edc.reach(path, "COMPLETED")
    await space.hanse.post(f"/transfers/{ours[1]}/terminate", {"reason": "enough"})
    await space.edc.reach(f"/transferprocesses/{pulls[1]}", "TERMINATED")
    _check((await space.read(await space.edc.address(pulls[1]))).status_code in (401, 403), True)


@step("the owner's revocation ends EDC's pull")
async def revoke(space: Space) -> None:
    made = await space.transfer(space.kept["agreement"], "HttpData-PULL")
    await space.edc.reach(f"/transferprocesses/{made}", "STARTED")
    address = await space.edc.address(made)
    ours = await space.owners_agreement("plain")
    await space.hanse.post(f"/agreements/{ours}/revoke", {"reason": "no more"})
    _check((await space.read(address)).status_code in (401, 403), True)
    path = f"/transferprocesses/{made}"
    await space.edc.reach(path, "TERMINATED")


@step(f"the owner's revocation stops EDC's running pull within {REVOKED_WITHIN:g} s")
async def revoke_running(space: Space) -> None:
    made = await space.transfer(await space.agree("long"), "HttpData-PULL")
    await space.edc.reach(f"/transferprocesses/{made}", "STARTED")
    ours = await space.owners_agreement("long")
    address, begun = await space.edc.address(made), asyncio.Event()
    reading = asyncio.create_task(_read_until_end(space, address, begun))
    await begun.wait()
    revoked = time.monotonic()
    await space.hanse.post(f"/agreements/{ours}/revoke", {"reason": "no more"})
    took, lines = await reading - revoked, space.kept["lines"]
    print(f"     ended {took * 1e3:.0f} ms after the revocation was asked for, after {lines} of {LONG_ROWS} rows")
    _check((took <= REVOKED_WITHIN, int(lines) < LONG_ROWS), (True, True))


async def _read_until_end(space: Space, address: Json, begun: asyncio.Event) -> float:
    """Read rows slowly until `begun` was heeded, then as fast as they come; when the stream ended."""
    headers, lines = {"Authorization": address["authorization"], "Accept": "text/csv"}, 0
    with suppress(httpx2.HTTPError):  # a stream that is stopped breaks
        async with space.http.stream("GET", address["endpoint"], headers=headers) as reply:
            async for piece in reply.aiter_raw():
                lines += piece.count(b"\n")
                if not begun.is_set():
                    begun.set()
                    await asyncio.sleep(0.2)
    space.kept["lines"] = str(lines)
    return time.monotonic()


# Hanse as consumer.


@step("Hanse reads EDC's catalogue and agrees")
async def hanse_agrees(space: Space) -> None:
    asked = {"dataset_id": "asset", "counter_party_id": space.edc.participant, "counter_party_address": space.edc_base}
    made = await space.hanse.post("/negotiations", asked)
    done = await space.hanse_reaches(f"/negotiations/{made['id']}", "FINALIZED")
    space.kept["theirs"] = done["agreement_id"]


def _policy_of_edc(name: str) -> Callable[[Space], Awaitable[None]]:
    async def agree(space: Space) -> None:
        asked = {"dataset_id": name, "counter_party_id": space.edc.participant, "counter_party_address": space.edc_base}
        made = await space.hanse.post("/negotiations", asked)
        await space.hanse_reaches(f"/negotiations/{made['id']}", "FINALIZED")

    return agree


for _name in EDC_POLICIES:
    if _name != "asset":
        step(f"Hanse agrees on EDC's {_name}")(_policy_of_edc(_name))


@step("Hanse fetches EDC's data byte by byte")
async def hanse_pulls(space: Space) -> None:
    made = await space.hanse.post("/transfers", {"agreement_id": space.kept["theirs"]})
    space.kept["fetch"] = made["id"]
    await space.hanse_reaches(f"/transfers/{made['id']}", "STARTED")
    reply = await space.data(made["id"])
    _check((reply.status_code, reply.headers["content-type"].partition(";")[0]), (200, "text/csv"))
    _check(reply.content, CSV)


@step("Hanse suspends, resumes and ends its pull")
async def hanse_controls(space: Space) -> None:
    path = f"/transfers/{space.kept['fetch']}"
    await space.hanse.post(f"{path}/suspend", {"reason": "a pause"})
    await space.hanse_reaches(path, "SUSPENDED")
    _check((await space.data(space.kept["fetch"])).status_code, 404)
    await space.hanse.post(f"{path}/resume", {})
    await space.hanse_reaches(path, "STARTED")
    async with asyncio.timeout(30):
        while (reply := await space.data(space.kept["fetch"])).status_code != 200:
            await asyncio.sleep(0.1)
    _check(reply.content, CSV)
    await space.hanse.post(f"{path}/terminate", {"reason": "enough"})
    await space.hanse_reaches(path, "TERMINATED")


@step("Hanse completes a pull of EDC's data")
async def hanse_completes(space: Space) -> None:
    made = await space.hanse.post("/transfers", {"agreement_id": space.kept["theirs"]})
    path = f"/transfers/{made['id']}"
    await space.hanse_reaches(path, "STARTED")
    await space.hanse.post(f"{path}/complete", {})
    await space.hanse_reaches(path, "COMPLETED")
    theirs = f"/transferprocesses/{await space.edcs_transfer(made['id'])}"
    await space.edc.reach(theirs, "DEPROVISIONED")  # as EDC goes on to by itself after COMPLETED


@step("EDC as owner suspends, resumes and ends Hanse's pull")
async def edc_controls(space: Space) -> None:
    made = await space.hanse.post("/transfers", {"agreement_id": space.kept["theirs"]})
    path = f"/transfers/{made['id']}"
    await space.hanse_reaches(path, "STARTED")
    theirs = f"/transferprocesses/{await space.edcs_transfer(made['id'])}"
    await space.edc.post(f"{theirs}/suspend", {"@type": "SuspendTransfer", "reason": "a pause"})
    await space.hanse_reaches(path, "SUSPENDED")
    _check((await space.data(made["id"])).status_code, 404)
    await space.edc.post(f"{theirs}/resume", {})
    await space.hanse_reaches(path, "STARTED")
    _check((await space.data(made["id"])).content, CSV)
    await space.edc.post(f"{theirs}/terminate", {"@type": "TerminateTransfer", "reason": "no more"})
    await space.hanse_reaches(path, "TERMINATED")


@step("EDC pushes to Hanse, which has the file byte by byte")
async def hanse_is_pushed(space: Space) -> None:
    made = await space.hanse.post("/transfers", {"agreement_id": space.kept["theirs"], "format": "HttpData-PUSH"})
    row = await space.hanse_reaches(f"/transfers/{made['id']}", "COMPLETED")
    _check((row["received"]["media"], row["received"]["bytes"]), ("text/csv", len(CSV)))
    reply = await space.data(made["id"])
    _check((reply.status_code, reply.headers["content-type"].partition(";")[0]), (200, "text/csv"))
    _check(reply.content, CSV)


# Credentials.


@step("EDC refuses Hanse while the catalogue suspends it", CREDENTIAL_STEPS)
async def suspend(space: Space) -> None:
    if space.set_status is None:
        raise RuntimeError("expected a profile with credentials")
    _check(await space.lets_hanse_in(), True)
    for status, expected in (("suspended", False), ("active", True)):
        await asyncio.to_thread(space.set_status, status)
        began = time.monotonic()
        async with asyncio.timeout(WITHDRAWN_WITHIN):
            while await space.lets_hanse_in() != expected:
                await asyncio.sleep(0.5)
        print(f"     {status}: after {time.monotonic() - began:.1f} s")
    log = (space.directory / "edc.log").read_text()
    _check("Credential status is 'suspension'" in log, True)


@step("the catalogue's crawler reads EDC's catalogue, and the search finds EDC's dataset", CREDENTIAL_STEPS)
async def crawl(space: Space) -> None:
    if space.issue is None:
        raise RuntimeError("expected a profile with credentials")
    catalogue = CatalogueProcess(space.directory / "crawl", space.http, edc=space.edc.participant)
    async with catalogue.running(space.issue(catalogue.participant)):
        member = {"id": space.edc.participant, "name": "edc", "url": space.edc.protocol}
        await catalogue.call("POST", "/members", json=member)
        (run,) = (await catalogue.call("POST", "/crawl", params={"member": "edc", "wait": 60}))["runs"]
        _check((run["outcome"], run["problem"]), ("complete", ""))
        found = await catalogue.call("GET", "/search", params={"q": "owner:edc"})
        _check({one["id"] for one in found["results"]}, set(EDC_POLICIES))


@step("EDC is refused once its credential is withdrawn, and Hanse's log names the rule", CREDENTIAL_STEPS)
async def withdraw(space: Space) -> None:
    if space.withdraw is None:
        raise RuntimeError("expected a profile with credentials")
    await space.catalog()
    space.withdraw()
    began = time.monotonic()
    async with asyncio.timeout(WITHDRAWN_WITHIN):
        while await _is_let_in(space):
            await asyncio.sleep(0.5)
    print(f"     refused after {time.monotonic() - began:.1f} s")
    log = (space.hanse.place.directory / "connector.log").read_text()
    _check([word for word in ("credential_left_out", "MembershipCredential", "withdrawn") if word not in log], [])


async def _is_let_in(space: Space) -> bool:
    try:
        await space.catalog()
    except (RuntimeError, httpx2.HTTPStatusError):
        return False
    return True
