"""The order of an epoch, its division among readers, and their progress. Pure: no clock, no network.

The **global sequence** of an epoch is a function of snapshot, seed, epoch and window alone:
1. the blocks of all datasets, one dataset after the other, are permuted by (seed, epoch);
2. within a block the rows keep their stored order, or, with a window of n, each run of n rows of the block is
   permuted by (seed, epoch, block, number of the run).

The number of readers does not change it. With `parts` readers, the remaining blocks are dealt out in turn: each reader
has a part of the sequence, in its order, and together they have each row once.

**Progress**: a `ReaderShare` is one reader's place (blocks done, and a `Mark` in the next one). The shares of all
readers make an `EpochProgress`: everything below a place is done except what is `open`. A progress can be dealt out
again to any number of readers; that is how their number changes in the middle of an epoch.
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
_KEY_BITS = 63  # without the sign


def check_number(name: str, value: Any) -> int:
    """Convert a whole number of any library to Python's int.

    Raises:
        BadInput: the value is anything else, also 7.0 (as a key it would be another order than 7) or True.
    """
    try:
        if value is not True and value is not False:
            return operator.index(value)
    except TypeError:
        pass
    raise BadInput(f"expected {name} to be a whole number, got {value!r}")


def check_key(name: str, value: Any) -> int:
    """Convert a whole number that the order depends on, of 64 bits.

    Raises:
        BadInput: the value is not a whole number, or too large for frameworks to store.
    """
    if (key := check_number(name, value)).bit_length() > _KEY_BITS:
        raise BadInput(f"expected {name} from -2**63 + 1 to 2**63 - 1, got a number of {key.bit_length()} bits")
    return key


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Convert a whole number of at least `least`. Raises: BadInput."""
    number = check_number(name, value)
    if number < least:
        raise BadInput(f"expected {name} to be at least {least}, got {number}")
    return number


def check_reader(part: Any, parts: Any, *, names: tuple[str, str] = ("part", "parts")) -> tuple[int, int]:
    """Check a reader's number, counted from 0, and the number of readers; `names`: the caller's names of both.

    Raises:
        BadInput: there is no such reader; its rows would be another's or get lost.
    """
    part_name, parts_name = names
    part, parts = check_number(part_name, part), check_count(parts_name, parts)
    if not 0 <= part < parts:
        raise BadInput(f"expected {part_name} to be from 0 to {parts - 1}, as {parts_name} is {parts}; got {part}")
    return part, parts


def check_choice(part: Any, parts: Any, *, names: tuple[str, str] = ("part", "parts")) -> tuple[int, int] | None:
    """Check as `check_reader` does; return None if neither is given.

    Raises:
        BadInput: only one is given; without its number a reader would get the rows of the first.
    """
    if part is None and parts is None:
        return None
    if part is None or parts is None:
        part_name, parts_name = names
        raise BadInput(
            f"expected {part_name} and {parts_name} together, or neither; got {part_name}={part}, {parts_name}={parts}"
        )
    return check_reader(part, parts, names=names)


def read_place(state: Mapping[str, Any], plan: Plan, blocks: Sequence[int]) -> tuple[int, int]:
    """Read a Hugging Face state: the index in `blocks`, and the number of rows of that block that are done.

    Raises:
        BadInput: no state has such a place; rows would be lost or come twice.
    """
    at, rows = (check_count(name, state.get(name), least=0) for name in ("shard_idx", "shard_example_idx"))
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
    """The inputs of the sequence. `identity` is a digest of snapshots and plans. Without a seed blocks keep their
    stored order.

    `shown` is a digest of what the agreements show. It does not change the order of blocks, but a count of rows within
    a block is valid only if it is the same.
    """

    identity: str
    blocks: int
    seed: int | None = None
    epoch: int = 0
    window: int = 0
    shown: str = ""

    def permutation(self) -> list[int]:
        """Return the number of the block at each place of the epoch."""
        if self.seed is None:
            return list(range(self.blocks))
        return _shuffle(self.blocks, f"{self.seed}/{self.epoch}")

    def within(self, block: int, run: int, rows: int) -> list[int] | None:
        """Return the order of the rows of one run; None if they keep their stored order."""
        if not self.window or self.seed is None:
            return None
        return _shuffle(rows, f"{self.seed}/{self.epoch}/{block}/{run}")


