"""The command line against a scripted connector: what people see, what scripts get, and the exit code of everything."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from hanse import cli
from hanse.cli import main, output
from hanse.cli.query import describe_progress
from pyarrow import csv, feather, parquet
from rich.console import Console

from connector.audit.log import Filter
from tests.client.support import SCHEMA, Asked, Connector, Raw, batch, chunked, complete, connector, ipc
from tests.connector.audit.support import exported, logged, reads
from tests.support.own_name import changed

CASES = Path(__file__).parents[2] / "cases" / "audit"
KEY = (CASES / "log.vkey").read_text().strip()
NORTH = "did:web:north.example"
OWNERS = [{"owner": "north", "dataset": "flights", "rows": 2, "bytes": 1500, "ms": 4}]
OF_OWNERS = [("north",), ("south", "groups of at least 5")]
ANSWER = ipc([batch(1, 2), batch(3)], complete(3, owners=OWNERS, policy=["row filter"]))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def served() -> Iterator[Connector]:
    with connector() as running:
        yield running


@pytest.fixture
def run(served: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command as the console script does."""
    for name in ("HANSE_URL", "HANSE_TOKEN", "HANSE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")

    def go(*args: str, token: str = "secret") -> Ran:
        code = 0
        try:
            main([*(["--url", served.url, "--token", token] if token else ["--url", served.url]), *args])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return go


