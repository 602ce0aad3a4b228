"""The catalogue as a process: its settings, its command line, its health, its memory."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
import uvicorn
from pydantic import ValidationError
from sqlalchemy import Connection, Engine, text
from typer.testing import CliRunner

from catalogue.__main__ import commands
from catalogue.api.access import COOKIE
from catalogue.app import build, create_app
from catalogue.settings import CatalogueSettings
from catalogue.store import single_instance
from catalogue.store.single_instance import hold_exclusively
from connector import server as connector_server
from connector import settings as connector
from connector.errors import Invalid, Unavailable, Unproven, WrongState
from connector.infra.database.database import open_engine
from connector.infra.http import http_limits
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Provider, dataset
from tests.conftest import DATABASES
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


def test_every_setting_has_a_line_of_help() -> None:
    for name, field in CatalogueSettings.model_fields.items():
        assert (field.description or "").endswith("."), name


@pytest.mark.parametrize(
    "given",
    [
        {"name": "Big"},
        {"public_port": 70_000},
        {"unreachable_seconds": 9.0, "expired_seconds": 8.0},
        {"log_level": "x"},
        {"country": "Germany"},
    ],
)
def test_a_setting_that_does_not_fit_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CatalogueSettings(**given)


def test_the_operators_did_follows_from_its_address() -> None:
    assert CatalogueSettings(public_port=8700).did == "did:web:127.0.0.1%3A8700"
    assert CatalogueSettings(public_url="https://space.test/").did == "did:web:space.test"
    assert CatalogueSettings(participant_id="did:web:other.test").did == "did:web:other.test"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATA_DIR": str(tmp_path / "data"),
        "ALLOW_PRIVATE": "127.0.0.0/8",
        "INSECURE_HTTP": "true",
        "LOG_LEVEL": "error",
    }.items():
        monkeypatch.setenv(f"HANSE_{name}", value)


@pytest.mark.usefixtures("environment")
async def test_members_are_kept_from_the_command_line(north: Provider) -> None:
    async def run(*words: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, commands, words)
        return result.exit_code, result.output

    assert await run("migrate") == (0, "schema 0005 (was empty)\n")
    assert await run("member", "add", north.did, "north", "--country", "DE", "--url", north.url) == (
        0,
        f"north ({north.did}) is a member\n",
    )
    again = await run("member", "add", north.did, "north")
    assert again[0] == 1
    assert "member already" in again[1]
    assert [line.split()[:4] for line in (await run("member", "list"))[1].splitlines()] == [
        ["name", "status", "role", "country"],
        ["north", "active", "participant", "DE"],
    ]
    (row,) = json.loads((await run("member", "list", "--json"))[1])
    assert (row["id"], row["url"]) == (north.did, north.url)
    assert await run("member", "suspend", "north") == (0, "north is suspended\n")
    assert await run("member", "suspend", "north", "--lift") == (0, "north is active\n")
    assert (await run("member", "remove", "north"))[0] == 0
    assert await run("member", "list") == (0, "no members yet; `hanse catalogue member add DID NAME` admits one\n")
    assert (await run("member", "list", "--json"))[1] == "[]\n"
    assert (await run("member", "remove", "north"))[0] == 4


@pytest.mark.usefixtures("environment")
async def test_credentials_are_shown_on_the_command_line(north: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*words: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, commands, words)
        return result.exit_code, result.output

    await run("migrate")
    await run("member", "add", north.did, "north", "--url", north.url)
    assert await run("member", "credentials", "north") == (0, "")
    code, says = await run("member", "credentials", "north", "--issue")
    assert (code, "HANSE_ISSUER_TYPES" in says) == (1, True)
    monkeypatch.setenv("HANSE_ISSUER_TYPES", "MembershipCredential")
    code, says = await run("member", "credentials", "north", "--issue")
    assert (code, says) == (0, "RECEIVED   MembershipCredential-vc11  attempts 0  \n")
    found = json.loads((await run("member", "credentials", "north", "--json"))[1])
    assert [one["status"] for one in found["requests"]] == ["RECEIVED"]
    await run("member", "remove", "north")
    code, says = await run("member", "credentials", north.did)
    assert (code, says) == (0, "REJECTED   MembershipCredential-vc11  attempts 0  the membership ended\n")
    assert (await run("member", "credentials", "south"))[0] == 4


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("types", ["Membership Credential", "a:b", "A,A", "9x", ",".join(f"T{n}" for n in range(17))])
def test_types_of_credentials_are_checked(types: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSE_ISSUER_TYPES", types)
    result = CliRunner().invoke(commands, ["migrate"])
    assert (result.exit_code, "HANSE_ISSUER_TYPES: expected" in result.output) == (2, True)


@pytest.fixture
def served_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs in this process leaves its logging and its limits as they are."""
    monkeypatch.setattr("connector.telemetry.set_up_logging", lambda **_: None)
    monkeypatch.setattr("connector.infra.http.http_limits.raise_descriptors", lambda: None)


