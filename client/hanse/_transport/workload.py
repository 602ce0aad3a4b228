"""Tokens that renew themselves: proof of a job's or service's identity, exchanged for a short-lived token.

A job has the file that its site projects (RFC 8693), a service a private key that signs assertions (RFC 7523).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from hanse.errors import BadInput, Broken, HanseError

_FILE_MAX = 16 * 2**10
JOB_MAX = 250  # characters
_RENEW_BEFORE = 60.0  # seconds before its end, or a fifth of its lifetime if that is less
RETRY_AFTER = 5.0  # seconds, where a renewal failed and the token has not ended
_ASSERTION_SECONDS = 60
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_SIGNING = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT = "urn:ietf:params:oauth:token-type:jwt"

Exchange = Callable[[Mapping[str, str]], Any]


class RenewedToken:
    """Renews itself without a person: the file is read again for each exchange, as it may be replaced.

    `job` is what the environment declares until the connector has answered; a job that the site signed goes before it.
    Threads may share it. A pickled one holds the file's path and the job, never a token or key.
    """

    def __init__(self, file: Path, job: str = "") -> None:
        self.file, self.job = file, job
        self._lock = Lock()
        self._text, self._renew_at, self._ends = "", 0.0, 0.0  # monotonic seconds

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.file}>"

    def _form(self, endpoint: str) -> dict[str, str]:
        """Return the form of an exchange at the token endpoint. Raises: BadInput for an unfit file."""
        raise NotImplementedError

    def current(self, exchange: Exchange, endpoint: str) -> str:
        """Return a token that lasts, from `exchange` at the token endpoint if there is none or it ends soon.

        A token that has not ended yet is returned where no new one can be had now.

        Raises:
            BadInput: the file cannot be read, or has no token.
            Broken: the connector's answer is malformed.
        """
        with self._lock:
            if not self._text or time.monotonic() >= self._renew_at:
                self._renew(exchange, endpoint)
            return self._text

    def _renew(self, exchange: Exchange, endpoint: str) -> None:
        begun = time.monotonic()
        try:
            text, seconds, signed = read_answer(exchange(self._form(endpoint)))
        except HanseError:
            if not self._text or begun >= self._ends:
                raise
            self._renew_at = min(begun + RETRY_AFTER, self._ends)
            return
        self._text, self._ends, self.job = text, begun + seconds, signed or self.job
        self._renew_at = self._ends - renewal_lead(seconds)

    def drop(self, text: str) -> None:
        """Forget a token that the connector refused, so that the next call exchanges again."""
        with self._lock:
            if self._text == text:
                self._text = ""


class WorkloadToken(RenewedToken):
    """The token of a job, exchanged for the one in the file that its site projects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkloadToken, (self.file, self.job)

    def _form(self, endpoint: str) -> dict[str, str]:
        form = {"grant_type": GRANT, "subject_token_type": _JWT, "subject_token": _read_file(self.file)}
        return form | ({"job": self.job} if self.job else {})


class ServiceToken(RenewedToken):
    """The token of a service, for assertions that the private key in its file signs. The key is never sent.

    `audience`: as the connector expects it; empty: the address of its token endpoint.
    """

    def __init__(self, client_id: str, file: Path, *, audience: str = "", job: str = "") -> None:
        super().__init__(file, job)
        self.client_id, self.audience = client_id, audience

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ServiceToken, self.client_id, self.file, audience=self.audience, job=self.job), ()

    def _form(self, endpoint: str) -> dict[str, str]:
        form = {
            "grant_type": "client_credentials", "client_id": self.client_id, "client_assertion_type": _ASSERTION,
            "client_assertion": self._sign(self.audience or endpoint),
        }  # fmt: skip
        return form | ({"job": self.job} if self.job else {})

    def _sign(self, audience: str) -> str:
        from joserfc import jwt

        key, now = _read_key(self.file), int(time.time())
        alg = _SIGNING[str(key.as_dict(private=False).get("crv", key.key_type))]
        claims = {
            "iss": self.client_id, "sub": self.client_id, "aud": audience, "iat": now,
            "exp": now + _ASSERTION_SECONDS, "jti": uuid4().hex,
        }  # fmt: skip
        return jwt.encode({"alg": alg, "kid": key.kid or key.thumbprint()}, claims, key, algorithms=[alg])


def make_key(file: Path) -> dict[str, Any]:
    """Write a new private key (JWK, P-256) to a new file of mode 0600; return its public JWK set.

    Raises: BadInput if the file exists, or cannot be written.
    """
    from joserfc.jwk import ECKey, KeySet

    key = ECKey.generate_key("P-256", auto_kid=True)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(key.as_dict(private=True), out)
    except OSError as error:
        raise BadInput(f"cannot write the key to {file}: {error.strerror}; name a new file") from None
    return dict(KeySet([key]).as_dict(private=False))


def _read_key(file: Path) -> Any:
    """Return the private key of a file as joserfc has it. Raises: BadInput."""
    from joserfc.errors import JoseError
    from joserfc.jwk import import_key

    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise BadInput(f"{file} holds a private key and can be read by other users; run `chmod 600 {file}`")
            key = import_key(json.loads(opened.read(_FILE_MAX + 1)))
        fits = key.is_private and str(key.as_dict(private=False).get("crv", key.key_type)) in _SIGNING
    except OSError as error:
        raise BadInput(f"cannot read the key in {file}: {error.strerror}; check HANSE_CLIENT_KEY") from None
    except (JoseError, ValueError, TypeError, LookupError, RecursionError):
        fits = False
    if not fits:
        raise BadInput(f"expected a private JWK in {file}, got something else; `hanse token key` makes one")
    return key


def _read_file(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_FILE_MAX + 1)
    except OSError as error:
        raise BadInput(
            f"cannot read the workload's token in {file}: {error.strerror}; check the projected volume"
        ) from None
    text = data.decode("ascii", "replace").strip()
    if len(data) > _FILE_MAX or text.count(".") != 2 or not text.isprintable() or " " in text:
        raise BadInput(f"expected a signed token (JWT) in {file}, got something else; check the projected volume")
    return text


def renewal_lead(seconds: float) -> float:
    """Return how long before its end a token that lasts `seconds` is renewed."""
    return min(_RENEW_BEFORE, seconds / 5)


def read_answer(answer: Any) -> tuple[str, float, str]:
    """Return the token, its lifetime in seconds, and the job that it acts for. Raises: Broken for another form."""
    token = answer.get("access_token") if isinstance(answer, dict) else None
    seconds = answer.get("expires_in") if isinstance(answer, dict) else None
    fits = isinstance(token, str) and token and all("!" <= sign <= "~" for sign in token)
    if not fits or isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise Broken("expected a token and its lifetime from the connector's token exchange, got another form")
    return str(token), float(seconds), _read_job(answer.get("job"))


def _read_job(job: object) -> str:
    """Return the job of the connector's answer, empty if a header cannot hold it. Older connectors name none."""
    return job if isinstance(job, str) and fits_header(job) else ""


def fits_header(job: str) -> bool:
    """Return whether the header that names a job to owners can hold it."""
    return job.isascii() and job.isprintable() and len(job) <= JOB_MAX
