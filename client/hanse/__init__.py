"""Hanse: governed Arrow streams and federated queries from a data space.

    import hanse

    space = hanse.connect()  # or hanse.connect(url, token)
    flights = space.agree("north/flights", purpose="dpv:ScientificResearch")
    for batch in flights.stream(columns=["distance", "dep_delay"]):
        ...

Names load when they are first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanse.client import Dataset, Space
    from hanse.errors import (
        AccessExpired,
        AccessRevoked,
        ApprovalNeeded,
        BadInput,
        Broken,
        Busy,
        Conflict,
        DigestMismatch,
        GroupsLeftOut,
        HanseError,
        NegotiationFailed,
        NegotiationPending,
        NotFound,
        QuotaSpent,
        Refused,
        StreamFailed,
        StreamIncomplete,
        Unauthenticated,
        Unreachable,
        Unverified,
    )
    from hanse.notebook.found import Entry
    from hanse.stream import Stream

_HOMES = {"Dataset": "client", "Entry": "notebook.found", "Space": "client", "Stream": "stream"}
__all__ = [
    "AccessExpired",
    "AccessRevoked",
    "ApprovalNeeded",
    "BadInput",
    "Broken",
    "Busy",
    "Conflict",
    "Dataset",
    "DigestMismatch",
    "Entry",
    "GroupsLeftOut",
    "HanseError",
    "NegotiationFailed",
    "NegotiationPending",
    "NotFound",
    "QuotaSpent",
    "Refused",
    "Space",
    "Stream",
    "StreamFailed",
    "StreamIncomplete",
    "Unauthenticated",
    "Unreachable",
    "Unverified",
    "connect",
]


def connect(url: str = "", token: str = "", *, seconds: float = 30.0) -> Space:
    """Connect to a participant's connector. Defaults come from HANSE_URL and HANSE_TOKEN, a service's key
    (HANSE_CLIENT_ID and HANSE_CLIENT_KEY), a job's projected token (HANSE_WORKLOAD_TOKEN_FILE, or
    /var/run/secrets/hanse/token), or `hanse login`. The token of a service or job is renewed by itself, and the
    connector's log has its HANSE_JOB_ID.

    `seconds`: the time limit of a call.

    Raises:
        BadInput: the address, the token or the login file is malformed.

    Example:
        space = hanse.connect("http://127.0.0.1:8081", token)
    """
    from hanse.client import Space
    from hanse.config import find_connection

    where = find_connection(url=url, token=token)
    return Space(where.url, where.token, seconds=seconds)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"hanse has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"hanse.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(shell: Any) -> None:
    """Give a notebook the cell magic `%%hanse`; `%load_ext hanse` calls this."""
    from hanse.notebook.cell_magic import register

    register(shell)