# ---- errors and exit codes


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ((400, {"code": "bad_input", "detail": "expected a, got b"}), 1, "expected a, got b"),
        ((401, {"code": "unauthenticated", "detail": "unknown token"}), 3, "unknown token"),
        ((403, {"code": "purpose_not_agreed", "detail": "no", "rule": "/permission/0"}), 3, "rule: /permission/0"),
        ((404, {"code": "not_found", "detail": "no such thing"}), 4, "code: not_found"),
        ((409, {"code": "already_exists", "detail": "taken"}), 1, "taken"),
        ((502, {"code": "peer_unreachable", "detail": "north is down"}), 5, "north is down"),
        ((503, {"code": "busy", "detail": "later"}), 1, "later"),
        ((500, b"<html>[bold]"), 1, "status 500"),
    ],
)
def test_every_error_is_a_sentence_and_an_exit_code(
    run: Run, served: Connector, answer: Any, code: int, said: str
) -> None:
    served.routes["GET", "/datasets"] = answer
    ran = run("dataset", "list")
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_problem_that_is_the_sentence_is_printed_once(run: Run, served: Connector, tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("offer: x\n")
    problem = {"level": "warning", "path": "/permission/0", "message": "did you mean dpv:Marketing?"}
    detail = "did you mean dpv:Marketing? If it is meant as it is, take it so"
    refused = {"code": "purpose_unknown", "detail": detail, "problems": [problem]}
    served.routes["POST", "/policies/withheld"] = []
    served.routes["POST", "/offers"] = (400, refused)
    assert run("offer", "add", str(tmp_path / "o.yaml")).err.count("did you mean") == 1


def test_problems_of_a_form_are_listed_with_their_places(run: Run, served: Connector, tmp_path: Path) -> None:
    problems = [{"level": "error", "path": "/permission/0", "message": "unknown word [x]"}]
    refused = (400, {"code": "policy_invalid", "detail": "cannot", "problems": problems})
    served.routes["POST", "/offers"] = served.routes["POST", "/policies/withheld"] = refused
    (tmp_path / "o.yaml").write_text("dataset: flights")
    ran = run("offer", "add", str(tmp_path / "o.yaml"))
    assert ran.code == 1
    assert "- error /permission/0: unknown word [x]" in ran.err


def test_what_stands_on_a_version_that_does_not_fit_is_listed_once_each(run: Run, served: Connector) -> None:
    told = [{"level": "error", "on": on, "id": f"urn:{on}", "rule": "/permission/0", "message": "column [x] is gone"}
            for on in ("offer", "agreement", "agreement")]  # fmt: skip
    served.routes["POST", "/datasets/flights/versions"] = (
        409, {"code": "version_unfit", "detail": "does not fit", "problems": told}
    )  # fmt: skip
    said = run("dataset", "update", "flights").err
    assert "- error offer urn:offer /permission/0: column [x] is gone" in said
    assert said.count("agreement urn:agreement /permission/0: column [x]") == 1


def test_an_address_that_is_no_management_listeners_is_told_as_that(run: Run, served: Connector) -> None:
    served.routes["GET", "/self"] = (404, {"code": "not_found", "detail": "Not Found"})
    ran = run("login", served.url, "--token", "hush", token="")
    assert ran.code == 4
    assert "is no management listener" in ran.err


def test_where_no_tls_is_spoken_the_other_scheme_is_named(run: Run, served: Connector) -> None:
    ran = run("--url", served.url.replace("http:", "https:"), "members")
    assert ran.code == 5
    assert f"does not speak TLS; try {served.url}" in " ".join(ran.err.split())


def test_a_line_of_a_form_is_told_once(run: Run, served: Connector, tmp_path: Path) -> None:
    problem = {"level": "error", "path": "line 3", "message": "line 3: expected a text"}
    served.routes["POST", "/policies/lint"] = {"problems": [problem], "sentences": []}
    (tmp_path / "p.yaml").write_text("x: 1")
    assert run("policy", "lint", str(tmp_path / "p.yaml")).out == "error line 3: expected a text\n"


def test_without_a_register_there_are_no_members_and_it_is_said_why(run: Run, served: Connector) -> None:
    served.routes["GET", "/members"] = []
    assert "HANSE_TRUST_ANCHOR" in run("members").err
    assert run("members", "--json").json == []


@pytest.mark.parametrize("fields", [["query.limit"], ["query.limit", "query.before"]])
def test_a_field_that_does_not_fit_is_told_once(run: Run, served: Connector, fields: list[str]) -> None:
    unfit = [{"field": field, "problem": "too small"} for field in fields]
    served.routes["GET", "/datasets"] = (400, {"detail": "query.limit: too small", "fields": unfit})
    assert run("dataset", "list").err.count("too small") == (1 if len(fields) == 1 else 3)


def test_a_defect_is_a_sentence_too(run: Run, served: Connector) -> None:
    served.routes["GET", "/datasets"] = ["not a dataset"]
    ran = run("dataset", "list")
    assert (ran.code, ran.out) == (1, "")
    assert "HANSE_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err


def test_nobody_there_is_exit_five(run: Run) -> None:
    assert main.__doc__
    ran = run("--url", "http://127.0.0.1:9", "dataset", "list")
    assert (ran.code, ran.out) == (5, "")
    assert "no connector answers at http://127.0.0.1:9" in ran.err


def test_without_a_token_it_says_how_to_give_one(run: Run) -> None:
    ran = run("dataset", "list", token="")
    assert ran.code == 3
    assert "hanse login" in ran.err


@pytest.mark.parametrize("args", [["dataset", "ad"], ["nothing"], ["query"], ["dataset", "list", "--wrong"]])
def test_wrong_usage_is_exit_two(run: Run, args: list[str]) -> None:
    ran = run(*args)
    assert ran.code == 2
    assert "Usage" in ran.err


def test_a_missing_file_is_a_sentence(run: Run) -> None:
    ran = run("offer", "add", "/nowhere/offer.yaml")
    assert ran.code == 1
    assert "/nowhere/offer.yaml: No such file" in ran.err


# ---- login


def test_login_tries_the_token_keeps_it_and_never_shows_it(run: Run, served: Connector) -> None:
    served.routes["GET", "/self"] = {"caller": "ada", "name": "north", "scopes": ["read"]}
    served.routes["GET", "/datasets"] = []
    assert run("login", served.url, "--token", "hush", token="").code == 0
    assert run("dataset", "list", token="").code == 0
    assert served.asked[-1].headers["authorization"] == "Bearer hush"
    shown = run("config", token="")
    assert "hush" not in shown.out + shown.err
    assert "client.json" in shown.out
    assert run("logout", token="").code == 0
    assert run("dataset", "list", token="").code == 3


def test_a_token_that_is_refused_is_not_kept(run: Run, served: Connector, tmp_path: Path) -> None:
    served.routes["GET", "/self"] = (401, {"code": "unauthenticated", "detail": "unknown"})
    assert run("login", served.url, "--token", "bad", token="").code == 3
    assert not (tmp_path / "config").exists()


# ---- what each command asks, and what it prints

AGES = {"null_share": 0.125, "distinct": 96, "min": "0", "max": "94", "bytes": 18395}
DATASET = {"name": "flights", "id": "urn:hanse:north:flights", "rows": 336776, "bytes": 5_000_000, "created_at": 0.0,
           "columns": [{"name": "age", "type": "BIGINT", "statistics": AGES}]}  # fmt: skip
OFFER = {"id": "urn:o:1", "dataset": "urn:hanse:north:flights", "decide": "auto", "created_at": 0.0,
         "withdrawn_at": None, "sentences": [{"text": "Members only."}], "problems": []}  # fmt: skip
AGREEMENT = {"id": "urn:a:1", "role": "consumer", "dataset": "urn:hanse:north:flights", "counterparty": "did:web:n",
             "state": "active", "signed_at": 0.0, "sentences": [{"text": "Members only."}]}  # fmt: skip
NEGOTIATION = {"id": "n1", "role": "provider", "counterparty": "did:web:f", "dataset": "d", "state": "REQUESTED",
               "waits_for": "us", "reason": "other terms", "updated_at": 0.0}  # fmt: skip
PUSHED = {"id": "t2", "state": "COMPLETED", "format": "HttpData-PUSH", "received": {"rows": 1234, "bytes": 5_000_000,
          "received_at": 0.0}}  # fmt: skip
TRANSFER = {"id": "t1", "role": "consumer", "agreement_id": "urn:a:1", "state": "STARTED", "purpose": "p"}
RECORD = {"idx": 4, "ts": 0.0, "kind": "ReadRefused",
          "body": {"actor": "did:web:f", "dataset": "urn:d:flights", "outcome": "refused", "code": "k",
                   "purpose": "https://w3id.org/dpv#Marketing", "detail": {"rows": 48_000}}}  # fmt: skip

COMMANDS: list[tuple[list[str], tuple[str, str], Any, Any, str]] = [
    (["dataset", "list"], ("GET", "/datasets"), [DATASET], None, "336,776"),
    (["dataset", "show", "flights"], ("GET", "/datasets/flights"), DATASET, None, "BIGINT"),
    (["dataset", "add", "flights", "/data/f.parquet", "--keyword", "air", "--option", "skip=3", "--title", "T"],
     ("POST", "/datasets"), DATASET,
     {"name": "flights", "path": "/data/f.parquet", "keywords": ["air"], "options": {"skip": 3}, "title": "T"},
     "5.0 MB"),
    (["dataset", "update", "flights", "/g"], ("POST", "/datasets/flights/versions"), DATASET, {"path": "/g"}, ""),
    (["dataset", "remove", "flights"], ("DELETE", "/datasets/flights"), None, None, ""),
    (["offer", "list"], ("GET", "/offers"), [OFFER], None, "open"),
    (["offer", "show", "urn:o:1"], ("GET", "/offers/urn%3Ao%3A1"), OFFER, None, "Members only."),
    (["offer", "withdraw", "urn:o:1"], ("DELETE", "/offers/urn%3Ao%3A1"), None, None, ""),
    (["offer", "templates"], ("GET", "/policies/templates"), {"r": "# For research\nx: 1"}, None, "For research"),
    (["offer", "templates", "research"], ("GET", "/policies/templates"), {"research": "x: 1\n"}, None, "x: 1"),
    (["negotiations"], ("GET", "/negotiations"), [NEGOTIATION], None, "REQUESTED"),
    (["agreements"], ("GET", "/agreements"), [AGREEMENT], None, "active"),
    (["agreements", "urn:a:2"], ("GET", "/agreements/urn%3Aa%3A2"), {**AGREEMENT, "role": "provider"}, None,
     "Members only."),
    (["transfers"], ("GET", "/transfers"), [TRANSFER], None, "STARTED"),
    (["transfer", "start", "urn:a:1", "--purpose", "dpv:X"], ("POST", "/transfers"), TRANSFER,
     {"agreement_id": "urn:a:1", "format": "HttpData-PULL", "purpose": "https://w3id.org/dpv#X"}, "STARTED"),
    (["transfer", "start", "urn:a:1", "--format", "HttpData-PUSH"], ("POST", "/transfers"), PUSHED,
     {"agreement_id": "urn:a:1", "format": "HttpData-PUSH", "purpose": ""}, "1,234"),
    (["transfer", "show", "t2"], ("GET", "/transfers/t2"), PUSHED, None, "5.0 MB"),
    (["transfer", "remove", "t2"], ("DELETE", "/transfers/t2/received"), None, None, ""),
    (["revoke", "urn:a:1", "--reason", "enough"], ("POST", "/agreements/urn%3Aa%3A1/revoke"), AGREEMENT,
     {"reason": "enough"}, ""),
    (["pending"], ("GET", "/negotiations"), [NEGOTIATION], None, "other terms"),
    (["approve", "n1"], ("POST", "/negotiations/n1/approve"), {**NEGOTIATION, "state": "AGREED"}, {}, "AGREED"),
    (["reject", "n1", "--reason", "no"], ("POST", "/negotiations/n1/terminate"), {**NEGOTIATION, "state": "TERMINATED"},
     {"reason": "no"}, "TERMINATED"),
    (["search", "breast", "cancer", "--column", "age"], ("GET", "/search"),
     {"results": [{"path": "north/patients", "title": "Patients", "offers": [{"classes": ["members-only"]}]}]}, None,
     "members-only"),
    (["search", "x", "--terms"], ("GET", "/search"),
     {"results": [{"path": "north/patients", "offers": [{"sentences": ["Only [members]."]}]}]}, None, "[members]"),
    (["audit", "list", "--outcome", "refused"], ("GET", "/audit/events"), {"records": [RECORD]}, None, "refused"),
    (["audit", "list"], ("GET", "/audit/events"), {"records": [RECORD]}, None, "48,000"),
    (["audit", "list"], ("GET", "/audit/events"), {"records": [RECORD]}, None, " Marketing "),
    (["offer", "templates"], ("GET", "/policies/templates"), {"x": "# One, two\n# and three. More.\noffer: x\n"}, None,
     "One, two and three.\n"),
    (["members"], ("GET", "/members"), [{"name": "north", "id": "did:web:n"}], None, "did:web:n"),
    (["token", "list"], ("GET", "/tokens"), [{"name": "ada", "scopes": ["read"], "expires_at": None}], None, "ada"),
    (["token", "list"], ("GET", "/tokens"), [{"name": "bo", "scopes": ["read"], "expires_at": 1.0}], None,
     "1970-01-01 00:00:01Z (has ended)"),
    (["token", "issue", "ada", "--scope", "read"], ("POST", "/tokens"), {"token": "t0k"},
     {"name": "ada", "scopes": ["read"]}, "t0k"),
    (["token", "make", "notebook", "--scope", "read"], ("POST", "/personal-tokens"), {"token": "t0k", "id": "pat-1"},
     {"label": "notebook", "scopes": ["read"], "days": 30.0}, "t0k"),
    (["token", "mine"], ("GET", "/personal-tokens"),
     [{"id": "pat-1", "label": "notebook", "scopes": ["read"], "last_used_at": None, "expires_at": 1.0}], None,
     "notebook"),
    (["token", "drop", "pat-1"], ("DELETE", "/personal-tokens/pat-1"), None, None, ""),
    (["token", "end", "ada"], ("DELETE", "/tokens/ada"), None, None, ""),
    (["query", "SELECT 1", "--explain"], ("POST", "/queries"),
     {"fragments": [{"owner": "north", "datasets": ["flights"], "sql": "SELECT 2"}], "residual": "SELECT 3",
      "text": "here\\n  SELECT 3"}, {"sql": "SELECT 1", "explain": True}, "SELECT 3"),
]  # fmt: skip


TEXT = {"left_out": [{"line": 5, "column": None, "problem": "too many columns"},
                     {"line": 8, "column": "age", "problem": "cast"}], "left_out_count": 1_002,
        "columns": [{"name": "age", "type": "BIGINT"}]}  # fmt: skip
MANY = {**TEXT, "files": [{"name": "a.csv"}, {"name": "b.csv"}],
        "left_out": [{"file": 2, "line": 5, "column": None, "problem": "too many columns"}]}  # fmt: skip
COPIED = {"left_out": [], "left_out_count": 0,
          "columns": [{"name": "age", "type": "BIGINT", "was": "oid", "note": "a number"}]}  # fmt: skip
NOTED = {**COPIED, "note": "a part of it", "columns": [{"name": "age", "type": "BIGINT", "note": "a number"}]}


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (TEXT, ["left out line 5 (too many columns), line 8 (age: cast), and 1,000 more", "column type", "age BIGINT"]),
        (MANY, ["left out line 5 of b.csv (too many columns), and 1,001 more"]),
        (COPIED, ["column type was note", "age BIGINT oid a number"]),
        (NOTED, ["note a part of it; its rows", "column type note", "age BIGINT a number"]),
    ],
)
def test_a_dataset_shows_what_its_conversion_made_of_it(
    run: Run, served: Connector, report: dict[str, Any], said: list[str]
) -> None:
    row = {**DATASET, "report": report, "note": "its rows come as one stream"}
    served.routes |= {("POST", "/datasets"): (201, row), ("POST", "/datasets/flights/versions"): (201, row),
                      ("GET", "/datasets/flights"): row}  # fmt: skip
    for args in (["add", "flights", "/f.csv"], ["update", "flights"], ["show", "flights"]):
        ran = run("dataset", *args)
        lines = [" ".join(line.split()) for line in ran.out.splitlines()]
        assert all(any(line.startswith(one) for line in lines) for one in said), ran.out
        assert ("12.5 % 96 0 94" in " ".join(ran.out.split())) == (args[0] == "show")


