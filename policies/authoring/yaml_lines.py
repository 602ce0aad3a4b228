"""Parses YAML to items that keep their line, with size and depth limits.

Every scalar stays the text that was written (`NO` is Norway, not false; a time keeps its zone). Anchors, aliases and
tags are refused. Knows nothing of offers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from policies.errors import PolicyUnreadable
from policies.evaluation import values

MAX_TEXT = 256_000
MAX_ITEMS = 10_000
MAX_DEPTH = 40


@dataclass(frozen=True, slots=True)
class YamlItem:
    """A text, list or mapping, and its first line."""

    value: str | list[YamlItem] | dict[str, YamlItem]
    line: int

    def text(self, expected: str = "a text") -> str:
        """Return its text; refuse a list or mapping."""
        if not isinstance(self.value, str):
            raise error_at(self.line, expected, describe_item(self), "write it on one line")
        return self.value

    def items(self) -> list[YamlItem]:
        """Return its members; a single text is a list of one."""
        if isinstance(self.value, dict):
            raise error_at(
                self.line, "a list such as [a, b]", describe_item(self), "write the values in square brackets"
            )
        return self.value if isinstance(self.value, list) else [self]

    def texts(self) -> tuple[str, ...]:
        """Return the texts of its members; refuse an empty list."""
        found = tuple(item.text() for item in self.items())
        if not found:
            raise error_at(self.line, "at least one value", "an empty list", "leave the word out instead")
        return found

    def mapping(self) -> dict[str, YamlItem]:
        """Return its words with their values; refuse an empty mapping, which would look like a rule and mean
        nothing.
        """
        if not isinstance(self.value, dict):
            raise error_at(
                self.line, "a mapping such as {word: value}", describe_item(self), "write it in curly brackets"
            )
        if not self.value:
            raise error_at(self.line, "at least one word", "an empty mapping", "leave the word before it out instead")
        return self.value


def load_yaml(text: str) -> YamlItem:
    """Return the single document in `text`.

    Raises: PolicyUnreadable with the line when it is not plain YAML.
    """
    if len(text) > MAX_TEXT:
        raise PolicyUnreadable(f"expected at most {MAX_TEXT} characters, got {len(text)}; is this an offer?")
    try:
        node = yaml.compose(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        raise error_at(
            mark.line + 1 if mark else 1, "YAML", problem.problem or "something else", "check indentation and brackets"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as problem:
        raise PolicyUnreadable(f"expected YAML, got text that is not: {str(problem)[:200]}") from None
    if node is None:
        raise PolicyUnreadable("expected an offer, got an empty text; start with `offer: name-of-the-offer`")
    return _item(node)


class _PlainLoader(yaml.SafeLoader):
    """Checks limits and forbidden features on each event, before anything is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def get_event(self) -> yaml.Event:
        event: yaml.Event = super().get_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise error_at(line, "plain values", "an anchor or alias", "write the value out")
        if getattr(event, "tag", None):
            raise error_at(line, "plain values", "a tag", "remove it")
        self._depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        self._count += isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if self._depth > MAX_DEPTH or self._count > MAX_ITEMS:
            raise error_at(line, f"at most {MAX_ITEMS} values, {MAX_DEPTH} deep", "more", "split the offer")
        return event


def _item(node: yaml.Node) -> YamlItem:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        return YamlItem(_text(node.value, line), line)
    if isinstance(node, yaml.SequenceNode):
        return YamlItem([_item(member) for member in node.value], line)
    found: dict[str, YamlItem] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise error_at(at, "a word before the colon", "a list or mapping", "put the word first")
        word = _text(key.value, at)
        if word in found:
            raise error_at(at, f"{word} once", "a second one", "keep one of them")
        found[word] = _item(value)
    return YamlItem(found, line)


def _text(value: str, line: int) -> str:
    if not values.is_text(value):
        raise error_at(
            line, f"a text of at most {values.MAX_TEXT} characters", "something longer or broken", "shorten it"
        )
    return value


def describe_item(item: YamlItem) -> str:
    """Return how a message names an item."""
    if isinstance(item.value, str):
        return repr(item.value if len(item.value) <= 60 else item.value[:57] + "...")
    return "a list" if isinstance(item.value, list) else "a mapping"


def error_at(line: int, expected: str, came: str, do: str) -> PolicyUnreadable:
    """Return the error for a line: what was expected, what came, what to do."""
    return PolicyUnreadable(f"line {line}: expected {expected}, got {came}; {do}", rule=f"line {line}")


def unknown_word(line: int, word: str, known: Iterable[str], *, what: str) -> PolicyUnreadable:
    """Return the error for an unknown word, with the nearest known word and the list of known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "choose one of these"
    return error_at(line, f"{what}: one of {', '.join(names)}", repr(word), hint)
