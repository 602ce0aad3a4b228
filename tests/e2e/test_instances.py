"""Two processes of one connector on one PostgreSQL: what one of them does, listeners at the other one hear, and a
webhook gets each event from one of them, also when the one that it happened in is killed.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from connector.identity import keys
from connector.identity.self_issued_token import mint
from tests.conftest import DATABASES
from tests.support.ports import free_range
from tests.support.processes import POLICY, Client, Failed, Process

pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
KIND = "OfferPublished"


@dataclass
class Two:
    """Both processes, and an owner's way to each."""

    first: Process
    second: Process
    dataset: str

    def api(self, which: Process) -> Client:
        return Client(which.management_port, token=self.first.token, prefix="/api/v1")

    def offer(self, which: Process) -> str:
        """Have something happen in one of them; the event's reference."""
        made = self.api(which).post("/offers", {"dataset": "air", "policy": POLICY})
        return str(made["id"])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, postgres_cluster: Any) -> Iterator[Two]:
    tmp_path = tmp_path_factory.mktemp("instances")
    with postgres_cluster.database() as url:
        ports = free_range(4)
        (tmp_path / "converted").mkdir()
        (tmp_path / "converted" / "theirs.parquet").write_text("of somebody else")
        shared = {"CONVERTED_DIR": str(tmp_path / "converted")}
        first = Process("north", tmp_path / "first", ports, ports + 1, url, shared, forked=True)
        first.start()
        shutil.copytree(
            first.directory / "keys", tmp_path / "second" / "keys", ignore=shutil.ignore_patterns("instance*")
        )
        same = {"PUBLIC_URL": f"http://127.0.0.1:{first.public_port}", **shared}
        second = Process("north", tmp_path / "second", ports + 2, ports + 3, url, same, forked=True)
        try:
            second.start()
            yield Two(first, second, first.publish("air")[0])
        finally:
            first.kill()
            second.kill()


@dataclass
class Hook:
    """A webhook's receiver. While `deaf`, it takes a delivery and never answers."""

    url: str = ""
    deaf: bool = False
    got: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)

    def until(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, 100), f"got {len(self.got)} of {count}"
            return list(self.got)


@contextmanager
def receiving() -> Iterator[Hook]:
    hook = Hook()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with hook.changed:
                hook.got.append((self.headers["hanse-delivery"], body))
                deaf = hook.deaf
                hook.changed.notify_all()
            if deaf:
                hook.released.wait(60)
                return
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield hook
    finally:
        hook.released.set()
        server.shutdown()
        server.server_close()


def test_a_data_directory_is_one_process_s_alone(two: Two) -> None:
    ports = free_range(2)
    third = Process("north", two.first.directory, ports, ports + 1, two.first.database_url, forked=True)
    third.start(wait=False)
    assert third.running is not None
    try:
        assert third.running.wait(120) == 1
    finally:
        if third.running.returncode is None:
            third.kill()
    told = (third.directory / "log").read_text()
    assert "another connector serves from there: stop that connector, or give this one a directory of its own" in told


def test_a_stream_of_events_at_one_tells_what_happens_in_both(two: Two) -> None:
    streams = [two.api(one).start("GET", f"/events/stream?kind={KIND}") for one in (two.first, two.second)]
    for stream in streams:
        assert stream.readline() == b": joined\n"
    for number in range(10):
        two.offer((two.first, two.second)[number % 2])
    for stream in streams:
        told: list[str] = []
        while len(told) < 10:
            line = stream.readline()
            if line.startswith(b"data: "):
                told.append(line.decode())
        assert len(set(told)) == 10


def test_what_one_of_them_has_converted_is_there_for_both(two: Two) -> None:
    (two.first.directory / "beds.csv").write_text("bed,ward\n1,onco\n2,neuro\n")
    two.api(two.first).post("/datasets", {"name": "beds", "path": str(two.first.directory / "beds.csv")})
    two.api(two.first).post("/offers", {"dataset": "beds", "policy": POLICY})
    for one in (two.first, two.second):
        assert len(two.api(one).get("/datasets/beds/preview?as=did:web:south.example")["rows"]) == 2
    assert (two.first.directory.parent / "converted" / "theirs.parquet").exists()


def test_a_token_that_one_of_them_took_is_refused_by_the_other_one(two: Two) -> None:
    key, did = keys.load_participant_key(two.first.directory / "keys", new=False), two.first.participant

    def ask(which: Process, token: str) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {token}"}
        asked = {"@context": ["https://w3id.org/dspace/2025/1/context.jsonld"], "@type": "CatalogRequestMessage"}
        answer = Client(which.public_port).call("POST", "/dsp/2025-1/catalog/request", asked, headers)
        return dict(json.loads(answer))

    token = mint(key, did=did, audience=did, now=time.time() + 1)  # not before the processes started
    assert ask(two.first, token)["@type"] == "Catalog"
    with pytest.raises(Failed) as refused:
        ask(two.second, token)
    assert refused.value.status == 401
    again = mint(key, did=did, audience=did, now=time.time() + 1)
    assert ask(two.second, again)["@type"] == "Catalog"


def test_a_process_with_keys_of_its_own_is_not_let_in(two: Two, tmp_path: Path) -> None:
    ports = free_range(2)
    stranger = Process("north", tmp_path, ports, ports + 1, two.first.database_url, forked=True)
    with pytest.raises(RuntimeError, match=r"participant\.pem.*copy it from another process on the same database"):
        stranger.start()
    shutil.copytree(two.first.directory / "keys", tmp_path / "keys", ignore=shutil.ignore_patterns("log*"))
    keys.load_log_key(tmp_path / "keys")
    with pytest.raises(RuntimeError, match="signed with another key than the one in keys/"):
        stranger.start()


def test_a_webhook_gets_each_event_from_one_of_them(two: Two) -> None:
    with receiving() as hook:
        stream = two.api(two.second).start("GET", "/events/stream?kind=WebhookChanged")
        stream.readline()
        two.api(two.first).post("/webhooks", {"url": hook.url, "kinds": [KIND]})
        while not stream.readline().startswith(b"data: "):  # the other one knows of the webhook, too
            pass
        for number in range(20):
            two.offer((two.first, two.second)[number % 2])
        events = hook.until(20)
        assert set(Counter(delivery for delivery, _ in events).values()) == {1}
        assert {body["kind"] for _, body in events} == {KIND}


def test_what_a_killed_process_was_delivering_comes_from_the_other_one(two: Two) -> None:
    with receiving() as hook:
        two.api(two.first).post("/webhooks", {"url": hook.url, "kinds": [KIND]})
        hook.deaf = True
        two.offer(two.first)
        (first,) = hook.until(1)
        two.first.kill()
        hook.deaf = False
        again = hook.until(2)[1]
        assert again == first
    two.first.start()