@pytest.mark.usefixtures("environment", "served_here")
def test_a_second_catalogue_does_not_start_on_what_the_first_one_has(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took the other's index for lost, and built it anew for ever."""
    with hold_exclusively(tmp_path / "data", database_url, lost=print):
        monkeypatch.setenv("HANSE_DATABASE_URL", database_url)
        for directory, setting in (("data", "HANSE_DATA_DIR"), ("other", "HANSE_DATABASE_URL")):
            monkeypatch.setenv("HANSE_DATA_DIR", str(tmp_path / directory))
            result = CliRunner().invoke(commands, ["serve"])
            assert result.exit_code == 1
            assert result.output.startswith(f"error: {setting}: "), result.output
            assert "another catalogue serves from" in result.output
    with hold_exclusively(tmp_path / "data", database_url, lost=print):
        pass


def test_a_connector_and_a_catalogue_may_share_a_directory(tmp_path: Path) -> None:
    """They have no file in common, and did; the second of them no longer started."""
    with (
        connector_server.alone(connector.Settings(name="north", data_dir=tmp_path)),
        hold_exclusively(tmp_path, f"sqlite:///{tmp_path / 'catalogue.db'}", lost=print),
    ):
        pass


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
def test_a_database_that_was_started_again_is_still_the_one_catalogues(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end had ended the lock: a second catalogue was let in, and neither knew."""
    monkeypatch.setattr(single_instance, "_LOOK_SECONDS", 0.05)
    ended: list[str] = []
    with (
        request.getfixturevalue("postgres_cluster").database() as url,
        open_engine(url, pool_size=1).connect() as other,
    ):
        holder = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = "
                      "(SELECT oid FROM pg_database WHERE datname = current_database())")  # fmt: skip

        def cut() -> int:
            pid = other.scalar(holder)
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            other.commit()
            return int(pid)

        claimed = single_instance._connect_and_lock

        def late(engine: Engine, ours: set[int]) -> Connection:
            if threading.current_thread() is not threading.main_thread():
                raise Unavailable("the first one is slower to come back")
            return claimed(engine, ours)

        def held() -> int | None:
            found = other.scalar(holder)
            other.commit()
            return found

        with hold_exclusively(tmp_path / "one", url, lost=lambda _: ended.append("one")):
            before = cut()
            eventually(lambda: held() not in (None, before))
            with (
                pytest.raises(WrongState, match="another catalogue serves"),
                hold_exclusively(tmp_path / "two", url, lost=print),
            ):
                pass
            monkeypatch.setattr(single_instance, "_connect_and_lock", late)
            cut()
            eventually(lambda: held() is None)  # the server ends a connection after it has answered
            with hold_exclusively(tmp_path / "two", url, lost=lambda _: ended.append("two")):
                monkeypatch.setattr(single_instance, "_connect_and_lock", claimed)
                eventually(lambda: ended == ["one"])
        eventually(lambda: held() is None)
        other.engine.dispose()


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
def test_a_catalogue_takes_its_own_connection_that_is_gone_for_no_other_one(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server believes in it for some seconds after the network has lost it."""
    monkeypatch.setattr(single_instance, "_LOOK_SECONDS", 0.05)
    ended: list[str] = []
    refused: list[Exception] = []
    lost: list[Connection] = []
    taken: list[Connection] = []
    claimed, name = single_instance._connect_and_lock, single_instance._read_backend_pid

    def noted(engine: Engine, ours: set[int]) -> Connection:
        try:
            taken.append(claimed(engine, ours))
        except (Unavailable, WrongState) as error:
            refused.append(error)
            raise
        return taken[0]

    def unheard(connection: Connection) -> int:
        if lost:
            return name(connection)
        lost.append(connection)
        raise Unavailable("the network has lost it")

    with request.getfixturevalue("postgres_cluster").database() as url:
        with hold_exclusively(tmp_path / "one", url, lost=lambda _: ended.append("one")):
            monkeypatch.setattr(single_instance, "_close", lambda _: None)
            monkeypatch.setattr(single_instance, "_connect_and_lock", noted)
            monkeypatch.setattr(single_instance, "_read_backend_pid", unheard)
            eventually(lambda: len(refused) > 2)
            lost[0].invalidate()
            eventually(lambda: taken)
            monkeypatch.undo()
        assert {type(one) for one in refused} == {Unavailable}
        assert ended == []


def test_a_lock_that_is_let_go_of_before_it_is_asked_whose_it_is_is_no_other_catalogue_s() -> None:
    """A catalogue whose own lost connection the server gave up in between ended for it."""

    class Server:
        said: ClassVar[list[Any]] = [False, None, True]  # the lock, who has it, the lock

        def execute(self, *_: Any) -> None: ...

        def scalar(self, *_: Any) -> Any:
            return self.said.pop(0)

    server: Any = Server()
    single_instance._claim(server, {7})
    assert server.said == []
    server.said[:] = [False, 8]
    with pytest.raises(WrongState, match="another catalogue serves"):
        single_instance._claim(server, {7})


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
def test_a_catalogue_that_has_not_heard_that_the_lock_is_its_own_takes_it_for_no_other_ones(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that goes away while the lock is taken anew left it to a connection that nobody here knew."""
    monkeypatch.setattr(single_instance, "_LOOK_SECONDS", 0.05)
    ended: list[str] = []
    unheard: list[Connection] = []
    tried: list[Connection] = []
    take, closed = single_instance._claim, single_instance._close

    def cut(connection: Connection, *more: Any) -> None:
        tried.append(connection)
        take(connection, *more)
        if not unheard:
            unheard.append(connection)
            raise Unavailable("the network has lost it")

    with request.getfixturevalue("postgres_cluster").database() as url:
        with hold_exclusively(tmp_path / "one", url, lost=lambda _: ended.append("one")):
            monkeypatch.setattr(single_instance, "_close", lambda one: None if one in unheard else closed(one))
            monkeypatch.setattr(single_instance, "_claim", cut)
            with open_engine(url, pool_size=1).connect() as other:
                other.execute(text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
                other.engine.dispose()
            eventually(lambda: len(tried) > 2 or ended)
            unheard[0].invalidate()
            monkeypatch.undo()
        assert ended == []


@pytest.mark.usefixtures("environment", "served_here")
@pytest.mark.parametrize("early", [True, False])
def test_a_catalogue_whose_database_was_taken_ends_as_a_failure(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    """A supervisor that starts again what has failed took it for one that was told to end."""
    losing: list[Callable[[], None]] = []
    ends: list[bool] = []

    @contextmanager
    def taken(*_: object, lost: Callable[[WrongState], None]) -> Iterator[None]:
        losing.append(lambda: lost(WrongState("it is another's by now")))
        if early:
            losing[0]()
        yield

    def run(server: uvicorn.Server) -> None:
        losing[0]()
        ends.append(server.should_exit)

    monkeypatch.setattr(single_instance, "hold_exclusively", taken)
    monkeypatch.setattr("catalogue.__main__._run", run)
    result = CliRunner().invoke(commands, ["serve"])
    assert (result.exit_code, result.output) == (1, "error: it is another's by now\n")
    assert ends == ([] if early else [True])


@pytest.mark.usefixtures("environment")
async def test_a_token_that_somebody_else_has_is_ended_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a running catalogue; there was no way but to change its database."""
    settings = CatalogueSettings()
    parts = build(settings)
    old = await parts.access.first_token(None)
    assert old is not None
    cookie = await parts.access.log_in(old)
    app = create_app(settings, parts=parts)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://catalogue.test") as http:

        async def status(**headers: str) -> int:
            return (await http.get("/api/v1/members", headers=headers)).status_code

        assert await status(authorization=f"Bearer {old}") == await status(cookie=f"{COOKIE}={cookie}") == 200
        printed = await asyncio.to_thread(CliRunner().invoke, commands, ["token"])
        assert printed.exit_code == 0
        new = printed.output.rpartition(": ")[2].strip()
        assert await status(authorization=f"Bearer {old}") == await status(cookie=f"{COOKIE}={cookie}") == 401
        assert await status(authorization=f"Bearer {new}") == 200
        monkeypatch.setenv("HANSE_ADMIN_TOKEN_FILE", str(tmp_path / "admin.token"))
        told = await asyncio.to_thread(CliRunner().invoke, commands, ["token"])
        assert told.output == f"the operator's token is in {tmp_path / 'admin.token'}\n"
        assert await status(authorization=f"Bearer {new}") == 401
        assert await status(authorization=f"Bearer {(tmp_path / 'admin.token').read_text().strip()}") == 200
    await parts.net.close()
    parts.search.close()
    parts.store.close()


@pytest.mark.usefixtures("environment")
def test_no_token_is_replaced_before_there_is_one() -> None:
    """Its first start took a database with a token for one whose key is lost, and never came."""
    assert CliRunner().invoke(commands, ["migrate"]).exit_code == 0
    told = CliRunner().invoke(commands, ["token"])
    assert (told.exit_code, "the first start makes one" in told.output) == (1, True)
    parts = build(CatalogueSettings())
    parts.search.close()
    parts.store.close()


@pytest.mark.usefixtures("environment")
async def test_a_session_that_begins_while_its_token_is_ended_is_none(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANSE_DATABASE_URL", database_url)
    parts = build(CatalogueSettings())
    old = await parts.access.first_token(None)
    assert old is not None
    cookie = await parts.access.log_in(old)
    with pytest.raises(Unproven):
        await parts.access.log_in(cookie)  # or a session would go on for ever
    held = parts.access._operator

    async def ended(text: str) -> bool:
        was = await held(text)
        assert (await asyncio.to_thread(CliRunner().invoke, commands, ["token"])).exit_code == 0
        return was

    monkeypatch.setattr(parts.access, "_operator", ended)
    with pytest.raises(Unproven):
        await parts.access.log_in(old)
    await parts.net.close()
    parts.search.close()
    parts.store.close()


@pytest.mark.parametrize("words", [["list"], ["add", "did:web:x.test", "x"], ["suspend", "x"], ["remove", "x"]])
def test_members_of_a_catalogue_that_nobody_made_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """As where the settings are forgotten: an empty database told of no members, and took new ones."""
    for name in ("DATA_DIR", "DATABASE_URL"):
        monkeypatch.delenv(f"HANSE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(commands, ["member", *words])
    assert result.exit_code == 4
    assert f"got nothing at {tmp_path / 'var/catalogue/catalogue.db'}; set HANSE_DATA_DIR or" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["serve"], ["migrate"], ["member", "list"]])
def test_a_setting_that_does_not_fit_is_named_by_each_command(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("HANSE_PUBLIC_PORT", "many")
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 2
    assert result.output.startswith("HANSE_PUBLIC_PORT: ")


@pytest.mark.parametrize("name", ["data_dir", "admin_token_file"])
def test_a_folder_that_cannot_be_made_is_told_with_its_setting(tmp_path: Path, name: str) -> None:
    wanted = CatalogueSettings(**{"data_dir": tmp_path, name: Path("/dev/null/hanse/here")})
    with pytest.raises(Invalid, match=f"HANSE_{name.upper()}: expected a folder to write to, got /dev/null/hanse"):
        build(wanted)


async def test_its_key_is_not_made_anew_where_it_has_served(tmp_path: Path) -> None:
    parts = build(CatalogueSettings(data_dir=tmp_path))
    await parts.access.first_token(None)
    parts.store.close()
    (tmp_path / "participant.pem").unlink()
    with pytest.raises(WrongState, match=r"participant\.pem"):
        build(CatalogueSettings(data_dir=tmp_path))


async def test_a_start_during_which_the_index_is_deleted_goes_on_and_builds_it_anew(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    parts, folder = catalogue.parts, catalogue.parts.settings.data_dir / "index"
    apply, times = parts.index._apply, iter(range(9))

    def lose_once(*about: Any) -> None:
        if not next(times):
            shutil.rmtree(folder)
        apply(*about)

    shutil.rmtree(folder)
    monkeypatch.setattr(parts.index, "_apply", lose_once)
    monkeypatch.setattr("catalogue.app._FOLLOW_SECONDS", 0.01)
    app = create_app(parts.settings, parts=parts)
    async with app.router.lifespan_context(app):
        assert (await catalogue.http.get("/health/ready")).status_code == 503
        while (await catalogue.http.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.05)
        assert await catalogue.ids() == ["urn:hanse:north:a"]


async def test_health_is_open_and_figures_are_the_operators(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    assert (await catalogue.http.get("/health/live")).json() == {"status": "ok"}
    assert (await catalogue.http.get("/health/ready")).json() == {"status": "ok"}
    figures = (await catalogue.http.get("/metrics", headers=catalogue.operator)).text
    for line in (
        "hanse_entries 2.0",
        'hanse_members{state="active"} 1.0',
        'hanse_visits_total{outcome="complete"} 1.0',
    ):
        assert line in figures


@pytest.mark.parametrize(
    "path", ["/", "/catalog.ttl", "/api/v1/search", "/members.jws", "/health/live", "/static/hanse.css"]
)
async def test_what_can_be_had_can_be_asked_about(catalogue: Catalogue, path: str) -> None:
    whole, head = await catalogue.http.get(path), await catalogue.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.keys() == whole.headers.keys()
    assert int(head.headers["content-length"]) > 10
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert (await catalogue.http.head("/logout")).status_code == 405


async def test_a_body_that_is_too_large_or_without_length_is_refused(catalogue: Catalogue) -> None:
    async def endless() -> Any:
        yield b"{}"

    large = await catalogue.http.post("/api/v1/members", content=b"a" * 70_000, headers=catalogue.operator)
    chunked = await catalogue.http.post("/api/v1/members", content=endless(), headers=catalogue.operator)
    for answer in (large, chunked):
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_input")
        assert "at most 65536 bytes" in answer.json()["detail"]


async def test_the_api_describes_itself(catalogue: Catalogue) -> None:
    paths = (await catalogue.http.get("/openapi.json")).json()["paths"]
    assert {"/api/v1/search", "/api/v1/members", "/api/v1/crawl", "/members.jws"} <= set(paths)
    assert "/login" not in paths
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """`python -m catalogue serve` as an operator starts it, until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = tmp_path / "admin.token"
    mine = {"DATA_DIR": str(tmp_path / "data"), "PUBLIC_PORT": str(port), "ADMIN_TOKEN_FILE": str(token)}
    env = {**os.environ, **{f"HANSE_{name}": value for name, value in mine.items()}, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "catalogue", "serve"], env=env, cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        for _ in range(1_200):
            if _ready(f"http://127.0.0.1:{port}"):
                break
            assert started.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield started, f"http://127.0.0.1:{port}", token
    finally:
        started.kill()
        started.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.e2e
def test_the_process_idles_small_writes_its_token_and_ends_when_told(
    process: tuple[subprocess.Popen[bytes], str, Path], tmp_path: Path
) -> None:
    running, url, token = process
    with urllib.request.urlopen(f"{url}/?q=herring", timeout=60) as answer:
        assert b"<h1>" in answer.read()
    status = Path(f"/proc/{running.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) // 1024
    assert resident <= 200, f"{resident} MB"
    asked = urllib.request.Request(
        f"{url}/api/v1/members", headers={"authorization": f"Bearer {token.read_text().strip()}"}
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.read() == b"[]"
    env = {**os.environ, "HANSE_PUBLIC_PORT": url.rpartition(":")[2]}
    for port, code in ((env, 0), (env | {"HANSE_PUBLIC_PORT": "1"}, 1)):
        ready = subprocess.run([sys.executable, "-m", "catalogue", "ready"], env=port, cwd=ROOT, check=False)
        assert ready.returncode == code
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) in (0, -signal.SIGTERM)
    log = (tmp_path / "log").read_text()
    assert token.read_text().strip() not in log
    assert "Traceback" not in log


@pytest.mark.e2e
def test_a_head_without_an_end_is_not_kept(process: tuple[subprocess.Popen[bytes], str, Path]) -> None:
    """Nobody has to sign in for one."""
    port = int(process[1].rpartition(":")[2])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as asking, suppress(ConnectionError):
        asking.sendall(b"GET / HTTP/1.1\r\na: " + b"b" * http_limits.HEAD_MAX)
        answer = asking.recv(4096)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")  # gone before we had read it


@pytest.mark.e2e
def test_silent_clients_keep_nobody_out(process: tuple[subprocess.Popen[bytes], str, Path]) -> None:
    """As at a connector: whose first request is awaited for the longest makes room."""
    running, url, _ = process
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (600, 600))
    port = int(url.rpartition(":")[2])
    with ExitStack() as held:
        for _ in range(700):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        for _ in range(3):
            with urllib.request.urlopen(f"{url}/?q=herring", timeout=20) as answer:
                assert answer.status == 200


def test_the_heavy_libraries_are_not_loaded_at_start() -> None:
    code = "import sys, catalogue.app; print([m for m in ('duckdb','pyarrow','rdflib','sqlglot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_of_a_catalogue_is_its_own_to_look_into(tmp_path: Path) -> None:
    """Its key, its index and its database are there."""
    parts = build(CatalogueSettings(public_url="https://catalogue.example", data_dir=tmp_path / "var" / "c"))
    parts.store.close()
    assert stat.S_IMODE((tmp_path / "var" / "c").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "var" / "c" / "catalogue.db").stat().st_mode) == 0o600
