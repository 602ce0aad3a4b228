"""The fence between the management API and the engine: only a route that is marked as raw data reaches a worker.

`management.sign_on.auth` sets it as it lets a request in; the pool of workers asks it before a job of the connector's
own. Work outside management requests is not concerned: the data plane has the gate and its own records.
"""

from __future__ import annotations

from contextvars import ContextVar

from connector.errors import ConnectorError

_allowed: ContextVar[bool] = ContextVar("raw_data_allowed", default=True)


def allow(marked: bool) -> None:
    """Let the rest of this request, and the tasks that it starts, reach raw data or not."""
    _allowed.set(marked)


def check() -> None:
    """ConnectorError (500, nothing was read) in a request whose route is not marked as raw data."""
    if not _allowed.get():
        raise ConnectorError(
            "expected a route that is marked as raw data, got one without a mark, so nothing was read; "
            "mark it with its scope and records (`Tokens.require_raw`)",
            code="raw_data_unmarked",
        )
