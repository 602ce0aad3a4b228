"""A day at the command line: an owner offers, a consumer asks, a person approves, rows flow, the owner ends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse.cli import main

from tests.e2e.conftest import Running

RESEARCH = "dpv:ScientificResearch"
FORM = """
offer: urn:hanse:offer:west:tides
dataset: tides
who: {membership: active}
may: [query, stream]
for: [dpv:ScientificResearch]
until: 2099-12-31T23:59:59+01:00
columns: {hide: [keeper]}
decide: manual
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


As = Callable[..., Ran]


@pytest.fixture
def run(running: Running, capfd: pytest.CaptureFixture[str]) -> As:
    """A command as the holder of a member's token gives it; the exit code, and what came out."""

    def go(who: str, *args: str) -> Ran:
        member, code = running.space.members[who], 0
        try:
            main(["--url", member.management, "--token", member.token, *args])
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return go


def done(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def waiting(run: As) -> Any:
    """The one negotiation that the owner has to decide."""
    rows = done(run("west", "pending", "--json")).json
    (row,) = (row for row in rows if row["dataset"].endswith(":tides"))
    return row


def test_a_day_at_the_command_line(running: Running, run: As, tmp_path: Path) -> None:
    rows = [{"port": f"p{n % 3}", "height": n / 10, "keeper": f"k{n}"} for n in range(500)]
    source = running.space.directory / "data" / "west" / "tides.parquet"
    pq.write_table(pa.Table.from_pylist(rows), source)
    form = tmp_path / "offer.yaml"
    form.write_text(FORM)

    done(run("west", "dataset", "add", "tides", str(source), "--title", "Tides", "--keyword", "sea"))
    assert done(run("west", "dataset", "show", "tides", "--json")).json["rows"] == 500
    done(run("west", "policy", "lint", str(form), "--dataset", "tides"))
    done(run("west", "offer", "add", str(form)))
    assert run("west", "offer", "add", str(form)).code == 1

    asked = run("forge", "negotiate", "west/tides", "--purpose", RESEARCH, "--wait", "2")
    assert (asked.code, "has not answered yet" in asked.err) == (1, True)
    done(run("west", "reject", waiting(run)["id"], "--reason", "not before the season"))
    told = run("forge", "negotiate", "west/tides", "--purpose", RESEARCH, "--wait", "2")
    assert (told.code, "not before the season" in told.err, "--again" in told.err) == (3, True, True)
    assert run("forge", "negotiate", "west/tides", "--purpose", RESEARCH, "--wait", "2", "--again").code == 1
    done(run("west", "approve", waiting(run)["id"]))
    agreed = done(run("forge", "negotiate", "west/tides", "--purpose", RESEARCH, "--json")).json
    again = done(run("forge", "negotiate", "west/tides", "--purpose", RESEARCH, "--json")).json
    assert again == agreed
    shown = done(run("forge", "agreements", agreed["agreement"])).out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[-4:] == ["query, stream for dpv:ScientificResearch", "column type masked", "port VARCHAR",
                          "height DOUBLE"]  # fmt: skip

    sql = "SELECT port, count(*) AS n FROM west.tides GROUP BY port ORDER BY port"
    counts = done(run("forge", "query", sql, "--purpose", RESEARCH, "--json"))
    assert [json.loads(line)["n"] for line in counts.out.splitlines()] == [167, 167, 166]
    assert "west" in done(run("forge", "query", sql, "--purpose", RESEARCH, "--explain")).out
    assert run("forge", "stream", "west/tides").code == 3  # for no purpose; what it started is in nobody's way
    assert done(run("forge", "query", sql, "--json")).out == counts.out
    target = tmp_path / "tides.parquet"
    done(
        run(
            "forge",
            "stream",
            "west/tides",
            "-c",
            "height",
            "--where",
            "port = 'p0'",
            "--purpose",
            RESEARCH,
            "-o",
            str(target),
        )
    )
    assert pq.read_table(target).to_pylist() == [{"height": row["height"]} for row in rows if row["port"] == "p0"]
    hidden = run("forge", "stream", "west/tides", "-c", "keeper", "--purpose", RESEARCH)
    assert (hidden.code, hidden.out) == (1, "")
    assert run("forge", "query", "SELECT port FROM west.tides", "--purpose", "dpv:Marketing").code == 3

    done(run("west", "offer", "withdraw", "urn:hanse:offer:west:tides"))
    done(run("west", "revoke", agreed["agreement"], "--reason", "the season is over"))
    ended = run("forge", "stream", "west/tides", "--purpose", RESEARCH)
    assert ended.code in (3, 4), ended.err

    reads = done(run("west", "audit", "list", "--agreement", agreed["agreement"], "--json")).json
    assert {"AgreementConcluded", "ReadStarted", "ReadEnded", "AgreementRevoked"} <= {row["kind"] for row in reads}
    refused = done(run("west", "audit", "list", "--dataset", "tides", "--outcome", "refused", "--json")).json
    assert refused
    assert {row["body"]["dataset"].rpartition(":")[2] for row in refused} == {"tides"}
    assert run("west", "audit", "list", "--dataset", "tide").code == 4
    evidence, key = tmp_path / "evidence.zip", tmp_path / "log.vkey"
    key.write_text(done(run("west", "audit", "key")).out)
    done(run("west", "audit", "export", "-o", str(evidence)))
    done(run("west", "audit", "verify", str(evidence), "--key", str(key)))
    changed = bytearray(evidence.read_bytes())
    changed[changed.index(b"the season is over")] ^= 1
    evidence.write_bytes(changed)
    bad = run("west", "audit", "verify", str(evidence), "--key", str(key), "--json")
    revoked = next(row["idx"] for row in reads if row["kind"] == "AgreementRevoked")
    assert (bad.code, bad.json["first_bad"]) == (6, revoked)
