"""Scripted tour of the demo: the steps of owners, operator, gigafactory and auditor, one function for each chapter.

Every step checks its result; an unexpected result ends the tour with an error.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hanse
from hanse.agreement import quote_segment
from hanse.audit import verify

from connector.demo import training_job
from connector.demo.data import Piece, prepare
from connector.demo.show import Show, size
from connector.demo.space import COUNTRIES, TITLES, DemoSpace, read_resident_bytes

if TYPE_CHECKING:
    from hanse._transport.api import Api

_SECONDS = 60.0
RESEARCH = "dpv:ScientificResearch"
OFFERS = Path(__file__).parent / "offers"
ABOUT: dict[str, dict[str, Any]] = {
    "patients": {
        "title": "Breast cancer patients (GBSG2)",
        "description": "Node-positive breast cancer: therapy, tumour, receptors, days without recurrence.",
        "keywords": ["breast cancer", "oncology", "survival"],
        "theme": "HEAL",
        "license": "Schumacher et al. 1994, as shipped in lifelines (MIT)",
    },
    "flights": {
        "title": "Flights from New York, 2013",
        "description": "336,776 departures from EWR, JFK and LGA with delays, distance and aircraft.",
        "keywords": ["aviation", "delay", "mobility"],
        "theme": "TRAN",
        "license": "CC0-1.0",
    },
    "weather": {
        "title": "Hourly weather at New York's airports, 2013",
        "description": "Temperature, wind, precipitation and visibility by hour.",
        "keywords": ["weather", "visibility"],
        "theme": "ENVI",
        "license": "CC0-1.0",
    },
    "planes": {
        "title": "Aircraft register",
        "description": "Year, manufacturer, model, engines and seats by tail number.",
        "keywords": ["aviation", "register"],
        "theme": "TRAN",
        "license": "CC0-1.0",
    },
    "airlines": {
        "title": "Airlines",
        "description": "Carrier codes and names.",
        "keywords": ["aviation"],
        "theme": "TRAN",
        "license": "CC0-1.0",
    },
}
SURVIVAL = """
SELECT horTh, menostat, count(*) AS patients, avg(time) AS mean_days, sum(cens) AS recurrences
FROM "all".patients
GROUP BY horTh, menostat
ORDER BY horTh, menostat
"""
DELAYS = """
SELECT p.manufacturer, count(*) AS flights, avg(f.dep_delay) AS mean_delay
FROM north.flights f
JOIN south.weather w ON f.origin = w.origin AND f.time_hour = w.time_hour
JOIN west.planes p ON f.tailnum = p.tailnum
WHERE w.visib < 2 AND f.dep_delay IS NOT NULL
GROUP BY p.manufacturer
HAVING count(*) >= 50
ORDER BY mean_delay DESC
LIMIT 8
"""


@dataclass(slots=True)
class Story:
    """State shared by the chapters."""

    space: DemoSpace
    show: Show
    pieces: list[Piece] = field(default_factory=list)
    agreed: dict[str, Any] = field(default_factory=dict)  # "north/flights" -> the SDK's dataset
    forge: Any = None  # the gigafactory's SDK connection

    def api(self, name: str) -> Api:
        member = self.space.members[name]
        return hanse.connect(member.management, member.token, seconds=_SECONDS).api

    def name_of(self, did: str) -> str:
        """Return the short name of a member by its DID."""
        return next((member.name for member in self.space.members.values() if member.did == did), did)

    def tell(self) -> None:
        """Play every chapter in order."""
        for chapter in (data, start, join, register, find, agree, ask, train, refuse, revoke, audit, account):
            chapter(self)


def data(story: Story) -> None:
    story.show.chapter("Real data, converted once")
    with story.show.step("Patients of three clinics, New York's flights with planes, weather and airlines") as step:
        story.pieces = prepare(story.space.directory / "data", tell=lambda _: step.advance())
        step.say(f"{sum(piece.rows for piece in story.pieces):,} rows in {len(story.pieces)} Parquet files")


def start(story: Story) -> None:
    story.show.chapter("A data space on this machine")
    with story.show.step("Catalogue, three owners and a gigafactory start, each a process of its own") as step:
        story.space.check_ports()
        step.total(len(story.space.members))
        for name in story.space.members:
            story.space.start(name)
        for name in story.space.members:
            story.space.wait(name)
            step.advance()
        step.say(f"ports {story.space.port} to {story.space.port + 2 * len(story.space.members) - 1}")
    forge = story.space.members["forge"]
    story.forge = hanse.connect(forge.management, forge.token)


def join(story: Story) -> None:
    with story.show.step("The operator admits four members, each by its DID"):
        operator = story.api("catalogue")
        for member in story.space.connectors:
            operator.post(
                "/members",
                {
                    "id": member.did,
                    "name": member.name,
                    "title": TITLES[member.name],
                    "role": "gigafactory" if member.name == "forge" else "data-owner",
                    "country": COUNTRIES[member.name],
                    "url": member.url,
                },
            )


def register(story: Story) -> None:
    story.show.chapter("Owners register and offer")
    with story.show.step("Datasets are registered: schema, statistics, digests. Others do not see them yet") as step:
        step.total(len(story.pieces))
        for piece in story.pieces:
            story.api(piece.owner).post("/datasets", {"name": piece.name, "path": str(piece.path), **ABOUT[piece.name]})
            step.advance()
    with story.show.step("An offer is attached to each, written in the short form"):
        for piece in story.pieces:
            form = (OFFERS / f"{piece.name}-{piece.owner}.yaml").read_text()
            made = story.api(piece.owner).post("/offers", {"form": form})
            if piece.name == "patients" and piece.owner == "north":
                sentences = made["sentences"]
    for sentence in sentences:
        story.show.note(sentence["text"])


def find(story: Story) -> None:
    story.show.chapter("The catalogue finds them")
    with story.show.step("It asks every connector over the Dataspace Protocol") as step:
        runs = story.api("catalogue").post("/crawl", wait=60)["runs"]
        step.say(f"{len(runs)} connectors visited")
    with story.show.step('Search for the words "breast cancer"') as step:
        found = story.forge.search("breast cancer")
        step.say(", ".join(sorted(entry.name for entry in found)))
        story.show.expect(len(found) == 3, "three datasets about breast cancer")
    with story.show.step("Search for datasets with a column `tailnum`") as step:
        found = story.forge.search(column="tailnum")
        step.say(", ".join(sorted(entry.name for entry in found)))
        story.show.expect(len(found) == 2, "two datasets with a column tailnum")


def agree(story: Story) -> None:
    story.show.chapter("The gigafactory negotiates, connector to connector")
    with story.show.step("Catalogue request, negotiation to FINALIZED, transfer to STARTED, seven times") as step:
        step.total(len(story.pieces))
        for piece in story.pieces:
            name = f"{piece.owner}/{piece.name}"
            story.agreed[name] = story.forge.agree(name, purpose=RESEARCH)
            step.advance()
        step.say(f"{len(story.agreed)} agreements, stored by both sides")


def ask(story: Story) -> None:
    story.show.chapter("One SQL question over three owners")
    totals = {f"{piece.owner}.{piece.name}": piece.rows for piece in story.pieces}
    for title, sql in (
        (
            "Survival by therapy at three clinics: figures over groups of five patients or more, and no row leaves",
            SURVIVAL,
        ),
        ("Delays in bad weather by maker of the aircraft: a join over three owners", DELAYS),
    ):
        with story.show.step(title):
            result = story.forge.query(sql, purpose=RESEARCH)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", hanse.GroupsLeftOut)  # shown under the table
                table = result.to_arrow()
        story.show.expect(table.num_rows > 0, "an answer")
        story.show.table(table.column_names, [tuple(row.values()) for row in table.to_pylist()])
        story.show.table(
            ("owner", "rows of data sent", "result rows sent", "bytes sent", "rows that stayed", "withheld"),
            [
                (
                    f"{part['owner']}.{part['dataset']}",
                    part["data_rows"],
                    part["result_rows"],
                    part["bytes"],
                    totals[f"{part['owner']}.{part['dataset']}"] - part["data_rows"],
                    {"possibly": "possibly some"}.get(part["withheld"], part["withheld"]),
                )
                for part in result.owners
            ],
        )
        for sentence in result.left_out:
            story.show.note(sentence)


def train(story: Story) -> None:
    story.show.chapter("A training job streams Arrow batches")
    flights = story.agreed["north/flights"]
    with story.show.step("A model learns batch by batch which flights arrive late", total=336_776) as step:
        outcome = training_job.fit(flights, advance=step.advance)
        step.say(
            f"{outcome.rows:,} rows in {outcome.batches} batches, {size(outcome.bytes)}; "
            f"log loss {outcome.loss:.3f} (always the mean: {outcome.base_loss:.3f}), "
            f"memory grew {size(outcome.grown)} after the first batches"
        )
    story.show.expect(outcome.loss < outcome.base_loss, "a model that is better than the mean")
    story.show.expect(outcome.grown < 100_000_000, "constant memory")


def refuse(story: Story) -> None:
    story.show.chapter("Three times no, by name of the rule")
    patients = story.agreed["north/patients"]
    cases: tuple[tuple[str, Callable[[], object]], ...] = (
        (
            "Raw rows of patients",
            lambda: story.forge.query("SELECT horTh, tgrade, time FROM north.patients", purpose=RESEARCH).to_arrow(),
        ),
        (
            "A purpose that was not agreed",
            lambda: story.forge.query("SELECT count(*) AS n FROM north.patients", purpose="dpv:Marketing").to_arrow(),
        ),
        (
            "A group that is too small",
            lambda: story.forge.query(
                "SELECT count(*) AS n FROM north.patients WHERE horTh = 'yes' AND menostat = 'Pre' AND tgrade = 'I'",
                purpose=RESEARCH,
            ).to_arrow(),
        ),
    )
    story.show.expect(patients is not None, "an agreement about patients")
    for title, attempt in cases:
        with story.show.step(title) as step:
            refusal = _catch_refusal(attempt)
            story.show.expect(refusal is not None, "a refusal")
            step.say(f"refused: {refusal.code}")
        story.show.note(f"{refusal}" + (f" ({rule})" if (rule := getattr(refusal, "rule", "")) else ""))


def _catch_refusal(attempt: Callable[[], object]) -> Any:
    try:
        attempt()
    except hanse.Refused as refusal:
        return refusal
    return None


def revoke(story: Story) -> None:
    story.show.chapter("The owner changes its mind")
    flights = story.agreed["north/flights"]
    asked: list[float] = []

    def owner_revokes() -> None:
        owner = story.api("north")
        agreement = quote_segment(flights.agreement_id)
        asked.append(time.monotonic())
        owner.post(f"/agreements/{agreement}/revoke", {"reason": "the data protection officer asked for it"})

    with story.show.step("An agreement is revoked while its stream runs") as step:
        stopped = 0.0
        rows = 0
        try:
            for batch in _read_slowly(flights.stream(batch_rows=2_000)):
                rows += batch.num_rows
                if rows >= 20_000 and not asked:
                    owner_revokes()
        except hanse.AccessRevoked as ended:
            stopped = time.monotonic()
            reason = str(ended)
        story.show.expect(bool(asked) and stopped > 0, "a stream that stops when its agreement is revoked")
        step.say(
            f"stopped {(stopped - asked[0]) * 1000:.0f} ms after the revocation, {rows:,} of 336,776 rows had left"
        )
    story.show.note(reason)


def _read_slowly(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches with pauses, so that the stream is still running when it is revoked."""
    for batch in batches:
        yield batch
        time.sleep(0.01)