@pytest.mark.parametrize(
    ("args", "route", "answer", "body", "shown"), COMMANDS, ids=[" ".join(c[0][:2]) for c in COMMANDS]
)
def test_a_command_asks_for_one_thing_and_shows_it(
    run: Run, served: Connector, args: list[str], route: tuple[str, str], answer: Any, body: Any, shown: str
) -> None:
    from urllib.parse import unquote

    served.routes[route] = served.routes[route[0], unquote(route[1])] = answer
    ran = run(*args)
    assert ran.code == 0, ran.err
    assert shown in ran.out
    (asked,) = [one for one in served.asked if (one.method, one.path) == route]  # beside what names are looked up for
    assert body is None or asked.body == body


def test_revoking_says_what_else_that_party_holds_under_the_offer(run: Run, served: Connector) -> None:
    served.routes["POST", "/agreements/one/revoke"] = {**AGREEMENT, "others": ["urn:uuid:other"]}
    assert "1 more under the same offer" in (told := run("revoke", "one").err)
    assert "urn:uuid:other" in told


def test_a_name_that_is_no_utf_8_is_told_as_one(run: Run) -> None:
    ran = run("dataset", "add", "d", os.fsdecode(b"/data/p\xe4.csv"))
    assert ran.code == 1
    assert "UTF-8" in ran.err


