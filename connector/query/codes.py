"""Ends that have a code: what a worker tells the main process instead of the engine's words."""

from __future__ import annotations

from typing import Any


class Coded(Exception):
    """A job that ended for a reason with a code; `facts` are for the caller."""

    def __init__(self, code: str, **facts: Any) -> None:
        super().__init__(code)
        self.code = code
        self.facts = facts
