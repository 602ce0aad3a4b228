"""Value types of a federated query: the question, its progress, and the owners missing from its answer.

Must not import the planner's rules or the network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from connector.engine.pool.protocol import ARROW
from connector.errors import ConnectorError, Limited, PeerFailed, PeerRefused, Unavailable
from connector.federation.planner.model import DataLayout, Fragment, Mode

_LATE = ("time_limit", "streams_max", "streams_of_consumer", "concurrency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question to several owners. `rows` limits the answer; `nbytes` limits the total size of the owners' answers.

    `format`: an Arrow stream, or a file format of `connector.engine.worker.write.file_formats`, without end record.
    """

    sql: str
    purpose: str = ""
    mode: Mode = Mode.FULL
    partial: bool = False  # leave out unreachable owners if the answer stays meaningful
    seconds: float | None = None
    rows: int | None = None
    nbytes: int | None = None
    epsilon: float | None = None  # privacy budget that each owner's noisy answer may spend
    format: str = ARROW  # of the answer
    codec: str = "none"  # of the answer, if it is a stream
    wire: str = "zstd"  # codec of the owners' answers
    layout: DataLayout = field(default_factory=DataLayout)
    query_id: str = ""  # chosen by the caller to follow progress; otherwise generated


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """An owner's share that is missing from an answer, and why."""

    owner: str
    participant: str
    dataset: str
    agreement: str
    stage: str
    code: str
    reason: str

    @classmethod
    def of(
        cls, error: ConnectorError, owner: str, participant: str, dataset: str, *, agreements: Sequence[str]
    ) -> Missing:
        return cls(
            owner=owner,
            participant=participant,
            dataset=dataset,
            agreement=",".join(agreements),
            stage=str(error.facts.get("stage", "")),
            code=error.code,
            reason=error.message[:300],
        )

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class QueryProgress:
    """A question's state: waiting, planning, asking, merging, then its outcome."""

    query_id: str
    by: str
    sql: str
    purpose: str
    started_at: float
    state: str = "waiting"
    owners: list[dict[str, Any]] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    fragments: tuple[Fragment, ...] = ()
    rows: int = 0
    ms: int = 0
    planning_ms: float = 0.0  # of processor time
    code: str = ""
    reason: str = ""
    misleading: str = ""  # why a partial answer would be misleading
    task: asyncio.Task[Any] | None = None

    def miss(self, missing: Missing, question: Question, error: ConnectorError) -> None:
        """Record a missing share if a partial answer is allowed and meaningful. Raises: the owner's error otherwise."""
        if not question.partial or not is_excusable(error):
            raise error
        if self.misleading:
            raise type(error)(
                f"{error.message}. There is no partial answer either: {self.misleading}",
                code=error.code,
                private=error.private,
                **error.facts,
            )
        self.missing.append(missing)

    def to_json(self) -> dict[str, Any]:
        gone = {(one.owner, one.dataset) for one in self.missing}
        return {
            "id": self.query_id,
            "by": self.by,
            "sql": self.sql,
            "purpose": self.purpose,
            "started_at": self.started_at,
            "state": self.state,
            "owners": self.owners,
            "missing": [one.to_json() for one in self.missing],
            "waiting": [
                {"owner": one.owner, "fragment": one.id, "dataset": ",".join(one.datasets)}
                for one in self.fragments
                if self.state != "merging"
                and all(told["fragment"] != one.id for told in self.owners)
                and (one.owner, ",".join(one.datasets)) not in gone
            ],
            "rows": self.rows,
            "ms": self.ms,
            "code": self.code,
            "reason": self.reason,
        }


def is_excusable(error: ConnectorError) -> bool:
    """Whether the owner is unavailable (down, disconnected, busy or late) instead of refusing."""
    if isinstance(error, PeerRefused):
        return False
    return isinstance(error, PeerFailed | Unavailable) or (isinstance(error, Limited) and error.code in _LATE)
