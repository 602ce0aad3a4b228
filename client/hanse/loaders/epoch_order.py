"""The order of an epoch, who gets which part of it, and where everybody is. Pure: no clock, no network.

The **global sequence** of an epoch is a function of snapshot, seed, epoch and window alone:
1. the blocks of all datasets, one dataset after the other, are permuted by (seed, epoch);
2. within a block the rows stand as they are stored, or, with a window of n, each run of n rows of the block is
   permuted by (seed, epoch, block, number of the run).
How many read it does not matter. With `parts` readers, the blocks that are left are dealt out in turn, so each reader
has a part of the sequence, in its order; together they have all of it, each row once.

**Where everybody is**: a `Share` is one reader's place (blocks done, and a `Mark` in the next one). The shares of all
readers make a `Progress`: everything below a place is done except what is `open`. A progress can be dealt out again to
any number of readers, and that is how their number changes in the middle of an epoch.
"""

from __future__ import annotations

import hashlib
import operator
import random
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from hanse.errors import BadInput
from hanse.plan import Plan

T = TypeVar("T")

_VERSION = 1
_KEY_BITS = 63  # and the sign


def number(name: str, value: Any) -> int:
    """A whole number as Python's own, whatever library it is of. BadInput where it is none: 7.0 is another key than 7,
    and so another order, and True is a slip."""
    try:
        if value is not True and value is not False:
            return operator.index(value)
    except TypeError:
        pass
    raise BadInput(f"expected {name} to be a whole number, got {value!r}")


def key(name: str, value: Any) -> int:
    """A `number` that orders hang on, of 64 bits. BadInput for a larger one, which no framework can keep."""
    if (found := number(name, value)).bit_length() > _KEY_BITS:
        raise BadInput(f"expected {name} from -2**63 + 1 to 2**63 - 1, got a number of {found.bit_length()} bits")
    return found


def count(name: str, value: Any, *, least: int = 1) -> int:
    """A `number` of things. BadInput where it is below `least`."""
    found = number(name, value)
    if found < least:
        raise BadInput(f"expected {name} to be at least {least}, got {found}")
    return found


def reader(part: Any, parts: Any, *, said: tuple[str, str] = ("part", "parts")) -> tuple[int, int]:
    """Which one of how many, counted from 0; `said`: as the caller names them. BadInput where there is no such one: its
    rows would be another's, or nobody's."""
    one, all_of_them = said
    part, parts = number(one, part), count(all_of_them, parts)
    if not 0 <= part < parts:
        raise BadInput(f"expected {one} to be from 0 to {parts - 1}, as {all_of_them} is {parts}; got {part}")
    return part, parts


def chosen(part: Any, parts: Any, *, said: tuple[str, str] = ("part", "parts")) -> tuple[int, int] | None:
    """As `reader`; None where neither is given. BadInput for one without the other: whoever forgets which one it is
    would have the rows of the first."""
    if part is None and parts is None:
        return None
    if part is None or parts is None:
        one, all_of_them = said
        raise BadInput(
            f"expected {one} and {all_of_them} together, or neither; got {one}={part}, {all_of_them}={parts}"
        )
    return reader(part, parts, said=said)


def place(state: Mapping[str, Any], plan: Plan, blocks: Sequence[int]) -> tuple[int, int]:
    """Which of some blocks a state of Hugging Face is in, and how many rows of it are done. BadInput for a place that
    no state has: rows would be lost or come twice."""
    at, rows = (count(name, state.get(name), least=0) for name in ("shard_idx", "shard_example_idx"))
    if at > len(blocks) or (at == len(blocks) and rows):
        raise BadInput(
            f"expected a state that state_dict() gave, got one of {rows} rows of block {at} of {len(blocks)}, counted "
            "from 0"
        )
    if rows:
        plan.check_rows(blocks[at], rows)
    return at, rows


@dataclass(frozen=True, slots=True)
class Order:
    """What fixes the sequence. `identity` stands for snapshots and plans. No seed: the blocks as they are stored.

    `shown` stands for what the agreements show of it. It changes no order of blocks, but within one a count of rows
    means something where it is the same only.
    """

    identity: str
    blocks: int
    seed: int | None = None
    epoch: int = 0
    window: int = 0
    shown: str = ""

    def permutation(self) -> list[int]:
        """The number of the block at each place of the epoch."""
        if self.seed is None:
            return list(range(self.blocks))
        return _shuffled(self.blocks, f"{self.seed}/{self.epoch}")

    def within(self, block: int, run: int, rows: int) -> list[int] | None:
        """The order of the rows of one run; None where they stay as they are."""
        if not self.window or self.seed is None:
            return None
        return _shuffled(rows, f"{self.seed}/{self.epoch}/{block}/{run}")


