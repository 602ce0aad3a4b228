"""YAML text to plain items that remember their line: safe, small, and without YAML's surprises.

Every scalar stays the text that was written (`NO` is Norway, not false; a time keeps its zone). Anchors,
aliases and tags are refused, size and depth are capped. Knows nothing of offers.
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
    """A text, a list or a mapping, and the line on which it starts."""

    value: str | list[YamlItem] | dict[str, YamlItem]
    line: int

    def text(self, expected: str = "a text") -> str:
        """Its text; refused when it is a list or a mapping."""
        if not isinstance(self.value, str):
            raise error_at(self.line, expected, describe_item(self), "write it on one line")
        return self.value

    def items(self) -> list[YamlItem]:
        """Its members; a single text is a list of one."""
        if isinstance(self.value, dict):
            raise error_at(
                self.line, "a list such as [a, b]", describe_item(self), "write the values in square brackets"
            )
        return self.value if isinstance(self.value, list) else [self]

    def texts(self) -> tuple[str, ...]:
        """Its members' texts; an empty list is refused."""
        found = tuple(item.text() for item in self.items())
        if not found:
            raise error_at(self.line, "at least one value", "an empty list", "leave the word out instead")
        return found

    def mapping(self) -> dict[str, YamlItem]:
        """Its words with their values; an empty one is refused: it says as much as no word, and looks like more."""
        if not isinstance(self.value, dict):
            raise error_at(
                self.line, "a mapping such as {word: value}", describe_item(self), "write it in curly brackets"
            )
        if not self.value:
            raise error_at(self.line, "at least one word", "an empty mapping", "leave the word before it out instead")
        return self.value


def load_yaml(text: str) -> YamlItem:
    """The one document in `text`; PolicyUnreadable with its line where it is no plain YAML."""
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
    """Caps and forbidden features, checked on each event before anything is made of it."""

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
    """How an item is named in a message."""
    if isinstance(item.value, str):
        return repr(item.value if len(item.value) <= 60 else item.value[:57] + "...")
    return "a list" if isinstance(item.value, list) else "a mapping"


def error_at(line: int, expected: str, came: str, do: str) -> PolicyUnreadable:
    """The error for one place: what was expected, what came, what to do."""
    return PolicyUnreadable(f"line {line}: expected {expected}, got {came}; {do}", rule=f"line {line}")


def unknown_word(line: int, word: str, known: Iterable[str], *, what: str) -> PolicyUnreadable:
    """The error for a word that is not known, with the nearest one and the list of those that are."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else "choose one of these"
    return error_at(line, f"{what}: one of {', '.join(names)}", repr(word), hint)
