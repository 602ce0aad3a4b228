"""The authenticated sender of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A participant of the data space; `id` is its DID."""

    id: str