def _shuffled(count: int, key: str) -> list[int]:
    """A permutation that is the same in every version of Python: only `random()` is promised to stay as it is."""
    draw = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")).random  # noqa: S311
    drawn = [draw() for _ in range(count)]
    return sorted(range(count), key=drawn.__getitem__)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a block: `row` rows are done, and `emitted` of the run that begins there.

    `cursor` (the owner's) stands for the place after `cursor_row` rows, at or before `row`: reading goes on from it.
    """

    row: int = 0
    emitted: int = 0
    cursor: str = ""
    cursor_row: int = 0


START = Mark()


@dataclass(frozen=True, slots=True)
class Progress:
    """Every place below `below` is done, except those in `open`, which are done up to their mark."""

    below: int = 0
    open: Mapping[int, Mark] = field(default_factory=dict)

    def left(self, blocks: int) -> list[int]:
        """The places that are not done, in order."""
        return [*sorted(self.open), *range(self.below, blocks)]


@dataclass(frozen=True, slots=True)
class Share:
    """One reader's part: each `parts`-th of the places that `base` leaves, from `part` on; `done` of them, and `mark`
    in the next.

    `ended`: its reader has seen that nothing follows. That is for the same reader to know: what is left is dealt out
    to others as if it had stopped at the last row, or their order would hang on when it looked.
    """

    base: Progress = Progress()
    part: int = 0
    parts: int = 1
    done: int = 0
    mark: Mark | None = None
    ended: bool = False

    def places(self, blocks: int) -> list[tuple[int, Mark]]:
        """The places of this share that are still to be read, each with where to begin."""
        own = self.base.left(blocks)[self.part :: self.parts]
        rest = [(place, self.base.open.get(place, START)) for place in own[self.done :]]
        if rest and self.mark is not None:
            rest[0] = (rest[0][0], self.mark)
        return rest

    def at(self, done: int, mark: Mark | None) -> Share:
        """The same share further on."""
        return replace(self, done=self.done + done, mark=mark)


def merged(order: Order, shares: Sequence[Share]) -> Progress:
    """The progress of an epoch from the shares of all its readers. BadInput unless they are all, and of one dealing."""
    first = shares[0]
    given = sorted(share.part for share in shares)
    if any((share.base, share.parts) != (first.base, first.parts) for share in shares):
        raise BadInput("expected states of one run, taken with the same number of readers, got a mixture")
    if given != list(range(first.parts)):
        missing = sorted(set(range(first.parts)) - set(given))
        raise BadInput(f"expected the states of all {first.parts} readers, each once; missing: {missing or 'none'}")
    left: dict[int, Mark] = {}
    for share in shares:
        left |= dict(share.places(order.blocks))
    untouched = set(left)
    below = order.blocks
    while below > 0 and below - 1 in untouched and left[below - 1] == START and below > first.base.below:
        below -= 1
    return Progress(below, {place: mark for place, mark in left.items() if place < below})


def within(where: Share | Progress, blocks: int) -> dict[int, Mark]:
    """The places of the blocks in progress, each with its mark. At the end of an epoch there are none."""
    if isinstance(where, Share):
        found = {} if where.ended else dict(where.base.open) | dict(where.places(blocks)[:1])
    else:
        found = dict(where.open)
    return {place: mark for place, mark in found.items() if mark != START}


def to_state(order: Order, where: Share | Progress) -> dict[str, Any]:
    """A state as JSON values."""
    said = {"hanse": _VERSION, **asdict(order)}
    if isinstance(where, Progress):
        return said | {"kind": "epoch", "base": _of_progress(where)}
    return said | {
        "kind": "share",
        "base": _of_progress(where.base),
        "part": where.part,
        "parts": where.parts,
        "done": where.done,
        "mark": None if where.mark is None else asdict(where.mark),
        "ended": where.ended,
    }


def of_state(state: Mapping[str, Any]) -> tuple[Order, Share | Progress]:
    """What `to_state` wrote; BadInput for anything else: each field has its type, and is in the range that the others
    leave it. How many rows a block has is for whoever knows the plan."""
    if not isinstance(state, Mapping):
        raise BadInput(f"expected a state that state_dict() gave, got {reprlib.repr(state)}")
    try:
        if state["hanse"] != _VERSION:
            raise ValueError(f"version {state['hanse']}")
        order = _to_order(state)
        base = _to_progress(state["base"], order)
        if state["kind"] == "epoch":
            return order, base
        return order, _to_share(state, base, order)
    except KeyError as error:
        raise BadInput(f"expected a state that state_dict() gave, got one without {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise BadInput(f"expected a state that state_dict() gave, got another form: {error}") from None


def merge(states: Any) -> dict[str, Any]:
    """One state of an epoch out of those of all its readers, for any number of readers to go on from.

    `states` may be a list of what `state_dict()` gave at each rank, also of torchdata's StatefulDataLoader: the
    readers' own states are found inside. BadInput where such a one is older than what its loader has given.
    """
    found = [of_state(state) for state in _inside(states)]
    if not found:
        raise BadInput(f"expected states that state_dict() gave, found none in {reprlib.repr(states)}")
    order = found[0][0]
    if any(other != order for other, _ in found):
        raise BadInput("expected states of one epoch of one plan, with one seed; got different ones")
    if len(found) == 1 and isinstance(found[0][1], Progress):
        return to_state(order, found[0][1])
    shares = [where for _, where in found if isinstance(where, Share)]
    if len(shares) < len(found):
        raise BadInput("expected the states of readers, got one that is merged already beside others")
    return to_state(order, merged(order, shares))


def _inside(value: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "hanse" in value and "kind" in value:
            yield value
            return
        if late := value.get("_steps_since_snapshot"):  # torchdata's: its own loader would give those once more
            raise BadInput(
                f"expected states of the batch given last, got some of {late} batches before it, whose rows would "
                "come again: make the StatefulDataLoader with snapshot_every_n_steps=1"
            )
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _inside(one)


def _of_progress(progress: Progress) -> dict[str, Any]:
    return {"below": progress.below, "open": {str(place): asdict(mark) for place, mark in progress.open.items()}}


def _to_order(state: Mapping[str, Any]) -> Order:
    seed = None if state["seed"] is None else key("seed", state["seed"])
    blocks, window = (count(name, state[name], least=0) for name in ("blocks", "window"))
    identity, shown = _typed(str, state["identity"]), _typed(str, state.get("shown", ""))
    return Order(identity, blocks, seed, key("epoch", state["epoch"]), window, shown)


def _to_progress(value: Mapping[str, Any], order: Order) -> Progress:
    below = _at_most("below", value["below"], order.blocks)
    return Progress(below, {_to_place(place, below): _to_mark(mark, order) for place, mark in value["open"].items()})


def _to_place(text: str, below: int) -> int:
    place = _at_most("place", int(text), below - 1)
    if text != str(place):  # another way to write it could be there, too
        raise ValueError(f"place {text!r}")
    return place


def _to_share(state: Mapping[str, Any], base: Progress, order: Order) -> Share:
    if state["kind"] != "share":
        raise ValueError(f"kind {state['kind']!r}")
    part, parts = reader(state["part"], state["parts"])
    mark = None if state["mark"] is None else _to_mark(state["mark"], order)
    own = len(range(part, len(base.open) + order.blocks - base.below, parts))
    done = _at_most("done", state["done"], own if mark is None else own - 1)  # a mark is in the next one
    return Share(base, part, parts, done, mark, _typed(bool, state.get("ended", False)))


def _to_mark(value: Mapping[str, Any], order: Order) -> Mark:
    row, cursor = count("row", value["row"], least=0), _typed(str, value["cursor"])
    emitted = _at_most("emitted", value["emitted"], order.window)
    cursor_row = _at_most("cursor_row", value["cursor_row"], row if cursor else 0)
    if not cursor.isascii() or (order.window and row % order.window):
        raise ValueError(f"a mark of {reprlib.repr(value)}")
    return Mark(row, emitted, cursor, cursor_row)


def _at_most(name: str, value: Any, most: int) -> int:
    found = count(name, value, least=0)
    if found > most:
        raise ValueError(f"{name} {found}, beyond {most}")
    return found


def _typed(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{reprlib.repr(value)} in place of {kind.__name__}")
    return value
