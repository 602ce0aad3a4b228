"""The person, token or job that the current management request acts for, as log records name it.

`management.sign_on.auth` sets it as it lets a request in. The store adds it to the events of that request. Work outside
management requests has none.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

JOB_MAX = 250  # characters of the id of a training job


@dataclass(frozen=True, slots=True)
class Acting:
    """`name` is the actor of the request's events; the rest says more about it, and empty fields are not recorded."""

    name: str
    subject: str = ""  # issuer and subject of a person or workload: `https://issuer.example#subject`
    token: str = ""  # id of a personal access token
    job: str = ""  # id of a training job


_current: ContextVar[Acting | None] = ContextVar("acting", default=None)


def set_current(acting: Acting | None) -> None:
    """Name the caller for the rest of this request and the tasks that it starts."""
    _current.set(acting)


def current() -> Acting | None:
    return _current.get()
