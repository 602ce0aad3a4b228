"""Set-up of logging and metrics, and the middleware that adds correlation ids. Hides secrets in log lines."""

from __future__ import annotations

import logging
import re
import sys
import uuid
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

correlation: ContextVar[str] = ContextVar("correlation", default="")

_CORRELATION = re.compile(r"[A-Za-z0-9:._-]{1,128}")
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)
_SECRET_WORDS = ("token", "authorization", "secret", "password", "private", "ticket")


def _hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in _SECRET_WORDS) and event[key]:
            event[key] = "***"
    return event


def _add_correlation(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    if (value := correlation.get()) and "correlation" not in event:
        event["correlation"] = value
    return event


class _Lines(structlog.PrintLogger):
    """Writes log lines to a file. A line that cannot be written (full disk, closed pipe) is dropped silently, as error
    handlers must not fail because of logging."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            super().msg(message)

    debug = info = warning = error = critical = msg


def _lines(file: TextIO) -> Any:
    return lambda *_: _Lines(file)


def set_up_logging(*, level: str, as_json: bool) -> None:
    """Send structured log lines to standard error, as text or as JSON lines.

    Lines of Python's `logging` go there as well, and failures to write them are ignored, too.
    """
    logging.raiseExceptions = False
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # never the values of locals: they hold secrets
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_correlation,
            _hide_secrets,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_lines(sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> Any:
    """A structured logger for a part of the program, configured at its first line.

    `bind` would configure it at import, before `set_up_logging` installs the filter for secrets.
    """
    return structlog.get_logger(part=name)


class Metrics:
    """The connector's metrics, in a registry of their own, so that a process can hold several connectors in tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hanse_requests_total", "HTTP requests", ["listener", "status"], registry=self.registry)
        self.events = Counter("hanse_events_total", "Events published", ["kind"], registry=self.registry)
        self.rows = Counter("hanse_rows_out_total", "Rows that left", registry=self.registry)
        self.bytes = Counter("hanse_bytes_out_total", "Arrow bytes that left", registry=self.registry)
        self.streams = Gauge("hanse_streams_live", "Reads running now", registry=self.registry)
        self.streams_waiting = Gauge("hanse_streams_waiting", "Reads that wait for their turn", registry=self.registry)
        self.queries = Gauge("hanse_queries_live", "Questions over several owners running now", registry=self.registry)
        self.queries_waiting = Gauge(
            "hanse_queries_waiting", "Questions over several owners that wait for their turn", registry=self.registry
        )
        self.outbox = Gauge("hanse_outbox_waiting", "Protocol messages not delivered yet", registry=self.registry)
        self.witnessed = Counter(
            "hanse_witness_answers_total",
            "Checkpoints of other logs by our answer",
            ["outcome"],
            registry=self.registry,
        )
        self.cosigned = Counter(
            "hanse_cosignatures_total", "Heads of our log by the witness's answer", ["outcome"], registry=self.registry
        )
        self.query_seconds = Histogram("hanse_query_seconds", "Time of one read, to its end", registry=self.registry)


class Observed:
    """ASGI middleware: correlation ids, request counts by status, safe headers. Copies no body."""

    def __init__(self, app: ASGIApp, *, listener: str, metrics: Metrics) -> None:
        self._app = app
        self._listener = listener
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-correlation-id", b"").decode("latin-1")
        number = given if _CORRELATION.fullmatch(given) else uuid.uuid4().hex
        token = correlation.set(number)
        extra = [(b"x-correlation-id", number.encode()), *_SAFE_HEADERS]

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(self._listener, str(message["status"])).inc()
                present = {name for name, _ in message["headers"]}
                added = [pair for pair in extra if pair[0] not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            correlation.reset(token)
