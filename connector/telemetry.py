"""Logging and metrics set-up. Knows nothing of what is logged, except that secrets never are."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

correlation: ContextVar[str] = ContextVar("correlation", default="")

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


def set_up_logging(*, level: str, as_json: bool) -> None:
    """Send structured lines to standard error: text for people, or JSON lines for machines."""
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> Any:
    """A bound structured logger."""
    return structlog.get_logger().bind(part=name)


class Metrics:
    """The connector's figures, in a registry of its own so that two connectors fit in one test process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hanse_requests_total", "HTTP requests", ["listener", "status"], registry=self.registry)
        self.events = Counter("hanse_events_total", "Events published", ["kind"], registry=self.registry)
        self.rows = Counter("hanse_rows_out_total", "Rows that left", registry=self.registry)
        self.bytes = Counter("hanse_bytes_out_total", "Arrow bytes that left", registry=self.registry)
        self.streams = Gauge("hanse_streams_live", "Reads running now", registry=self.registry)
        self.outbox = Gauge("hanse_outbox_waiting", "Protocol messages not delivered yet", registry=self.registry)
        self.query_seconds = Histogram("hanse_query_seconds", "Time of one read, to its end", registry=self.registry)