def audit(story: Story) -> None:
    story.show.chapter("The auditor verifies the log")
    owner = story.api("north")
    with story.show.step("Who read what, under which agreement, at north") as step:
        listed = owner.get("/audit/events", limit=1000)["records"]
        reads = [entry for entry in listed if entry["body"]["kind"] in ("ReadEnded", "ReadRefused")]
        step.say(f"{len(reads)} reads and refusals")
    story.show.table(
        ("record", "who", "dataset", "purpose", "outcome", "rows of data", "result rows", "why"),
        [
            (
                entry["idx"],
                story.name_of(entry["body"]["actor"]),
                entry["body"].get("dataset", "").rpartition(":")[2],
                entry["body"].get("purpose", "").rpartition("#")[2],
                entry["body"]["outcome"],
                *_count_rows(entry["body"]),
                entry["body"].get("code", ""),
            )
            for entry in reads[:8]
        ],
    )
    folder = story.space.directory / "audit"
    folder.mkdir(exist_ok=True)
    with story.show.step("The log is exported and verified offline") as step:
        path = folder / "north.zip"
        path.write_bytes(b"".join(block for block, _ in owner.blocks("/audit/export")))
        report = verify.verify(path, owner.text("/audit/key").strip())
        story.show.expect(report.ok, "a log that verifies")
        step.say(f"{report.records} records under the signed root {report.root[:16]}...")
    with story.show.step("One byte of a copy is changed") as step:
        report = verify.verify(_tamper(path, folder / "tampered.zip"))
        story.show.expect(not report.ok and report.first_bad is not None, "a verifier that names the changed record")
        step.say(f"record {report.first_bad} does not fit: {report.problem}")


def _count_rows(body: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the number of data rows and of result rows of a read."""
    detail = body.get("detail", {})
    rows = detail.get("rows")
    return (0, rows) if detail.get("gives") == "results" else (rows, None if rows is None else 0)


def _tamper(path: Path, copy: Path) -> Path:
    """Copy an evidence file with one bit changed in the record of a read."""
    changed = bytearray(path.read_bytes())
    changed[changed.index(b"ReadEnded") + 4] ^= 1
    copy.write_bytes(changed)
    return copy


def account(story: Story) -> None:
    story.show.chapter("What it takes")
    memory = story.space.memory()
    story.show.table(
        ("process", "main process", "with workers"),
        [(name, size(main), size(whole)) for name, (main, whole) in memory.items()],
    )
    whole = sum(tree for _, tree in memory.values())
    story.show.note(f"everything together {size(whole)}; this story {size(read_resident_bytes(os.getpid()))}")
    largest = max(main for name, (main, _) in memory.items() if name != "catalogue")
    story.show.expect(largest <= 250 * 2**20, f"connectors within 250 MB, got {size(largest)}")
    story.show.expect(whole <= 2.5e9, f"everything within 2.5 GB, got {size(whole)}")
