"""What a supervisor asks: the own listener by what is set, in TLS of its own too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from connector.__main__ import commands
from tests.support.certificates import self_signed, server_side
from tests.support.ports import free_range


@contextmanager
def listener(status: int, certificate: Path | None) -> Iterator[int]:
    """A listener that answers /health/ready with `status`; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()
            self.wfile.write(b"the database does not answer")

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if certificate is not None:
            server.socket = server_side(certificate).wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("host", "status", "code"), [("127.0.0.1", 200, 0), ("0.0.0.0", 200, 0), ("127.0.0.1", 503, 1)]
)
def test_it_is_asked_as_it_is_set(tmp_path: Path, *, secure: bool, host: str, status: int, code: int) -> None:
    certificate = self_signed(tmp_path / "own.pem") if secure else None
    with listener(status, certificate) as port:
        mine = {"HANSE_PUBLIC_HOST": host, "HANSE_PUBLIC_PORT": str(port), "HANSE_DATA_DIR": str(tmp_path)}
        mine |= {"HANSE_TLS_CERTIFICATE": str(certificate)} if certificate else {}
        ran = CliRunner().invoke(commands, ["ready"], env=mine)
    assert ran.exit_code == code
    assert ("status 503, the database does not answer" in ran.stderr) is (code == 1)


def test_where_nobody_listens_it_says_so() -> None:
    ran = CliRunner().invoke(commands, ["ready"], env={"HANSE_PUBLIC_PORT": str(free_range(1))})
    assert (ran.exit_code, "got none" in ran.stderr) == (1, True)
