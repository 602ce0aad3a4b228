"""Management API over HTTP: JSON requests and replies, errors as the client's own, large replies block by block."""

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
from hanse._transport.http_stream import HttpRequest
from hanse._transport.sockets import SLOWEST, is_trust_renewed, load_trust, untrusted_error
from hanse._transport.workload import RenewedToken
from hanse.agreement import Call
from hanse.errors import BadInput, Broken, Unauthenticated, Unreachable, error_from_problem

_CONNECT_SECONDS = 5.0
_ANSWER_MAX = 64 * 2**20
_VALUES_MAX = 2**21  # in one reply: each takes about 70 bytes of memory, from three bytes of text or more
_BLOCK = 256 * 1024
_JSON = "application/json"


class Api:
    """The management API of one connector, under one token."""

    def __init__(self, url: str, token: str | RenewedToken, *, seconds: float = 30.0) -> None:
        if not _is_address(url):
            raise BadInput(
                f"expected the address of a connector's management listener, e.g. http://127.0.0.1:8081, got {url!r}; "
                "give --url, or set HANSE_URL to one"
            )
        if isinstance(token, str) and not all("!" <= character <= "~" for character in token):
            # The token is not shown: it may be a valid secret that was pasted with a line end.
            raise BadInput(
                "expected a token of letters, digits and signs without spaces, got another character; copy it again "
                "(--token, HANSE_TOKEN, or `hanse login`)"
            )
        self.url = url.rstrip("/")
        self.base = f"{self.url}/api/v1"
        self.token = token
        self._seconds = seconds
        self._token_url = f"{self.base}/oauth/token"
        self._http, self._trust = self._client()

    @property
    def headers(self) -> dict[str, str]:
        """The header with the token. A job's token is exchanged and renewed here.

        Raises:
            HanseError: the connector refuses the exchange, or cannot be reached.
        """
        token = self.token if isinstance(self.token, str) else self.token.current(self._exchange, self._token_url)
        return {"authorization": f"Bearer {token}"} if token else {}

    @property
    def job(self) -> str:
        """The id of the job that runs, for the owner's log; empty if it is not known."""
        return "" if isinstance(self.token, str) else self.token.job

    def _exchange(self, form: Mapping[str, str]) -> Any:
        request = self._http.build_request("POST", self._token_url, data=form, timeout=self._seconds)
        try:
            with closing(self._http.send(request, stream=True)) as answer:
                text, status = _read(answer, self.url, seconds=self._seconds), answer.status_code
            said = _parse(text, self.url)
        except httpx2.TransportError as error:
            raise Unreachable(f"no connector answers at {self.url} ({error}); is it running?") from error
        except (ValueError, RecursionError):
            raise Broken(f"expected JSON from {self.url}, got something else; is this a connector?") from None
        if status != 200:
            raise Unauthenticated(
                f"{self.url} refused the exchange of {self.token!r}; its log has the reason (token_exchange_failed)",
                code="token_exchange_failed",
            )
        return said

    def do(self, call: Call) -> Any:
        """Carry out a call; return its JSON, or None for an empty reply.

        Raises:
            HanseError: the connector's error, Unreachable or Broken.
        """
        with self._answer(call) as answer:
            text = _read(answer, self.url, seconds=self._seconds + call.seconds)
        if not text:
            return None
        try:
            return _parse(text, self.url)
        except (ValueError, RecursionError):
            raise Broken(f"expected JSON from {self.url}, got something else; is this a connector?") from None

    def get(self, path: str, **query: Any) -> Any:
        return self.do(Call("GET", path, query))

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.do(Call("POST", path, query, body))

    def delete(self, path: str, **query: Any) -> Any:
        return self.do(Call("DELETE", path, query))

    def text(self, path: str) -> str:
        """Read a small reply as text."""
        with self._answer(Call("GET", path)) as answer:
            return _read(answer, self.url, seconds=self._seconds).decode(errors="replace")

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """Yield the lines of a reply without an end (server-sent events)."""
        with self._answer(Call("GET", path, query), endless=True) as answer:
            try:
                yield from answer.iter_lines()
            except httpx2.HTTPError as error:
                raise Unreachable(f"{self.url} closed the connection before the end of its answer: {error}") from error

    def blocks(self, path: str, **query: Any) -> Iterator[tuple[bytes, int]]:
        """Yield a large reply block by block, each with the total length (0 if unknown)."""
        with self._answer(Call("GET", path, query, seconds=600)) as answer:
            length = int(answer.headers.get("content-length", "0"))
            received = 0
            try:
                for block in answer.iter_raw(_BLOCK):
                    received += len(block)
                    yield block, length
            except httpx2.HTTPError as error:
                raise Unreachable(f"{self.url} closed the connection before the end of its answer: {error}") from error
            if received < length:
                raise Unreachable(
                    f"expected {length} bytes from {self.url}, got {received} before the connection ended"
                )

    def close(self) -> None:
        self._http.close()

    def _client(self) -> tuple[httpx2.Client, ssl.SSLContext]:
        """Create the HTTP client, and return it with the certificates that it trusts."""
        headers = {"accept-encoding": "identity"}  # compressed replies could expand without limit
        trust = load_trust()
        return httpx2.Client(headers=headers, follow_redirects=False, verify=trust), trust

    def _send(self, call: Call, timeout: httpx2.Timeout) -> httpx2.Response:
        """Send a call; its reply's body is not read yet. Exchanges a job's token once more if it is refused."""
        headers = self.headers
        answer = self._send_as(call, headers, timeout)
        if answer.status_code != 401 or isinstance(self.token, str):
            return answer
        answer.close()
        self.token.drop(headers["authorization"].removeprefix("Bearer "))
        return self._send_as(call, self.headers, timeout)

    def _send_as(self, call: Call, headers: Mapping[str, str], timeout: httpx2.Timeout) -> httpx2.Response:
        """Send a call with this token. Retries once if the trusted certificates have changed."""
        trust, http = self._trust, self._http
        request = http.build_request(
            call.method,
            self.base + call.path,
            params=_query_pairs(call.query),
            json=call.body,
            headers=headers,
            timeout=timeout,
        )
        try:
            return http.send(request, stream=True)
        except httpx2.TransportError as error:
            if _certificate(error) is None or not is_trust_renewed(trust):
                raise
        self._http, self._trust = self._client()  # the old client stays open: another thread may still read with it
        return self._http.send(request, stream=True)

    @contextmanager
    def _answer(self, call: Call, *, endless: bool = False) -> Iterator[httpx2.Response]:
        """Send a call and return a successful reply, its body not read yet."""
        if self._http.is_closed:
            raise BadInput(f"this connection to {self.url} was closed; connect again")
        seconds = self._seconds + call.seconds
        read = None if endless else seconds
        timeout = httpx2.Timeout(
            read, connect=min(_CONNECT_SECONDS, self._seconds), write=self._seconds, pool=self._seconds
        )
        try:
            with closing(self._send(call, timeout)) as answer:
                if answer.status_code >= 300:
                    problem = _problem(answer, self.url, seconds=seconds)
                    raise error_from_problem(answer.status_code, problem, where=self.url, ours=True)
                if http_stream.is_compressed(coding := answer.headers.get("content-encoding", "")):
                    raise Broken(
                        f"expected an uncompressed answer from {self.url}, got {coding[:30]}; "
                        "a proxy may have compressed it"
                    )
                yield answer
        except httpx2.TimeoutException:
            raise Unreachable(f"{self.url} did not answer in time; is it overloaded?") from None
        except httpx2.InvalidURL as error:
            raise BadInput(f"expected an address, got {self.url}: {error}") from error
        except httpx2.TransportError as error:
            if (why := _certificate(error)) is not None:
                raise untrusted_error(self.url, why) from error
            if "WRONG_VERSION_NUMBER" in str(error) and self.url.startswith("https://"):
                raise Unreachable(
                    f"the server at {self.url} does not speak TLS; try http://{self.url.removeprefix('https://')}"
                ) from error
            raise Unreachable(
                f"no connector answers at {self.url} ({error}); is it running, and is this its management listener?"
            ) from error


