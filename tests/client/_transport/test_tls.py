"""Streams over TLS: a trusted owner is read whole, a stranger or a cut connection is refused."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
from hanse import errors
from hanse._transport import http_stream, sockets
from hanse._transport.api import Api, post_small
from hanse._transport.http_stream import HttpRequest
from hanse.retry import is_temporary
from hanse.stream import Stream

from tests.client.support import batch, chunked, complete, ipc, listening
from tests.support.certificates import self_signed, server_side
from tests.support.own_name import changed

BATCHES = [batch(*range(50_000)), batch(1)]
ANSWER = chunked(ipc(BATCHES, complete(50_001))).data


@contextmanager
def owner(file: Path, speak: Callable[[ssl.SSLSocket], None], *, times: int = 1) -> Iterator[str]:
    """So many TLS connections on a real socket: after the request, `speak` says what goes out."""

    def asked(accepted: socket.socket) -> None:
        with server_side(file).wrap_socket(accepted, server_side=True) as tls:
            tls.recv(65_536)
            speak(tls)

    with listening(asked, times=times) as (host, port):
        yield f"https://{host}:{port}/"


def whole(tls: ssl.SSLSocket) -> None:
    tls.sendall(ANSWER)
    tls.unwrap()


def nothing(tls: ssl.SSLSocket) -> None:
    tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


def cut(tls: ssl.SSLSocket) -> None:
    tls.sendall(ANSWER[: len(ANSWER) // 2])


def test_a_trusted_owner_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path / "owner.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with owner(file, whole) as url:
        table = Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=60))).to_arrow()
    assert table == pa.Table.from_batches(BATCHES)


ASK: dict[str, Callable[[str], Any]] = {
    "stream": lambda url: http_stream.open_stream(HttpRequest("GET", url, idle_seconds=60)),
    "plan": lambda url: post_small(url, "ticket", {}, seconds=60),
    "connector": lambda url: Api(url, "token").get("/self"),
}


@pytest.mark.parametrize("ask", ASK)
def test_an_owner_that_nobody_vouches_for_is_refused_and_not_asked_again(ask: str, tmp_path: Path) -> None:
    with (
        owner(self_signed(tmp_path / "owner.pem"), whole) as url,
        pytest.raises(errors.Unreachable, match=r"no trusted connection to .*\(self-signed certificate\)") as caught,
    ):
        ASK[ask](url)
    assert (caught.value.code, is_temporary(caught.value)) == ("certificate_untrusted", False)


def test_a_certificate_for_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path / "owner.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with owner(file, whole) as url, pytest.raises(errors.Unreachable, match="no trusted connection"):
        http_stream.open_stream(HttpRequest("GET", url.replace("127.0.0.1", "localhost"), idle_seconds=60))


@pytest.mark.parametrize("ask", ASK)
def test_an_authority_that_was_renewed_while_a_job_runs_is_believed(
    ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = self_signed(tmp_path / "before.pem"), self_signed(tmp_path / "after.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle := Path(shutil.copy(before, tmp_path / "bundle.pem"))))
    old = sockets.load_trust()
    shutil.copy(after, bundle)
    with owner(after, whole if ask == "stream" else nothing, times=2) as url:
        ASK[ask](url)
    assert sockets.is_trust_renewed(old), "another thread that was refused meanwhile asks again, too"
    assert not sockets.is_trust_renewed(sockets.load_trust())


def test_certificates_are_loaded_once_for_all_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path / "owner.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    loaded: list[ssl.SSLContext] = []

    def load(**given: Any) -> ssl.SSLContext:
        loaded.append(ssl.create_default_context(**given))
        return loaded[-1]

    monkeypatch.setattr(sockets, "ssl", changed(ssl, create_default_context=load))
    for _ in range(2):
        with owner(file, whole) as url:
            Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=60))).to_arrow()
        Api("https://127.0.0.1:1", "token").close()
    assert len(loaded) == 1
    monkeypatch.setattr(sockets, "_RELOAD_SECONDS", 1e-9)  # an hour later
    assert sockets.load_trust() is loaded[1]
    monkeypatch.setenv("SSL_CERT_FILE", str(shutil.copy(file, tmp_path / "another.pem")))
    assert sockets.load_trust() is loaded[2]


def test_what_is_believed_is_what_the_http_library_believes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path / "owner.pem")
    for name, folder in ((str(file), ""), ("", str(tmp_path)), (str(file), str(tmp_path)), ("", "")):
        monkeypatch.setenv("SSL_CERT_FILE", name)
        monkeypatch.setenv("SSL_CERT_DIR", folder)
        ours, theirs = sockets.load_trust(), httpx2.create_ssl_context()
        assert ours.get_ca_certs() == theirs.get_ca_certs()
        assert (ours.verify_mode, ours.check_hostname) == (theirs.verify_mode, theirs.check_hostname)


@pytest.mark.parametrize("text", [None, "no certificate"], ids=["missing", "other"])
def test_certificates_that_cannot_be_used_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    file = tmp_path / "trusted.pem"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with (
        owner(self_signed(tmp_path / "owner.pem"), whole) as url,
        pytest.raises(errors.BadInput, match=r"trusted.*SSL_CERT_FILE"),
    ):
        http_stream.open_stream(HttpRequest("GET", url, idle_seconds=60))
    with pytest.raises(errors.BadInput, match="expected certificates"):
        Api("https://127.0.0.1:1", "token")


def test_a_cut_connection_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path / "owner.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with owner(file, cut) as url, pytest.raises(errors.Unreachable):
        Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=60))).to_arrow()
