"""The management API over HTTP: JSON in and out, errors as the client's own, streams by the lean reader."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

from hanse._transport import http_stream
from hanse._transport.http_stream import Request
from hanse._transport.sockets import SLOWEST, renewed, trusted, untrusted
from hanse.agreement import Call
from hanse.errors import BadInput, Broken, Unreachable, of_problem

_CONNECT_SECONDS = 5.0
_ANSWER_MAX = 64 * 2**20
_VALUES_MAX = 2**21  # in one answer: each takes some 70 bytes of memory, and three of text may be one
_BLOCK = 256 * 1024
_JSON = "application/json"


class Api:
    """One connector's management API, under one token."""

    def __init__(self, url: str, token: str, *, seconds: float = 30.0) -> None:
        if not _is_address(url):
            raise BadInput(
                f"expected the address of a connector's management listener, e.g. http://127.0.0.1:8081, came {url!r}; "
                "give --url, or set HANSE_URL to one"
            )
        if not all("!" <= sign <= "~" for sign in token):
            # Not shown: most of it may be a secret that somebody pasted with a line end.
            raise BadInput(
                "expected a token of letters, digits and signs without spaces, came something else; copy it again "
                "(--token, HANSE_TOKEN, or `hanse login`)"
            )
        self.url = url.rstrip("/")
        self.base = f"{self.url}/api/v1"
        self.token = token
        self._seconds = seconds
        self.headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http, self._believed = self._client()

    def do(self, call: Call) -> Any:
        """Carry out a call: its JSON, or None for an empty answer."""
        with self._answer(call) as answer:
            text = _read(answer, self.url, seconds=self._seconds + call.seconds)
        if not text:
            return None
        try:
            return _parsed(text, self.url)
        except (ValueError, RecursionError):
            raise Broken(f"expected JSON from {self.url}, came something else; is this a connector?") from None

    def get(self, path: str, **query: Any) -> Any:
        return self.do(Call("GET", path, query))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.do(Call("POST", path, query, body))

    def delete(self, path: str, **query: Any) -> Any:
        return self.do(Call("DELETE", path, query))

    def text(self, path: str) -> str:
        """A small answer as text."""
        with self._answer(Call("GET", path)) as answer:
            return _read(answer, self.url, seconds=self._seconds).decode(errors="replace")

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """The lines of an answer that does not end by itself (server-sent events)."""
        with self._answer(Call("GET", path, query), endless=True) as answer:
            try:
                yield from answer.iter_lines()
            except httpx2.HTTPError as error:
                raise Unreachable(f"{self.url} stopped in the middle: {error}") from error

    def blocks(self, path: str, **query: Any) -> Iterator[tuple[bytes, int]]:
        """A large answer block by block, each with the whole length (0 where it is not known)."""
        with self._answer(Call("GET", path, query, seconds=600)) as answer:
            length = int(answer.headers.get("content-length", "0"))
            came = 0
            try:
                for block in answer.iter_raw(_BLOCK):
                    came += len(block)
                    yield block, length
            except httpx2.HTTPError as error:
                raise Unreachable(f"{self.url} stopped in the middle: {error}") from error
            if came < length:
                raise Unreachable(f"{self.url} stopped after {came} of {length} bytes")

    def close(self) -> None:
        self._http.close()

    def _client(self) -> tuple[httpx2.Client, ssl.SSLContext]:
        """Who carries requests, and by which certificates it believes the other side."""
        asked = {**self.headers, "accept-encoding": "identity"}  # what is packed in what is packed has no end
        believed = trusted()
        return httpx2.Client(headers=asked, follow_redirects=False, verify=believed), believed

    def _sent(self, call: Call, timeout: httpx2.Timeout) -> httpx2.Response:
        """An answer, its body not read yet. Asked for once more where other authorities are believed by now."""
        believed, http = self._believed, self._http
        request = http.build_request(
            call.method, self.base + call.path, params=_given(call.query), json=call.body, timeout=timeout
        )
        try:
            return http.send(request, stream=True)
        except httpx2.TransportError as error:
            if _certificate(error) is None or not renewed(believed):
                raise
        self._http, self._believed = self._client()  # another thread may read by the one before: it is not closed
        return self._http.send(request, stream=True)

    @contextmanager
    def _answer(self, call: Call, *, endless: bool = False) -> Iterator[httpx2.Response]:
        """An answer that is no error, its body not read yet."""
        if self._http.is_closed:
            raise BadInput(f"this connection to {self.url} was closed; connect again")
        seconds = self._seconds + call.seconds
        read = None if endless else seconds
        timeout = httpx2.Timeout(
            read, connect=min(_CONNECT_SECONDS, self._seconds), write=self._seconds, pool=self._seconds
        )
        try:
            with closing(self._sent(call, timeout)) as answer:
                if answer.status_code >= 300:
                    problem = _problem(answer, self.url, seconds=seconds)
                    raise of_problem(answer.status_code, problem, where=self.url, ours=True)
                if http_stream.packed(coding := answer.headers.get("content-encoding", "")):
                    raise Broken(
                        f"expected an answer as it is from {self.url}, came one that is compressed ({coding[:30]}); "
                        "a proxy may do so"
                    )
                yield answer
        except httpx2.TimeoutException:
            raise Unreachable(f"{self.url} did not answer in time; is it overloaded?") from None
        except httpx2.InvalidURL as error:
            raise BadInput(f"{self.url} is no address: {error}") from error
        except httpx2.TransportError as error:
            if (why := _certificate(error)) is not None:
                raise untrusted(self.url, why) from error
            if "WRONG_VERSION_NUMBER" in str(error) and self.url.startswith("https://"):
                raise Unreachable(
                    f"what answers at {self.url} speaks no TLS; try http://{self.url.removeprefix('https://')}"
                ) from error
            raise Unreachable(
                f"no connector answers at {self.url} ({error}); is it running, and is this its management listener?"
            ) from error


