"""Further sources of facts about participants, by the entry point `hanse.fact_sources`: a register of certificates,
a permit authority. One object each (`FactSource`); it supplies the words it declares and no others.

A source that fails, is late or says too much supplies nothing: its facts stay unknown, and unknown never permits.
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
        """What is known of a participant now, each with who says so and until when."""
        ...


def load(group: str = GROUP) -> tuple[FactSource, ...]:
    """The installed sources, in order of their names, made known to the vocabulary."""
    found: list[FactSource] = []
    for entry in sorted(entry_points(group=group), key=lambda point: point.name):
        source: FactSource = entry.load()
        announce(source)
        found.append(source)
    return tuple(found)


def announce(source: FactSource) -> None:
    """Let the vocabulary know who can supply what. ValueError for words that are not to be had from a plugin."""
    vocabulary.register(sources={source.NAME: source.HELP})
    for key in source.SUPPLIES:
        word = vocabulary.operand(vocabulary.expand(key))
        if word is None:
            raise ValueError(f"the source {source.NAME!r} supplies {key}, which is no word of the vocabulary")
        if source.NAME in word.sources:
            continue
        if "owner" not in word.sources:  # membership, identity, purpose, time and counters are not for others to say
            raise ValueError(f"the source {source.NAME!r} cannot supply {key}: it comes from {word.sources} alone")
        vocabulary.OPERANDS[word.name] = replace(word, sources=(*word.sources, source.NAME))


async def ask(sources: Iterable[FactSource], participant: str) -> Facts:
    """What all sources say together; a later one wins."""
    said = await asyncio.gather(*(_ask(source, participant) for source in sources))
    facts = Facts()
    for one in said:
        facts = facts.adding(one)
    return facts


async def _ask(source: FactSource, participant: str) -> Mapping[str, Fact]:
    try:
        async with asyncio.timeout(_SECONDS):
            said = await source.facts(participant)
    except Exception as error:  # noqa: BLE001  # whatever a plugin raises, its facts stay unknown
        _log.warning("fact_source_failed", source=source.NAME, why=f"{type(error).__name__}: {error}"[:200])
        return {}
    return {key: fact for key, fact in said.items() if key in source.SUPPLIES}