def test_a_file_is_on_the_disk_when_it_has_its_name_and_a_full_disk_is_told_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hanse transfer receive --remove` removed the only other copy of what a power cut could take with it."""
    synced: list[str] = []
    noted = changed(os, fsync=lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(output, "os", noted)
    with output.write_whole(tmp_path / "rows.arrows") as file:
        file.write(b"rows")
    assert synced == [str(tmp_path / ".rows.arrows.part"), str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.arrows"]
    with pytest.raises(OSError, match="No space") as raised, output.write_whole(tmp_path / "rows.arrows"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / "rows.arrows")
    assert (tmp_path / "rows.arrows").read_bytes() == b"rows"


def test_a_file_that_is_written_anew_stays_what_it_was(tmp_path: Path) -> None:
    """What was its owner's alone was everybody's to read, and a link to another disk a file on this one."""
    (tmp_path / "big").mkdir()
    kept = tmp_path / "big" / "rows.csv"
    kept.touch(mode=0o600)
    (tmp_path / "rows.csv").symlink_to("big/rows.csv")
    with output.write_whole(tmp_path / "rows.csv") as file:
        file.write(b"rows")
    assert kept.read_bytes() == b"rows"
    assert (stat.S_IMODE(kept.stat().st_mode), [path.name for path in kept.parent.iterdir()]) == (0o600, ["rows.csv"])
    assert (tmp_path / "rows.csv").is_symlink()


def test_nothing_takes_the_place_of_a_pipe_or_a_device(tmp_path: Path, run: Run) -> None:
    """`--output /dev/null`, by who may, made a file of it for the whole machine; who read from a pipe waited on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with output.write_whole(pipe) as file:
            file.write(b"rows")
        assert os.read(reader, 10) == b"rows"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    for other in (str(pipe), "/dev/stdout"):
        assert "the name of a file" in run("audit", "export", "-o", other, "--force").err


def test_standard_output_by_its_name_is_added_to(tmp_path: Path) -> None:
    """`--output /dev/stdout >> all.csv` put what it wrote in the place of all that was there."""
    kept = tmp_path / "all.csv"
    kept.write_text("before\n")
    program = """
from pathlib import Path
from hanse.cli import output as out
with out.write_whole(Path("/dev/stdout")) as file:
    file.write(b"rows")
"""
    with kept.open("a") as opened:
        subprocess.run([sys.executable, "-c", program], stdout=opened, check=True, timeout=60)
    assert kept.read_text() == "before\nrows"


def test_a_disk_without_sync_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(output, "os", changed(os, fsync=none))
    with output.write_whole(tmp_path / "rows") as file:
        file.write(b"rows")
    assert (tmp_path / "rows").read_bytes() == b"rows"


@pytest.mark.parametrize("writes", ["print(1, flush=True)", "with out.open_stdout() as sink: sink.write(bytes(10**6))"])
def test_a_full_output_is_told_as_that(writes: str) -> None:
    program = f"""
from hanse import cli
from hanse.cli import output as out
def app(_):
    {writes}
cli.app = app
cli.main([])
"""
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert "standard output: No space left" in ran.stderr


@pytest.mark.parametrize(
    ("signs", "told"), [("\udce4", "words and names in UTF-8"), ("\u2013", "the output is in latin-1")]
)
def test_an_output_in_another_encoding_is_no_fault_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signs: str, told: str
) -> None:
    def fails(_: Any) -> None:
        signs.encode("latin-1")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main([])
    assert told in " ".join(capsys.readouterr().err.split())


def test_revoking_does_not_say_that_the_other_side_knows(run: Run, served: Connector) -> None:
    """It may not be there, and is told later."""
    served.routes["POST", "/agreements/one/revoke"] = AGREEMENT
    assert "in the log here; the other side hears of it" in run("revoke", "one").err.replace("\n", " ")


AS_JSON = [case for case in COMMANDS if case[0][0] in ("dataset", "offer", "negotiations", "agreements", "transfers",
           "pending", "approve", "search", "query") and case[2] is not None
           and case[0][:2] != ["offer", "templates"]]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "route", "answer"), [c[:3] for c in AS_JSON], ids=[" ".join(c[0][:2]) for c in AS_JSON]
)
def test_json_for_scripts_is_what_the_connector_said(
    run: Run, served: Connector, args: list[str], route: tuple[str, str], answer: Any
) -> None:
    served.routes[route] = answer
    ran = run(*args, "--json")
    assert ran.code == 0, ran.err
    assert ran.json == (answer.get("results", answer) if isinstance(answer, dict) else answer)


def test_withdrawn_offers_are_listed_on_request(run: Run, served: Connector) -> None:
    served.routes["GET", "/offers"] = [OFFER, {**OFFER, "id": "urn:o:2", "withdrawn_at": 86_400.0}]
    assert "withdrawn 1970-01-02" in run("offer", "list", "--all").out
    run("offer", "list", "--dataset", "planes")
    assert [one.query["withdrawn"] for one in served.asked] == ["true", "false"]
    assert served.asked[-1].query["dataset"] == "planes"


LISTS = [
    (["offer", "list"], "/offers", {}, "offset"),
    (["agreements"], "/agreements", {"role": "consumer"}, "offset"),
    (["negotiations"], "/negotiations", {"role": "consumer"}, "offset"),
    (["transfers"], "/transfers", {"role": "consumer"}, "offset"),
    (["dataset", "list"], "/datasets", {}, "after"),
]


@pytest.mark.parametrize(("args", "path", "more", "goes_on"), LISTS, ids=[" ".join(case[0]) for case in LISTS])
def test_a_list_is_shown_to_its_end(
    run: Run, served: Connector, args: list[str], path: str, more: dict[str, str], goes_on: str
) -> None:
    rows = [{"id": f"urn:one:{number:04}", **more} for number in range(234)]

    def page(asked: Asked) -> list[dict[str, str]]:
        start = int(asked.query.get(goes_on, "-1").rpartition(":")[2])
        start += goes_on == "after" or start < 0
        return rows[max(start - (goes_on == "offset" and start > 0), 0) :][: int(asked.query["limit"])]  # one is new

    served.routes["GET", path] = page
    assert run(*args, "--json").json == rows


@pytest.mark.parametrize(("count", "requests"), [(99, 1), (100, 2), (150, 1)])
@pytest.mark.parametrize("way", [LISTS[0], LISTS[-1]], ids=["offset", "after"])
def test_a_connector_that_knows_no_pages_is_asked_no_more_than_needed(
    run: Run, served: Connector, way: tuple[list[str], str, dict[str, str], str], count: int, requests: int
) -> None:
    rows = [{"id": f"urn:one:{number:04}"} for number in range(count)]
    served.routes["GET", way[1]] = lambda _: rows
    ran = run(*way[0], "--json")
    assert (ran.json, ran.err, len(served.asked)) == (rows, "", requests)


def test_a_list_that_does_not_end_is_cut_and_says_so(run: Run, served: Connector) -> None:
    served.routes["GET", "/transfers"] = lambda asked: [
        {"id": f"{int(asked.query.get('offset', 0)) + number}"} for number in range(int(asked.query["limit"]))
    ]
    ran = run("transfers", "--json")
    assert (len(ran.json), "the first 10,000" in ran.err) == (10_000, True)


@pytest.mark.parametrize(
    ("text", "body"), [("dataset: f\n", {"form": "dataset: f\n"}), ('{"a": 1}', {"policy": {"a": 1}})]
)
def test_an_offer_is_written_in_the_short_form_or_as_odrl(
    run: Run, served: Connector, tmp_path: Path, text: str, body: dict[str, Any]
) -> None:
    served.routes["POST", "/offers"] = (201, OFFER)
    served.routes["POST", "/policies/withheld"] = []
    (tmp_path / "offer").write_text(text)
    ran = run("offer", "add", str(tmp_path / "offer"), "--decide", "manual")
    assert ran.code == 0, ran.err
    assert served.asked[-1].body == {**body, "decide": "manual"}
    assert "Members only." in ran.out
    assert "the catalogue's search follows in seconds" in " ".join(ran.err.split())


def test_a_slip_in_an_offer_is_taken_on_a_wish(run: Run, served: Connector, tmp_path: Path) -> None:
    served.routes["POST", "/offers"], served.routes["POST", "/policies/withheld"] = (201, OFFER), []
    (tmp_path / "offer").write_text("dataset: f\n")
    assert run("offer", "add", str(tmp_path / "offer"), "--accept").code == 0
    assert served.asked[-1].body == {"form": "dataset: f\n", "accept": True}


def test_who_withdraws_an_offer_hears_when_others_see_it(run: Run, served: Connector) -> None:
    served.routes["DELETE", "/offers/urn%3Ao%3A1"] = (204, None)
    assert "the catalogue's search follows in seconds" in " ".join(run("offer", "withdraw", "urn:o:1").err.split())


@pytest.mark.parametrize(("text", "said"), [("{", "starts like JSON"), ("\xff", ""), ("\n", "is empty")])
def test_a_policy_file_that_is_none_is_a_clear_error(run: Run, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "offer").write_bytes(text.encode("latin-1"))
    ran = run("offer", "add", str(tmp_path / "offer"))
    assert ran.code == 1
    assert said in ran.err


def test_what_rules_have_in_common_is_said_once(run: Run, served: Connector, tmp_path: Path) -> None:
    paths = {"": "May {}.", "/constraint/0": "Members only.", "/duty/0": "Names are hashed."}
    told = [
        {"path": f"/permission/{number}{path}", "text": text.format(action)}
        for number, action in enumerate(("query", "stream"))
        for path, text in paths.items()
    ]
    told.append({"path": "/prohibition/0", "text": "Must not sell."})
    served.routes["POST", "/policies/lint"] = {"problems": [], "sentences": told}
    (tmp_path / "p.yaml").write_text("x: 1")
    lines = run("policy", "lint", str(tmp_path / "p.yaml")).out.splitlines()
    assert lines == [
        "  - May query.", "  - May stream.", "      Members only.", "      Names are hashed.", "  - Must not sell.",
    ]  # fmt: skip


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warning", 0)])
def test_lint_fails_on_errors_only(run: Run, served: Connector, tmp_path: Path, level: str, code: int) -> None:
    problem = {"level": level, "path": "/x", "message": "m", "code": "c"}
    served.routes["POST", "/policies/lint"] = {"problems": [problem], "sentences": [{"text": "Members only."}]}
    (tmp_path / "p.yaml").write_text("x: 1")
    ran = run("policy", "lint", str(tmp_path / "p.yaml"), "--dataset", "flights")
    assert ran.code == code
    assert "/x: m" in ran.out
    assert served.asked[-1].body == {"form": "x: 1", "dataset": "flights"}


@pytest.mark.parametrize(("permitted", "code"), [(True, 0), (False, 3)])
def test_a_policy_is_tried_as_somebody(run: Run, served: Connector, permitted: bool, code: int) -> None:
    served.routes["POST", "/policies/test"] = {"decision": {"permitted": permitted}, "explanation": ["Because [so]."]}
    ran = run("policy", "test", "--as", "did:web:f", "--offer", "urn:o:1", "--purpose", "dpv:X")
    assert (ran.code, ran.out.strip()) == (code, "Because [so].")
    assert served.asked[-1].body == {
        "offer": "urn:o:1",
        "participant": "did:web:f",
        "action": "ds:query",
        "purpose": "dpv:X",
    }


def test_a_new_policy_is_written_once(run: Run, served: Connector, tmp_path: Path) -> None:
    served.routes["GET", "/policies/templates"] = {"research": "purpose: x\n"}
    file = tmp_path / "offer.yaml"
    assert run("policy", "new", "research", "-o", str(file)).code == 0
    assert file.read_text() == "purpose: x\n"
    assert run("policy", "new", "research", "-o", str(file)).code == 1
    assert run("policy", "new", "none", "-o", str(tmp_path / "x")).code == 4


def test_negotiating_shows_what_was_agreed(run: Run, served: Connector) -> None:
    identifier = "urn:hanse:north:flights"
    served.routes |= {
        ("GET", "/catalog"): {"participantId": NORTH, "dataset": [{"@id": identifier, "hasPolicy": [{"@id": "o"}]}]},
        ("GET", "/agreements"): [{"id": "a1", "dataset": identifier, "counterparty": NORTH, "state": "active"}],
        ("GET", "/transfers"): [{"id": "t1", "agreement_id": "a1", "state": "STARTED", "purpose": ""}],
        ("GET", "/agreements/a1"): {"sentences": [{"text": "Members only."}]},
    }
    ran = run("negotiate", "north/flights")
    assert ran.code == 0, ran.err
    assert '"north"."flights"' in ran.out
    assert "Members only." in ran.out


def test_an_agreement_shows_the_columns_that_we_may_read_under_it(run: Run, served: Connector) -> None:
    columns = [{"name": "age", "type": "BIGINT", "mask": None}, {"name": "who", "type": "VARCHAR", "mask": "hash"}]
    contracts = [
        {"actions": [f"https://w3id.org/{action}"], "purposes": [f"https://w3id.org/dpv#{purpose}"], "columns": of}
        for action, purpose, of in (("query", "X", columns), ("stream", "X", columns), ("query", "Y", columns[:1]))
    ]
    allows = {"contracts": contracts}
    served.routes["GET", "/agreements/urn%3Aa%3A1"] = AGREEMENT
    served.routes["GET", "/agreements/urn%3Aa%3A1/contract"] = allows
    lines = [" ".join(line.split()) for line in run("agreements", "urn:a:1").out.splitlines()]
    assert lines[-7:] == ["query, stream for dpv:X", "column type masked", "age BIGINT", "who VARCHAR hash",
                          "query for dpv:Y", "column type masked", "age BIGINT"]  # fmt: skip
    assert run("agreements", "urn:a:1", "--json").json == {**AGREEMENT, "allows": allows}
    served.routes["GET", "/agreements/urn%3Aa%3A1/contract"] = (404, {"code": "no_transfer", "detail": "none started"})
    ran = run("agreements", "urn:a:1")
    assert (ran.code, "Members only." in ran.out) == (0, True)
    assert "its columns are not known now: none started" in ran.err


@pytest.mark.parametrize("other", [{"role": "provider"}, {"state": "ended"}])
def test_columns_are_asked_of_those_who_let_us_read(run: Run, served: Connector, other: dict[str, str]) -> None:
    served.routes["GET", "/agreements/urn%3Aa%3A1"] = {**AGREEMENT, **other}
    assert run("agreements", "urn:a:1").code == 0
    assert len(served.asked) == 1


# ---- credentials


def test_credentials_are_requested_and_listed_with_their_status(run: Run, served: Connector) -> None:
    asked = {"id": "urn:r:1", "type": "MembershipCredential", "status": "RECEIVED", "issuer": "did:web:o.example"}
    served.routes["POST", "/credentials/requests"] = (201, {**asked, "reason": ""})
    ran = run("credential", "request", "--issuer", "did:web:o.example", "--type", "MembershipCredential")
    assert (ran.code, "hanse credential show urn:r:1" in ran.err) == (0, True), ran.err
    assert served.asked[-1].body == {"issuer": "did:web:o.example", "type": "MembershipCredential"}
    served.routes["GET", "/credentials/requests/urn%3Ar%3A1"] = {**asked, "status": "ISSUED", "reason": ""}
    assert "ISSUED" in run("credential", "show", "urn:r:1").out
    held = {
        "types": ["VerifiableCredential", "MembershipCredential"],
        "status": "revoked",
        "issuer": "i",
        "expires": None,
    }
    served.routes["GET", "/credentials"] = [held]
    assert "revoked" in (out := run("credential", "list").out)
    assert ("MembershipCredential" in out, "VerifiableCredential" in out) == (True, False)


# ---- pushes


def test_what_was_pushed_is_fetched_into_a_file_that_is_there_when_it_is_whole(
    run: Run, served: Connector, tmp_path: Path
) -> None:
    file = tmp_path / "rows.arrows"
    served.routes["GET", "/transfers/t2/received"] = chunked(ANSWER, last=False)
    assert run("transfer", "receive", "t2", "-o", str(file)).code == 5
    assert list(tmp_path.glob("*rows*")) == []
    served.routes["GET", "/transfers/t2/received"] = (200, b"".join(ANSWER))
    served.routes["DELETE", "/transfers/t2/received"] = None
    served.routes["GET", "/transfers/t2"] = {**PUSHED, "received": {"whole": True}}
    ran = run("transfer", "receive", "t2", "-o", str(file), "--remove")
    assert ran.code == 0, ran.err
    assert file.read_bytes() == b"".join(ANSWER)
    assert served.calls()[-1] == "DELETE /transfers/t2/received"
    assert run("transfer", "receive", "t2", "-o", str(file)).code == 1  # there already
    assert run("transfer", "receive", "none", "-o", str(tmp_path / "x")).code == 4


def test_what_was_pushed_and_comes_damaged_is_no_file(run: Run, served: Connector, tmp_path: Path) -> None:
    damaged = b"".join(ANSWER).replace(b"n3", b"n4")
    served.routes["GET", "/transfers/t2/received"] = (200, damaged)
    served.routes["GET", "/transfers/t2"] = {**PUSHED, "received": {"whole": True}}
    ran = run("transfer", "receive", "t2", "-o", str(tmp_path / "rows.arrows"), "--remove")
    assert (ran.code, "digest" in ran.err, list(tmp_path.glob("*rows*"))) == (1, True, [])
    assert ("DELETE", "/transfers/t2/received") not in [(one.method, one.path) for one in served.asked]
    served.routes["GET", "/transfers/t2"] = {**PUSHED, "received": {"whole": False}}  # it has no end record
    served.routes["GET", "/transfers/t2/received"] = (200, b"".join(ipc([batch(1)], None)))
    assert run("transfer", "receive", "t2", "-o", str(tmp_path / "rows.arrows")).code == 0


def test_a_push_that_does_not_come_is_told_with_its_reason(run: Run, served: Connector) -> None:
    served.routes["POST", "/transfers"] = {"id": "t3", "state": "TERMINATED", "code": "c", "reason": "not permitted"}
    ran = run("transfer", "start", "urn:a:1", "--format", "HttpData-PUSH")
    assert (ran.code, "not permitted" in ran.err) == (3, True)
    waiting = {"id": "t3", "state": "STARTED", "reason": "push: cut", "received": None}
    served.routes["POST", "/transfers"] = served.routes["GET", "/transfers/t3"] = waiting
    ran = run("transfer", "start", "urn:a:1", "--format", "HttpData-PUSH", "--wait", "0")
    assert (ran.code, "push: cut" in ran.out) == (0, True)
    assert "not COMPLETED yet" in ran.err


# ---- rows


@pytest.mark.parametrize(
    ("format_", "read"),
    [
        ("csv", lambda path: csv.read_csv(path)),
        ("parquet", lambda path: parquet.read_table(path)),
        ("arrow", lambda path: pa.ipc.open_file(path.read_bytes()).read_all()),
        ("feather", lambda path: feather.read_table(path)),
        ("arrows", lambda path: pa.ipc.open_stream(path.read_bytes()).read_all()),
        ("json", lambda path: pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()])),
    ],
)
def test_an_answer_is_written_in_every_format(
    run: Run, served: Connector, tmp_path: Path, format_: str, read: Callable[[Path], pa.Table]
) -> None:
    served.routes["POST", "/queries"] = chunked(ANSWER)
    for extra in (["-o", str(tmp_path / f"a.{format_}")], ["-f", format_, "-o", str(tmp_path / "b")]):
        ran = run("query", "SELECT 1", *extra)
        assert ran.code == 0, ran.err
        assert read(Path(extra[-1]))["age"].to_pylist() == [1, 2, 3]
        assert "north/flights" in ran.err
        assert "by agreement: row filter" in ran.err
        assert ran.out == ""


def test_guarded_csv_has_no_text_that_a_spreadsheet_takes_for_a_formula(run: Run, served: Connector) -> None:
    rows = {"=a": ["=1+1", "-x", "b", None], "n": [-1, 2, 3, 4], "d": [Decimal("-1.5")] * 4, "l": [[1]] * 4}
    answer = pa.RecordBatch.from_pydict(rows)
    served.routes["POST", "/queries"] = chunked(ipc([answer], complete(4), schema=answer.schema))
    plain = run("query", "SELECT 1", "-f", "csv").out.splitlines()
    guarded = run("query", "SELECT 1", "-f", "csv", "--guard").out.splitlines()
    assert plain[:2] == ['"=a","n","d","l"', '"=1+1",-1,"-1.5","[1]"']
    assert guarded == ['"\'=a","n","d","l"', '"\'=1+1",-1,"-1.5","[1]"', '"\'-x",2,"-1.5","[1]"', *plain[3:]]
    assert "expected --guard with csv, got json" in run("query", "SELECT 1", "-f", "json", "--guard").err


def test_a_yes_that_is_on_its_way_is_said_to_be(run: Run, served: Connector) -> None:
    for pending, expected in (("ContractAgreementMessage", True), ("", False)):
        served.routes["POST", "/negotiations/n1/approve"] = {**NEGOTIATION, "pending": pending}
        assert ("the approval is being sent" in run("approve", "n1").err) is expected


@pytest.mark.parametrize("how", [[], ["--explain"], ["--analyze"]], ids=str)
def test_a_question_has_the_limits_that_are_given(run: Run, served: Connector, how: list[str]) -> None:
    served.routes["POST", "/queries"] = {"text": "here"} if how else chunked(ANSWER)
    ran = run("query", "SELECT 1", "--seconds", "5", "--rows", "9", "--bytes", "1000", "--epsilon", "0.2", *how)
    assert ran.code == 0, ran.err
    body = served.asked[-1].body
    assert (body["limits"], body["epsilon"]) == ({"seconds": 5, "rows": 9, "bytes": 1000}, 0.2)
    run("query", "SELECT 1", "--epsilon", "0", *how)
    assert served.asked[-1].body["epsilon"] == 0  # the connector says what it takes
    assert "limits" not in served.asked[-1].body


def test_an_answer_goes_to_the_screen_as_a_table_and_to_a_pipe_as_asked(run: Run, served: Connector) -> None:
    served.routes["POST", "/queries"] = chunked(ANSWER)
    assert "n3" in run("query", "SELECT 1").out
    assert run("query", "SELECT 1", "-f", "csv").out.splitlines()[0] == '"age","name"'
    assert json.loads(run("query", "SELECT 1", "--json").out.splitlines()[0]) == {"age": 1, "name": "n1"}


def test_a_whole_number_of_an_answer_is_shown_as_it_is() -> None:
    assert [output.format_cell(value) for value in (2024, True, 1091.7234)] == ["2024", "yes", "1091.72"]


def test_first_rows_of_a_dataset_are_shown_as_those_of_an_answer(run: Run, served: Connector) -> None:
    served.routes["GET", "/datasets/t/preview"] = {
        "explanation": [], "rules": [], "permitted": True, "columns": [{"name": "year", "type": "INT"}], "hidden": [],
        "columns_shown": ["year"], "rows": [[2024]],
    }  # fmt: skip
    assert run("dataset", "preview", "t", "--as", "did:web:a").out.splitlines()[-1].strip() == "2024"


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_table_in_a_narrow_terminal_has_all_that_is_in_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(output, "console", lambda: Console(width=width, highlight=False))
    row = {"id": "urn:uuid:b8d4661e-d059-423a-b0f9-7ba764c9bb5a", "state": "TERMINATED", "why": "no " * 200}
    output.print_rows([row], {name: name for name in row}, as_json=False)
    shown = capsys.readouterr().out
    assert row["id"] in shown
    assert "TERMINATED" in shown
    assert shown.count("no") == 200
    assert max(map(len, shown.splitlines())) <= 240


def test_no_row_of_a_table_is_padded_to_the_longest(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_rows(
        [{"a": "1", "why": "no"}, {"a": "2", "why": "no " * 200}], {"a": "a", "why": "why"}, as_json=False
    )
    head, short, _ = capsys.readouterr().out.splitlines()
    assert (head, short) == ("a  why", "1  no")


@pytest.mark.timeout(60)  # looked at from each space of a run, it takes minutes
def test_many_rows_below_one_long_text_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["x" * 20_000, *["y"] * 200]
    rows = [{"text": text, "id": "1"} for text in texts]
    output.print_rows(rows, {"text": "text", "id": "id"}, as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == [f"{text:20000}  1" for text in texts]
    output.print_rows(rows, {"id": "id", "text": "text"}, as_json=False)
    assert capsys.readouterr().out.splitlines() == ["id  text", *(f"1   {text}" for text in texts)]


def test_a_transfer_is_shown_with_its_dataset_and_whom_it_is_with(run: Run, served: Connector) -> None:
    served.routes["GET", "/transfers"] = [{**TRANSFER, "counterparty": "did:web:n"}]
    served.routes["GET", "/agreements"] = [AGREEMENT]
    shown = run("transfers").out
    assert "urn:hanse:north:flights" in shown
    assert "did:web:n" in shown


@pytest.mark.parametrize("members", [[{"id": "did:web:f", "name": "forge"}], (503, {"detail": "not now"})])
def test_who_decides_sees_who_asks_for_what_on_which_terms(run: Run, served: Connector, members: Any) -> None:
    asked = {**NEGOTIATION, "offer_id": "urn:o:1", "sentences": ["Members only."]}
    served.routes["GET", "/negotiations"], served.routes["GET", "/members"] = [asked], members
    shown = run("pending").out
    assert all(text in shown for text in ("did:web:f", "urn:o:1", "Members only."))
    assert ("forge" in shown) is isinstance(members, list)


def test_what_others_wrote_does_not_command_the_terminal(run: Run, served: Connector) -> None:
    written = "gone \x1b]0;owned\x07\x1b[2J\x9b2J\u202ehidden \ud800 [bold]ö\n\tend"
    told = r"gone \u001b]0;owned\u0007\u001b[2J\u009b2J\u202ehidden \ud800 [bold]ö"
    served.routes["POST", "/queries"] = (403, {"code": "refused", "rule": written, "detail": written})
    ran = run("query", "SELECT 1")
    assert ran.err.count(told) == 2
    named = SCHEMA.set(1, pa.field("name \x1b[2J", SCHEMA.field(1).type))
    rows = pa.record_batch([[1], ["\x1b[2J\u202e"]], named)
    served.routes["POST", "/queries"] = chunked(ipc([rows], complete(1, owners=OWNERS), schema=named))
    assert not {"\x1b", "\u202e"} & set(run("query", "SELECT 1").out)


def test_a_dataset_without_figures_says_which_scope_shows_them(run: Run, served: Connector) -> None:
    column = {"name": "age", "type": "BIGINT", "statistics": None}
    served.routes["GET", "/datasets/flights"] = DATASET | {"columns": [column], "files": []}
    shown = run("dataset", "show", "flights")
    assert "BIGINT" in shown.out
    assert "least" not in shown.out
    assert "figures of columns and files need a token with the scope owner" in shown.err
    assert json.loads(run("dataset", "show", "flights", "--json").out)["columns"] == [column]


@pytest.mark.parametrize("command", [("policy", "simulate", "--offer", "urn:o", "--sql", "SELECT 1"), ("offer", "add")])
def test_a_token_without_the_scope_is_told_what_to_do(
    run: Run, served: Connector, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "offer.yaml").write_text("offer: o\n")
    detail = (
        "expected a token with the scope 'owner', got one with read; ask an administrator for another (`hanse ...`)"
    )
    refused = (403, {"code": "scope_missing", "detail": detail})
    served.routes["POST", "/policies/simulate"] = served.routes["POST", "/policies/withheld"] = refused
    ran = run(*command, *([str(tmp_path / "offer.yaml")] if command[0] == "offer" else []))
    assert ran.code != 0
    assert "ask an administrator for another" in " ".join(ran.err.split())


def test_text_with_the_line_ends_of_a_browser_is_shown_in_lines(run: Run, served: Connector) -> None:
    served.routes["GET", "/datasets/flights"] = DATASET | {"description": "One\r\nand two\rhidden."}
    shown = run("dataset", "show", "flights").out
    assert [line.strip() for line in shown.partition("One")[2].splitlines()[:2]] == ["", r"and two\u000dhidden."]


def test_an_answer_of_several_owners_says_which_rules_shaped_whose(run: Run, served: Connector) -> None:
    owners = [{**OWNERS[0], "owner": owner, "policy": [*more, "age in bins of 10"]} for owner, *more in OF_OWNERS]
    served.routes["POST", "/queries"] = chunked(ipc([batch(1)], complete(1, owners=owners)))
    said = run("query", "SELECT 1").err
    assert "by agreement (north, south): age in bins of 10" in said
    assert "by agreement (south): groups of at least 5" in said


def test_a_partial_answer_says_whom_it_is_without(run: Run, served: Connector) -> None:
    missing = [{"owner": "south", "reason": '"south" (f0.south: patients) while it was asked: it is down'}]
    served.routes["POST", "/queries"] = chunked(ipc([batch(1)], complete(1, owners=OWNERS, missing=missing)))
    ran = run("query", "SELECT 1", "--partial")
    assert served.asked[-1].body["partial"] == "allow"
    assert 'partial: without "south" (f0.south: patients) while it was asked: it is down' in " ".join(ran.err.split())


OLDER: list[tuple[dict[str, Any], str]] = [
    ({"withheld": True}, "some"), ({"withheld": False}, "nothing"), ({}, "nothing"),
    ({"withheld": False, "owners": [{"policy": ["t: groups of at least 5"]}]}, "possibly"),
    ({"withheld": "nothing", "owners": [{"withheld": "possibly"}]}, "possibly"), ({"withheld": "so-so"}, "possibly"),
]  # fmt: skip


@pytest.mark.parametrize(("end", "meant"), OLDER, ids=str)
def test_an_answer_of_another_version_says_what_is_left_out(
    run: Run, served: Connector, end: dict[str, Any], meant: str
) -> None:
    owners = [OWNERS[0] | one for one in end.get("owners", [{}])]
    served.routes["POST", "/queries"] = chunked(ipc([batch(1)], complete(1, **{**end, "owners": owners})))
    said = " ".join(run("query", "SELECT 1").err.split())
    assert ("may be too low" in said) is (meant != "nothing")


TOLD = [
    ({"state": "planning"}, "planning"),
    ({"state": "asking", "waiting": [{"owner": "north"}, {"owner": "west"}, {"owner": "north"}]},
     "asking: north ... · west ..."),
    ({"state": "asking", "owners": [{"owner": "north", "rows": 1200, "bytes": 5000}], "waiting": [{"owner": "west"}]},
     "asking: north 1,200 rows, 5.0 kB · west ..."),
    ({"state": "asking", "owners": [{"owner": "north", "rows": 4, "data_rows": 0, "result_rows": 4, "bytes": 5000}]},
     "asking: north 4 result rows, 5.0 kB"),
    ({"state": "asking", "missing": [{"owner": "south"}], "waiting": [{"owner": "west"}]},
     "asking: without south · west ..."),
]  # fmt: skip


@pytest.mark.parametrize(("progress", "line"), TOLD, ids=[line for _, line in TOLD])
def test_a_running_question_says_what_each_owner_does(progress: dict[str, Any], line: str) -> None:
    assert describe_progress(progress) == line


def test_a_file_is_there_only_when_it_is_whole(run: Run, served: Connector, tmp_path: Path) -> None:
    served.routes["POST", "/queries"] = chunked(ipc([batch(1, 2)], {"status": "revoked", "reason": "no more"}))
    ran = run("query", "SELECT 1", "-o", str(tmp_path / "a.parquet"))
    assert ran.code == 3
    assert "no more" in ran.err
    assert list(tmp_path.glob("*a.parquet*")) == []


NOT_WRITTEN = [
    (["-o", "a.xls"], "among csv, json, parquet, arrow, arrows, got 'xls'"),
    (["-f", "xml"], "among table, csv, json, parquet, arrow, arrows, got 'xml'"),
    (["-f", "table", "-o", "a"], "got 'table'"),
    (["-o", "nowhere/a.csv"], "expected --output in an existing directory"),
    (["-f", "csv", "-o", "."], "expected --output in an existing directory"),
]


@pytest.mark.parametrize(("options", "said"), [*NOT_WRITTEN, (["--explain", "-o", "a.csv"], "no --output")], ids=str)
def test_what_cannot_be_written_is_not_asked_for(
    run: Run, served: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    served.routes["POST", "/queries"] = chunked(ANSWER)
    ran = run("query", "SELECT 1", *options)
    assert (ran.code, ran.out, served.asked) == (1, "", [])
    assert said in ran.err


@pytest.mark.parametrize(("options", "said"), NOT_WRITTEN, ids=str)
def test_nothing_is_agreed_on_for_a_stream_that_cannot_be_written(
    run: Run, served: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("stream", "north/flights", *options)
    assert (ran.code, served.asked) == (1, [])
    assert said in ran.err


def test_a_long_answer_shows_its_beginning_and_says_so(run: Run, served: Connector) -> None:
    served.routes["POST", "/queries"] = chunked(ipc([batch(*range(150)), batch(*range(150, 500))], complete(500)))
    ran = run("query", "SELECT 1")
    assert "n199" in ran.out
    assert "n200" not in ran.out
    assert "300 rows more" in ran.err


def test_columns_of_one_name_are_kept_apart_or_refused(run: Run, served: Connector) -> None:
    schema = pa.schema([("a", pa.int64()), ("a", pa.int64()), ("b", pa.int64())])
    batch = pa.RecordBatch.from_arrays([pa.array([n]) for n in (1, 2, 3)], schema=schema)
    served.routes["POST", "/queries"] = chunked(ipc([batch], complete(1), schema=schema))
    assert [line.split() for line in run("query", "SELECT 1").out.splitlines()] == [["a", "a", "b"], ["1", "2", "3"]]
    assert run("query", "SELECT 1", "-f", "csv").out.splitlines()[1] == "1,2,3"
    ran = run("query", "SELECT 1", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert "different names for json, got several called a; name each with AS, or ask for csv" in ran.err


SPANS = pa.schema([("age", pa.int64()), ("lasted", pa.list_(pa.month_day_nano_interval()))])
SPAN = ipc([pa.record_batch([[1], [[(0, 1, 0)]]], schema=SPANS)], complete(1), schema=SPANS)
UNFIT = "expected columns that Parquet can hold, got intervals in lasted; leave them out, or ask for csv, json"


@pytest.mark.parametrize("options", [["-o", "a.parquet"], ["-f", "parquet"]], ids=str)
def test_an_answer_that_parquet_has_no_form_for_is_refused_in_a_sentence(
    run: Run, served: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    served.routes["POST", "/queries"] = chunked(SPAN)
    ran = run("query", "SELECT 1", *options)
    assert (ran.code, ran.out, list(tmp_path.glob("*.parquet*"))) == (1, "", [])
    assert UNFIT in ran.err
    assert run("query", "SELECT 1", "-f", "csv").out.splitlines()[1] == '1,"[""P0M1DT0S""]"'


def test_rows_that_parquet_has_no_form_for_are_not_read(run: Run, served: Connector) -> None:
    plan = {"snapshot": "s", "plan": "d", "blocks": [], "rows": 0, "exact": True, "shown": "m"}
    plan["schema"] = base64.b64encode(SPANS.serialize().to_pybytes()).decode()
    served.routes |= agreed(served) | {("POST", "/data/v1/streams"): plan, ("GET", "/data/v1"): chunked(SPAN)}
    ran = run("stream", "north/flights", "-c", "lasted", "--where", "age > 0", "-f", "parquet")
    assert (ran.code, ran.out) == (1, "")
    assert UNFIT in ran.err
    assert "GET /data/v1" not in served.calls()
    asked = served.asked[-1].body
    assert (asked["columns"], asked["where"]) == (["lasted"], "age > 0")
    served.routes["POST", "/data/v1/streams"] = (400, {"code": "not_divisible", "detail": "no blocks"})
    assert UNFIT in run("stream", "north/flights", "-f", "parquet").err
    assert "GET /data/v1" in served.calls()


@pytest.mark.parametrize("end", [{"policy": 5}, {"owners": ["north"]}, {"missing": {}}], ids=str)
@pytest.mark.parametrize("command", [("stream", "north/flights"), ("query", "SELECT 1")], ids=lambda one: one[0])
def test_a_file_of_an_answer_whose_end_is_none_is_not_left(
    run: Run, served: Connector, tmp_path: Path, command: tuple[str, str], end: dict[str, Any]
) -> None:
    answer = chunked(ipc([batch(1)], complete(1, **end)))
    served.routes |= agreed(served) | {("GET", "/data/v1"): answer, ("POST", "/queries"): answer}
    ran = run(*command, "-o", str(tmp_path / "rows.csv"))
    assert (ran.code, ran.out, list(tmp_path.glob("*rows*"))) == (1, "", [])
    assert f"expected a list of {next(iter(end))} in the stream's end record" in ran.err


@pytest.mark.parametrize("format_", ["csv", "json", "arrow", "arrows", "parquet"])
def test_who_has_read_enough_ends_a_command_without_a_word(served: Connector, format_: str, tmp_path: Path) -> None:
    many = batch(*range(100_000))
    served.routes |= agreed(served) | {("GET", "/data/v1"): chunked(ipc([many], complete(100_000)))}
    command = [sys.executable, "-c", "from hanse.cli import main; main()", "--url", served.url, "--token", "t"]
    command += ["stream", "north/flights", "-f", format_]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        assert ran.stdout.read(10)
        ran.stdout.close()
        assert ran.stderr.read() == b""
    assert ran.returncode == 0


@pytest.mark.parametrize(
    ("args", "closed", "code"),
    [(["negotiations"], ">&-", 0), (["transfers", "--json"], ">&-", 0), (["duty", "list"], "2>&-", 4)],
)
def test_a_command_without_a_place_for_its_words_ends_as_with_one(
    served: Connector, args: list[str], closed: str, code: int
) -> None:
    served.routes |= {("GET", "/negotiations"): [], ("GET", "/transfers"): [{"id": "t1"}]}
    command = [sys.executable, "-c", "from hanse.cli import main; main()", "--url", served.url, "--token", "t", *args]
    ran = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, "unexpectedly" in ran.stderr) == (code, False)


def agreed(served: Connector) -> dict[tuple[str, str], Any]:
    """The routes to a dataset under an agreement."""
    identifier = "urn:hanse:north:flights"
    return {
        ("GET", "/catalog"): {"participantId": NORTH, "dataset": [{"@id": identifier, "hasPolicy": [{"@id": "o"}]}]},
        ("GET", "/agreements"): [{"id": "a1", "dataset": identifier, "counterparty": NORTH, "state": "active"}],
        ("GET", "/transfers"): [{"id": "t1", "agreement_id": "a1", "state": "STARTED", "purpose": ""}],
        ("GET", "/transfers/t1/address"): {"endpoint": f"{served.url}/data/v1", "ticket": "t", "expires": 4e9},
    }


def test_so_many_rows_are_taken_and_no_more(run: Run, served: Connector, tmp_path: Path) -> None:
    served.routes |= agreed(served)
    served.routes["GET", "/data/v1"] = chunked(ipc([batch(1, 2), batch(3, 4), batch(5)], complete(5)))
    ran = run("stream", "north/flights", "-c", "age", "--rows", "3", "-o", str(tmp_path / "a.csv"))
    assert ran.code == 0, ran.err
    assert csv.read_csv(tmp_path / "a.csv")["age"].to_pylist() == [1, 2, 3]
    assert served.asked[-1].query == {"columns": "age", "batch_rows": "3", "blocks": "all"}
    assert "n5" in run("stream", "north/flights").out


# ---- audit


def test_a_list_of_records_says_that_older_ones_fit_and_how_to_see_them(run: Run, served: Connector) -> None:
    served.routes["GET", "/audit/events"] = (200, {"records": [{**RECORD, "ts": 1_764_374_400.0}], "next": 7})
    ran = run("audit", "list", "--limit", "1")
    assert "2025-11-29 00:00:00Z" in ran.out
    assert "--before 7 begins below these" in ran.err.replace("\n", " ")
    assert run("audit", "list", "--limit", "1", "--before", "7", "--json").err == ""
    assert served.asked[-1].query == {"limit": "1", "before": "7"}


def test_a_record_is_shown_where_it_is_the_one_that_was_logged(run: Run, served: Connector) -> None:
    genuine = logged(reads(8), 5)
    for idx, answer, key, code, says in (
        (5, genuine, "", 0, "checked with the key that came with the record"),
        (5, genuine, KEY, 0, ""),
        (4, genuine, KEY, 6, "expected record 4, got one numbered 5"),
        (5, {**genuine, "body": {**genuine["body"], "actor": "eve"}}, KEY, 6, "its text was changed"),
        (5, genuine, str(CASES / "log.vkey"), 0, ""),
        (5, genuine, KEY.replace("north", "south"), 6, "the verifier key does not fit its own id"),
    ):
        served.routes["GET", f"/audit/events/{idx}"] = (200, answer)
        ran = run("audit", "show", str(idx), *(["--key", key] if key else []))
        assert (ran.code, ran.out != "") == (code, code == 0), ran.err
        assert says in ran.err if says else ran.err == ""


def test_the_command_line_says_its_version(run: Run) -> None:
    assert run("--version", token="").out == f"hanse {metadata.version('hanse')}\n"


def test_an_evidence_file_is_verified_without_a_connector(run: Run, tmp_path: Path) -> None:
    good = run("audit", "verify", str(CASES / "whole.zip"), "--key", str(CASES / "log.vkey"), token="")
    assert good.code == 0
    assert "12 records of north.example/audit/north hold" in good.out
    changed = bytearray((CASES / "whole.zip").read_bytes())
    changed[changed.index(b"consumer1")] ^= 1
    (tmp_path / "bad.zip").write_bytes(changed)
    bad = run("audit", "verify", str(tmp_path / "bad.zip"), token="")
    assert bad.code == 6
    assert "first bad record: 1" in bad.out
    assert run("audit", "verify", str(tmp_path / "bad.zip"), "--json", token="").json["first_bad"] == 1


def test_without_a_key_from_elsewhere_nobody_knows_who_signed_and_scripts_hear_it(run: Run) -> None:
    for more in ((), ("--json",)):
        ran = run("audit", "verify", str(CASES / "whole.zip"), *more, token="")
        assert ran.code == 7
        assert "who signed it is not known" in ran.err
    ran = run("audit", "verify", str(CASES / "whole.zip"), token="")
    assert "12 records hold, under root" in ran.out
    assert ran.out.endswith(", signed by a key that came with the file: who signed is not known\n")
    assert "7 evidence holds, but who signed it is not known" in " ".join(run("--help", token="").out.split())
    assert "Exit 7" in run("audit", "verify", "--help", token="").out


def test_a_key_is_a_file_that_is_there_or_else_a_key(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    (tmp_path / "a+b" / "log.vkey").write_text(f"{KEY}\n")
    (tmp_path / "binary+").write_bytes(b"\xff\xfe+")
    for key, code, says in (
        (KEY, 0, ""),
        (str(tmp_path / "a+b" / "log.vkey"), 0, ""),
        (str(tmp_path / "a+b" / "gone.vkey"), 6, "is not base64"),
        (
            str(tmp_path / "binary+"),
            1,
            "expected a file with a verifier key",
        ),
        ("gone.vkey", 1, "gone.vkey: No such file"),
    ):
        ran = run("audit", "verify", str(CASES / "whole.zip"), "--key", key, token="")
        assert ran.code == code
        assert says in ran.err.replace("\n", " ")


def test_an_extract_is_said_to_be_one_and_of_what(run: Run) -> None:
    ran = run("audit", "verify", str(CASES / "extract.zip"), "--key", KEY, token="")
    says = "an extract of agreement urn:agreement:1: it proves that these are in the log, not that they are all"
    assert (ran.code, says in ran.out) == (0, True)
    assert "extract" not in run("audit", "verify", str(CASES / "whole.zip"), "--key", KEY, token="").out


def test_a_later_export_is_compared_with_an_earlier_one(run: Run, tmp_path: Path) -> None:
    old = exported(tmp_path / "old.zip", reads(10))
    for path, code, says in (
        (exported(tmp_path / "new.zip", reads(25)), 0, "it continues the log of 10 records of the earlier file"),
        (exported(tmp_path / "other.zip", reads(25, r4="eve")), 6, "first bad record: 4"),
    ):
        ran = run("audit", "verify", str(path), "--key", KEY, "--after", str(old), token="")
        assert (ran.code, says in ran.out) == (code, True)
    later = exported(tmp_path / "later.zip", reads(25), Filter(actor="ada"))
    ran = run("audit", "verify", str(later), "--key", KEY, "--after", str(old), token="")
    assert (ran.code, "expected a whole export to compare" in ran.err) == (2, True)  # nothing is wrong with either


def test_evidence_of_no_record_is_said_to_be_that(run: Run, served: Connector, tmp_path: Path) -> None:
    for name, records, warned in (("none.zip", "0 records", True), ("extract.zip", "6 records", False)):
        served.routes["GET", "/audit/export"] = (200, (CASES / name).read_bytes())
        ended = run("audit", "export", "-o", str(tmp_path / name), "--actor", "nobody")
        assert ended.code == 0
        assert records in ended.err
        assert ("no record fits" in ended.err) is warned
        checked = run("audit", "verify", str(tmp_path / name), token="")
        assert ("evidence of none" in checked.out) is warned


def test_an_export_is_kept_only_when_it_is_whole(run: Run, served: Connector, tmp_path: Path) -> None:
    data = (CASES / "whole.zip").read_bytes()
    served.routes["GET", "/audit/export"] = (200, data)
    target = tmp_path / "e.zip"
    ran = run("audit", "export", "-o", str(target), "--outcome", "refused")
    assert (ran.code, f"`hanse audit verify {target} --key KEY`" in ran.err.replace("\n", " ")) == (0, True)
    assert served.asked[-1].query == {"outcome": "refused"}
    assert target.read_bytes() == data
    assert run("audit", "export", "-o", str(target)).code == 1
    served.routes["GET", "/audit/export"] = (200, b"<html>")
    assert "expected an evidence file from" in run("audit", "export", "-o", str(tmp_path / "f.zip")).err
    served.routes["GET", "/audit/export"] = (503, {"code": "busy", "detail": "no room"})
    assert run("audit", "export", "-o", str(tmp_path / "f.zip")).code == 1
    assert list(tmp_path.glob("*f.zip*")) == []


# ---- the server's commands


def test_help_lists_the_servers_commands_without_importing_the_server() -> None:
    code = (
        "import sys\nfrom hanse.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "bad = {'connector', 'catalogue', 'policies', 'pyarrow', 'httpx2', 'cryptography'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name in ("connector", "catalogue", "demo", "query"):
        assert f" {name} " in ran.stdout


def test_a_command_of_the_server_is_loaded_when_it_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    other = typer.Typer(help="Another one.")

    @other.command()
    def hello(name: str) -> None:
        print(f"hello {name}")

    @other.command()
    def bye() -> None: ...

    class Found:
        name = "other"

        def load(self) -> Any:
            return other

    class Alone:
        name = "alone"

        def load(self) -> Any:
            return hello

    monkeypatch.setattr(cli, "_installed", lambda: {"other": Found(), "alone": Alone()})
    assert run("alone", "Ada").out == "hello Ada\n"
    assert run("other", "hello", "Ada").out == "hello Ada\n"
    assert "bye" in run("other", "--help").out
    assert run("other", "nothing").code == 2


def test_without_the_server_its_commands_say_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, EntryPoint] = {}
    monkeypatch.setattr(cli, "_installed", lambda: nothing)
    ran = run("connector", "serve")
    assert ran.code == 2
    assert "`make setup` in a checkout of Hanse" in ran.err


@pytest.mark.parametrize(
    ("at", "sent"), [("2027-01-01T00:00:00Z", 1_798_761_600.0), ("2027-01-01T00:00:00", None), ("soon", None)]
)
def test_a_trial_at_another_time_needs_its_zone(run: Run, served: Connector, at: str, sent: float | None) -> None:
    served.routes["POST", "/policies/test"] = {"decision": {"permitted": True}, "explanation": ["Permitted."]}
    ran = run("policy", "test", "--as", "did:web:a", "--offer", "urn:o", "--at", at, "--application", "urn:app")
    if sent is None:
        assert (ran.code, served.asked) == (1, [])
        assert "with its zone" in ran.err
    else:
        assert (served.asked[-1].body["at"], served.asked[-1].body["application"]) == (sent, "urn:app")


def test_policies_are_compared_and_queries_tried_before_anybody_asks(
    run: Run, served: Connector, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("offer: a")
    change = {"action": "ds:query", "facts": {"ds:role": "x"}, "now": 0.0, "before": "refused", "after": "permitted"}
    different = {"same": False, "requests": [change], "added": ["Now."], "removed": ["Before."]}
    served.routes["POST", "/policies/diff"] = different
    ran = run("policy", "diff", str(tmp_path / "a.yaml"), "urn:o:2")
    assert served.asked[-1].body == {"before": {"form": "offer: a"}, "after_offer": "urn:o:2"}
    assert ran.code == 1
    assert all(text in ran.out for text in ("+ Now.", "- Before.", "ds:role x", "permitted"))
    served.routes["POST", "/policies/simulate"] = {
        "passes": False,
        "code": "x",
        "rule": "/permission/0",
        "reason": "no",
    }
    ran = run("policy", "simulate", "--offer", "urn:o", "--sql", "SELECT 1")
    assert (ran.code, "/permission/0" in ran.err) == (3, True)


CSV = b"id,value\n1,a\n"


def sized(length: int) -> Raw:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/csv\r\ncontent-length: {length}\r\n\r\n".encode()
    return Raw(head + CSV)


def test_data_of_another_kind_of_connector_is_fetched_as_it_is(served: Connector, run: Any, tmp_path: Path) -> None:
    served.routes["GET", "/transfers/urn%3Auuid%3At/data"] = sized(len(CSV))
    target = tmp_path / "rows.csv"
    ran = run("fetch", "urn:uuid:t", "-o", str(target))
    assert (ran.code, target.read_bytes()) == (0, CSV)
    again = run("fetch", "urn:uuid:t", "-o", str(target))
    assert (again.code, "--force" in again.err) == (1, True)


def test_a_fetch_that_ends_early_leaves_no_file(served: Connector, run: Any, tmp_path: Path) -> None:
    served.routes["GET", "/transfers/urn%3Auuid%3At/data"] = sized(len(CSV) + 5)
    ran = run("fetch", "urn:uuid:t", "-o", str(tmp_path / "rows.csv"))
    assert ran.code == 5
    assert not list(tmp_path.glob("*rows*"))
