"""A training job with a projected service account token: one stream outlives three of its tokens without a person."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hanse
import pytest
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from tests.support.processes import Process, two
from tests.support.waiting import eventually

ISSUER = "https://kubernetes.default.svc.cluster.local"
POD = "system:serviceaccount:training:trainer"
ROWS, LIFETIMES = 4_000_000, 3
FILE = """workloads:
- name: cluster
  issuer: {issuer}
  audience: hanse-south
  jwks_url: {jwks}
  job_claim: kubernetes.io/pod/uid
  subjects: {{"system:serviceaccount:training:*": [read, consume]}}
"""


class Cluster:
    """Signs service account tokens and projects a new one into the file, as a kubelet does. `keys` is public."""

    def __init__(self, file: Path) -> None:
        self._key, self._file, self.projected = ECKey.generate_key("P-256", {"kid": "cluster"}), file, 0

    @property
    def keys(self) -> bytes:
        return json.dumps(KeySet([self._key]).as_dict(private=False)).encode()

    def project(self) -> None:
        self.projected, now = self.projected + 1, int(time.time())
        claims = {
            "iss": ISSUER, "aud": ["hanse-south"], "sub": POD, "iat": now, "exp": now + 600, "jti": str(self.projected),
            "kubernetes.io": {"pod": {"uid": "pod-7"}},
        }  # fmt: skip
        draft = self._file.with_suffix(".draft")
        draft.write_text(jwt.encode({"alg": "ES256", "kid": "cluster"}, claims, self._key, algorithms=["ES256"]))
        draft.replace(self._file)


@contextmanager
def served(keys: bytes) -> Iterator[str]:
    """The cluster's keys, as its API server has them; their address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(keys)))
            self.end_headers()
            self.wfile.write(keys)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def records(one: Process, kind: str) -> list[dict[str, Any]]:
    return [row["body"] for row in one.api().get(f"/audit/events?kind={kind}&limit=1000")["records"]]


def receipts(one: Process) -> list[dict[str, Any]]:
    """Once they say of every row that it was taken: they come a moment after the end."""
    ends, found = time.monotonic() + 60, list[dict[str, Any]]()
    while sum(body["detail"]["rows"] for body in found) < ROWS and time.monotonic() < ends:
        time.sleep(0.1)
        found = records(one, "ReadTaken")
    return found


def exchanges(one: Process) -> int:
    return sum(bool(body["detail"].get("workload")) for body in records(one, "TokenIssued"))


@pytest.mark.e2e
def test_a_stream_outlives_three_tokens_and_both_logs_have_the_signed_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, config = tmp_path / "token", tmp_path / "sign-on.yaml"
    cluster = Cluster(token)
    cluster.project()
    monkeypatch.setenv("HANSE_WORKLOAD_TOKEN_FILE", str(token))
    monkeypatch.setenv("HANSE_JOB_ID", "declared")
    monkeypatch.delenv("HANSE_TOKEN", raising=False)
    with served(cluster.keys) as jwks:
        config.write_text(FILE.format(issuer=ISSUER, jwks=jwks))
        config.chmod(0o600)
        settings = {"SIGN_ON": str(config), "WORKLOAD_TOKEN_SECONDS": "5", "TICKET_SECONDS": "10"}
        with two(tmp_path, forked=True, **settings) as (north, south):
            dataset, offer = north.publish("air", rows=ROWS)
            agreement, transfer = south.agree(north, dataset, offer)
            with hanse.connect(f"http://127.0.0.1:{south.management_port}") as space:
                access = TransferAccess(Name("north", "air"), dataset, agreement, transfer, "", north.participant)
                with Dataset(space, access).stream(batch_rows=1_000) as stream:
                    batches = iter(stream)
                    rows = read_until_renewed(space, batches, south, cluster)
                    rows += sum(batch.num_rows for batch in batches)
                space.api.post("/transfers", {"agreement_id": agreement, "format": "HttpData-PUSH"})
                eventually(lambda: len(records(north, "ReadEnded")) == 2)
            assert (rows, stream.reopened) == (ROWS, 0)  # one read, under fresh tickets of the owner
            assert [bool(body["detail"].get("to")) for body in records(north, "ReadStarted")].count(True) == 1  # pushed
            assert exchanges(south) > LIFETIMES
            assert {body["job"] for body in records(north, "ReadStarted") + records(north, "ReadEnded")} == {"pod-7"}
            taken = receipts(south)
            assert {(body["job"], body["subject"]) for body in taken} == {("pod-7", f"{ISSUER}#{POD}")}
            assert sum(body["detail"]["rows"] for body in taken) == ROWS


def read_until_renewed(space: hanse.Space, batches: Iterator[Any], reader: Process, cluster: Cluster) -> int:
    """Read on, slowly, until three tokens have been replaced, each from a new file; return the rows."""
    rows, ends, known = 0, time.monotonic() + 120, exchanges(reader)
    wanted = known + LIFETIMES
    while known < wanted:
        assert time.monotonic() < ends, "the token was not renewed"
        rows += next(batches).num_rows
        assert space.me()["scopes"] == ["consume", "read"]
        if (now := exchanges(reader)) > known:
            known = now
            cluster.project()
        time.sleep(0.2)
    return rows