def ask_at(url: str, ticket: str, body: Mapping[str, Any], *, seconds: float) -> Any:
    """The JSON answer of an owner's data plane to a small request under a ticket: all of it within `seconds`."""
    headers = {"authorization": f"Bearer {ticket}", "content-type": _JSON}
    request = Request("POST", url, headers, json.dumps(body).encode(), seconds, accept=_JSON)
    text, where = http_stream.whole(request, most=_ANSWER_MAX), request.where
    try:
        return _parsed(text, where)
    except (ValueError, RecursionError):
        raise Broken(f"expected JSON from {where}, came something else") from None


def _certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What was wrong with a certificate, where that is what an error comes from."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__  # the library forgets its own causes
    return error


def _given(query: Mapping[str, Any]) -> list[tuple[str, str | int | float | bool | None]]:
    """Parameters that have a value; lists as one parameter each."""
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in query.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one not in (None, ""):
                pairs.append((name, str(one)))
    return pairs


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_fits = parts.port != 0  # reading it raises where it is no number, or too large
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_fits and plain


def _read(answer: httpx2.Response, url: str, *, seconds: float) -> bytes:
    """All of a small answer, as it came; where next to nothing of it comes, within `seconds`."""
    parts, size, begun = [], 0, time.monotonic()
    for part in answer.iter_raw():
        parts.append(part)
        if (size := size + len(part)) > _ANSWER_MAX:
            raise Broken(f"{url} sent more than {_ANSWER_MAX} bytes where JSON was expected")
        if (took := time.monotonic() - begun) > seconds and size < SLOWEST * took:
            raise Unreachable(f"{url} sent next to nothing for {seconds:g} s; it may be overloaded").after(took)
    return b"".join(parts)


def _parsed(text: bytes, url: str) -> Any:
    """What JSON says. ValueError or RecursionError for what is none, Broken for more values than there is room for."""
    if sum(map(text.count, (b",", b"[", b"{"))) > _VALUES_MAX:
        raise Broken(f"{url} sent more than {_VALUES_MAX} values in one answer")
    return json.loads(text)


def _problem(answer: httpx2.Response, url: str, *, seconds: float) -> dict[str, Any]:
    try:
        problem = _parsed(_read(answer, url, seconds=seconds), url)
    except (ValueError, RecursionError):
        problem = None
    return problem if isinstance(problem, dict) else {}