def post_small(url: str, ticket: str, body: Mapping[str, Any], *, seconds: float) -> Any:
    """Send a small request under a ticket to an owner's data plane; return its JSON. All of it must arrive within
    `seconds`."""
    headers = {"authorization": f"Bearer {ticket}", "content-type": _JSON}
    request = HttpRequest("POST", url, headers, json.dumps(body).encode(), seconds, accept=_JSON)
    text, where = http_stream.read_whole(request, most=_ANSWER_MAX), request.where
    try:
        return _parse(text, where)
    except (ValueError, RecursionError):
        raise Broken(f"expected JSON from {where}, got something else") from None


def _certificate(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """Return the certificate error that an error comes from, if any."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__  # the library does not always set a cause
    return error


def _query_pairs(query: Mapping[str, Any]) -> list[tuple[str, str | int | float | bool | None]]:
    """Return the parameters that have a value; each item of a list is one parameter."""
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in query.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if item not in (None, ""):
                pairs.append((name, str(item)))
    return pairs


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_fits = parts.port != 0  # reading the port raises ValueError for anything but a number up to 65535
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_fits and plain


def _read(answer: httpx2.Response, url: str, *, seconds: float) -> bytes:
    """Read all of a small reply. Raises: Unreachable if it trickles for over `seconds`; Broken if it is too large."""
    parts, size, begun = [], 0, time.monotonic()
    for part in answer.iter_raw():
        parts.append(part)
        if (size := size + len(part)) > _ANSWER_MAX:
            raise Broken(f"{url} sent more than {_ANSWER_MAX} bytes where JSON was expected")
        if (took := time.monotonic() - begun) > seconds and size < SLOWEST * took:
            raise Unreachable(f"{url} sent next to nothing for {seconds:g} s; it may be overloaded").after(took)
    return b"".join(parts)


def _parse(text: bytes, url: str) -> Any:
    """Parse JSON. Raises: ValueError or RecursionError if it is malformed; Broken if it has too many values."""
    if sum(map(text.count, (b",", b"[", b"{"))) > _VALUES_MAX:
        raise Broken(f"{url} sent more than {_VALUES_MAX} values in one answer")
    return json.loads(text)


def _problem(answer: httpx2.Response, url: str, *, seconds: float) -> dict[str, Any]:
    try:
        problem = _parse(_read(answer, url, seconds=seconds), url)
    except (ValueError, RecursionError):
        problem = None
    return problem if isinstance(problem, dict) else {}
