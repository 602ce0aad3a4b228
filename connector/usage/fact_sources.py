"""Plugins that supply facts about participants, such as a register of certificates or a permit authority.

A plugin is a `FactSource` under the entry point `hanse.fact_sources`. It supplies only the facts that it declares. If
it fails or is late, its facts stay unknown, and unknown never permits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Protocol

from connector.telemetry import logger
from policies import vocabulary
from policies.evaluation.evaluate import Fact, Facts

GROUP = "hanse.fact_sources"
_SECONDS = 2.0
_log = logger("facts")


class FactSource(Protocol):
    """What a plugin offers. `HELP` completes "it can come from ..."; `SUPPLIES` are short keys such as `ds:permit`."""

    NAME: str
    HELP: str
    SUPPLIES: tuple[str, ...]

    async def facts(self, participant: str) -> Mapping[str, Fact]:
        """The facts about a participant now, by short key, each with its source and expiry."""
        ...


def load(group: str = GROUP) -> tuple[FactSource, ...]:
    """Load the installed sources, ordered by name, and register them with the vocabulary. Raises: ValueError."""
    found: list[FactSource] = []
    for entry in sorted(entry_points(group=group), key=lambda point: point.name):
        source: FactSource = entry.load()
        announce(source)
        found.append(source)
    return tuple(found)


def announce(source: FactSource) -> None:
    """Register the facts of a source with the vocabulary. Raises: ValueError for facts that plugins cannot supply."""
    vocabulary.register(sources={source.NAME: source.HELP})
    for key in source.SUPPLIES:
        word = vocabulary.operand(vocabulary.expand(key))
        if word is None:
            raise ValueError(f"the source {source.NAME!r} supplies {key}, which the vocabulary does not know")
        if source.NAME in word.sources:
            continue
        if "owner" not in word.sources:  # never membership, identity, purpose, time or counters
            raise ValueError(f"the source {source.NAME!r} cannot supply {key}: it comes from {word.sources} alone")
        vocabulary.OPERANDS[word.name] = replace(word, sources=(*word.sources, source.NAME))


async def ask(sources: Iterable[FactSource], participant: str) -> Facts:
    """The facts of all sources together; a later source wins."""
    answers = await asyncio.gather(*(_ask(source, participant) for source in sources))
    facts = Facts()
    for answer in answers:
        facts = facts.adding(answer)
    return facts


async def _ask(source: FactSource, participant: str) -> Mapping[str, Fact]:
    try:
        async with asyncio.timeout(_SECONDS):
            answer = await source.facts(participant)
    except Exception as error:  # noqa: BLE001  # whatever a plugin raises, its facts stay unknown
        _log.warning("fact_source_failed", source=source.NAME, why=f"{type(error).__name__}: {error}"[:200])
        return {}
    return {key: fact for key, fact in answer.items() if key in source.SUPPLIES}