def _shuffle(count: int, key: str) -> list[int]:
    """Return a permutation that is the same in every version of Python: only `random()` is guaranteed to stay
    stable."""
    draw = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")).random  # noqa: S311
    drawn = [draw() for _ in range(count)]
    return sorted(range(count), key=drawn.__getitem__)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a block: `row` rows are done, and `emitted` rows of the run that begins there.

    Reading resumes from the owner's `cursor`, the place after `cursor_row` rows, at or before `row`.
    """

    row: int = 0
    emitted: int = 0
    cursor: str = ""
    cursor_row: int = 0


START = Mark()


@dataclass(frozen=True, slots=True)
class EpochProgress:
    """Every place below `below` is done, except those in `open`, which are done up to their mark."""

    below: int = 0
    open: Mapping[int, Mark] = field(default_factory=dict)

    def remaining(self, blocks: int) -> list[int]:
        """Return the places that are not done, in order."""
        return [*sorted(self.open), *range(self.below, blocks)]


@dataclass(frozen=True, slots=True)
class ReaderShare:
    """One reader's part: every `parts`-th of the places that `base` leaves, from `part` on; `done` of them, and `mark`
    in the next.

    `ended`: the reader has seen that nothing follows. Only that reader uses it. Merging deals out its rest as if it
    had stopped at the last row; otherwise the order would depend on when it looked.
    """

    base: EpochProgress = EpochProgress()
    part: int = 0
    parts: int = 1
    done: int = 0
    mark: Mark | None = None
    ended: bool = False

    def places(self, blocks: int) -> list[tuple[int, Mark]]:
        """Return the places of this share that are still to be read, each with its mark."""
        own = self.base.remaining(blocks)[self.part :: self.parts]
        rest = [(place, self.base.open.get(place, START)) for place in own[self.done :]]
        if rest and self.mark is not None:
            rest[0] = (rest[0][0], self.mark)
        return rest

    def at(self, done: int, mark: Mark | None) -> ReaderShare:
        """Return the share after `done` more places."""
        return replace(self, done=self.done + done, mark=mark)


def merge_shares(order: Order, shares: Sequence[ReaderShare]) -> EpochProgress:
    """Return the progress of an epoch from the shares of all its readers.

    Raises:
        BadInput: a share is missing, or they are from different runs.
    """
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
    return EpochProgress(below, {place: mark for place, mark in left.items() if place < below})


def open_marks(where: ReaderShare | EpochProgress, blocks: int) -> dict[int, Mark]:
    """Return the marks of the blocks in progress, by place; empty at the end of an epoch."""
    if isinstance(where, ReaderShare):
        marks = {} if where.ended else dict(where.base.open) | dict(where.places(blocks)[:1])
    else:
        marks = dict(where.open)
    return {place: mark for place, mark in marks.items() if mark != START}


def to_state(order: Order, where: ReaderShare | EpochProgress) -> dict[str, Any]:
    """Convert a place in an epoch to JSON values."""
    state = {"hanse": _VERSION, **asdict(order)}
    if isinstance(where, EpochProgress):
        return state | {"kind": "epoch", "base": _progress_to_json(where)}
    return state | {
        "kind": "share",
        "base": _progress_to_json(where.base),
        "part": where.part,
        "parts": where.parts,
        "done": where.done,
        "mark": None if where.mark is None else asdict(where.mark),
        "ended": where.ended,
    }


def from_state(state: Mapping[str, Any]) -> tuple[Order, ReaderShare | EpochProgress]:
    """Read what `to_state` wrote. The number of rows of a block is checked later, against the plan.

    Raises:
        BadInput: a field is missing, of another type, or out of range.
    """
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
    """Merge the states of all readers of an epoch into one, from which any number of readers can resume.

    `states`: a list of what `state_dict()` returned at each rank, also of torchdata's StatefulDataLoader: the
    readers' own states are found inside.

    Raises:
        BadInput: states are missing, differ, or are older than what their loader has returned.
    """
    pairs = [from_state(state) for state in _find_states(states)]
    if not pairs:
        raise BadInput(f"expected states that state_dict() gave, found none in {reprlib.repr(states)}")
    order = pairs[0][0]
    if any(other != order for other, _ in pairs):
        raise BadInput("expected states of one epoch of one plan, with one seed; got different ones")
    if len(pairs) == 1 and isinstance(pairs[0][1], EpochProgress):
        return to_state(order, pairs[0][1])
    shares = [where for _, where in pairs if isinstance(where, ReaderShare)]
    if len(shares) < len(pairs):
        raise BadInput("expected the states of readers, got a merged one among them")
    return to_state(order, merge_shares(order, shares))


def _find_states(value: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "hanse" in value and "kind" in value:
            yield value
            return
        if late := value.get("_steps_since_snapshot"):  # torchdata's own loader would repeat those batches
            raise BadInput(
                f"expected states of the batch given last, got some of {late} batches before it, whose rows would "
                "come again: make the StatefulDataLoader with snapshot_every_n_steps=1"
            )
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _find_states(item)


def _progress_to_json(progress: EpochProgress) -> dict[str, Any]:
    return {"below": progress.below, "open": {str(place): asdict(mark) for place, mark in progress.open.items()}}


def _to_order(state: Mapping[str, Any]) -> Order:
    seed = None if state["seed"] is None else check_key("seed", state["seed"])
    blocks, window = (check_count(name, state[name], least=0) for name in ("blocks", "window"))
    identity, shown = _check_type(str, state["identity"]), _check_type(str, state.get("shown", ""))
    return Order(identity, blocks, seed, check_key("epoch", state["epoch"]), window, shown)


def _to_progress(value: Mapping[str, Any], order: Order) -> EpochProgress:
    below = _check_at_most("below", value["below"], order.blocks)
    return EpochProgress(
        below, {_to_place(place, below): _to_mark(mark, order) for place, mark in value["open"].items()}
    )


def _to_place(text: str, below: int) -> int:
    place = _check_at_most("place", int(text), below - 1)
    if text != str(place):  # the same place could stand there twice, in two spellings
        raise ValueError(f"place {text!r}")
    return place


def _to_share(state: Mapping[str, Any], base: EpochProgress, order: Order) -> ReaderShare:
    if state["kind"] != "share":
        raise ValueError(f"kind {state['kind']!r}")
    part, parts = check_reader(state["part"], state["parts"])
    mark = None if state["mark"] is None else _to_mark(state["mark"], order)
    own = len(range(part, len(base.open) + order.blocks - base.below, parts))
    done = _check_at_most("done", state["done"], own if mark is None else own - 1)  # a mark needs a next place
    return ReaderShare(base, part, parts, done, mark, _check_type(bool, state.get("ended", False)))


def _to_mark(value: Mapping[str, Any], order: Order) -> Mark:
    row, cursor = check_count("row", value["row"], least=0), _check_type(str, value["cursor"])
    emitted = _check_at_most("emitted", value["emitted"], order.window)
    cursor_row = _check_at_most("cursor_row", value["cursor_row"], row if cursor else 0)
    if not cursor.isascii() or (order.window and row % order.window):
        raise ValueError(f"a mark of {reprlib.repr(value)}")
    return Mark(row, emitted, cursor, cursor_row)


def _check_at_most(name: str, value: Any, most: int) -> int:
    number = check_count(name, value, least=0)
    if number > most:
        raise ValueError(f"{name} {number}, beyond {most}")
    return number


def _check_type(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{reprlib.repr(value)} in place of {kind.__name__}")
    return value
