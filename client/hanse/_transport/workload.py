"""A job's token: the file that its site projects, exchanged at the connector for a short-lived token (RFC 8693)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from hanse.errors import BadInput, Broken, HanseError

_FILE_MAX = 16 * 2**10
JOB_MAX = 250  # characters
_RENEW_BEFORE = 60.0  # seconds before its end, or a fifth of its lifetime if that is less
_RETRY_AFTER = 5.0  # seconds, where a renewal failed and the token has not ended
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT = "urn:ietf:params:oauth:token-type:jwt"

Exchange = Callable[[Mapping[str, str]], Any]


class WorkloadToken:
    """Renews itself without a person: the file is read again for each exchange, as the site replaces it.

    `job` is what the environment declares until the connector has answered; a job that the site signed goes before it.
    Threads may share it. A pickled one holds the file's path and the job, never a token.
    """

    def __init__(self, file: Path, job: str = "") -> None:
        self.file, self.job = file, job
        self._lock = Lock()
        self._text, self._renew_at, self._ends = "", 0.0, 0.0  # monotonic seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkloadToken, (self.file, self.job)

    def __repr__(self) -> str:
        return f"<WorkloadToken {self.file}>"

    def current(self, exchange: Exchange) -> str:
        """Return a token that lasts, from `exchange` if there is none or it ends soon.

        A token that has not ended yet is returned where no new one can be had now.

        Raises:
            BadInput: the file cannot be read, or has no token.
            Broken: the connector's answer is malformed.
        """
        with self._lock:
            if not self._text or time.monotonic() >= self._renew_at:
                self._renew(exchange)
            return self._text

    def _renew(self, exchange: Exchange) -> None:
        begun = time.monotonic()
        try:
            text, seconds, signed = read_answer(exchange(self._form()))
        except HanseError:
            if not self._text or begun >= self._ends:
                raise
            self._renew_at = min(begun + _RETRY_AFTER, self._ends)
            return
        self._text, self._ends, self.job = text, begun + seconds, signed or self.job
        self._renew_at = self._ends - min(_RENEW_BEFORE, seconds / 5)

    def drop(self, text: str) -> None:
        """Forget a token that the connector refused, so that the next call exchanges again."""
        with self._lock:
            if self._text == text:
                self._text = ""

    def _form(self) -> dict[str, str]:
        form = {"grant_type": _GRANT, "subject_token_type": _JWT, "subject_token": _read_file(self.file)}
        return form | ({"job": self.job} if self.job else {})


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
