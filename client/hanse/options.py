"""What `Dataset.loader` and its siblings take: types for editors, a sentence for what they do not take, and one for
what has to be installed first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import pyarrow as pa

from hanse.errors import BadInput


class Rows(TypedDict, total=False):
    """Which rows, and how long to bear a failure."""

    columns: Sequence[str]
    where: str
    patience: float


class InOrder(Rows, total=False):
    """And in which order."""

    seed: int | None
    epoch: int


class InBatches(InOrder, total=False):
    """And in which batches."""

    batch_size: int | None
    drop_last: bool
    window: int
    prefetch_bytes: int
    codec: str
    progress: bool


class ForLoader(InBatches, total=False):
    """Of `Loader`."""

    part: int | None
    parts: int | None


class ForTorch(InBatches, total=False):
    """Of `hanse.loaders.torch.batches.dataset`, where the parts follow from rank, world and workers."""

    form: Callable[..., Any] | None
    shapes: Mapping[str, tuple[int, ...]] | None
    blobs: str
    rank: int | None
    world: int | None
    state: dict[str, Any] | None


class ForHf(InOrder, total=False):
    """Of `hanse.loaders.hf.dataset`."""

    world: int


class ForRay(Rows, total=False):
    """Of `hanse.loaders.ray.dataset`."""

    tasks: int


class ForSpark(Rows, total=False):
    """Of `hanse.loaders.spark.frame`."""

    partitions: int


def check(options: Mapping[str, Any], known: type) -> None:
    """BadInput for an option that is not among those of `known`, one of the types here."""
    if unknown := sorted({*options} - {*known.__annotations__}):
        raise BadInput(f"expected options among {', '.join(known.__annotations__)}; got {', '.join(unknown)}")


def unfit(library: str, schema: pa.Schema, column: pa.Field) -> BadInput:
    """For a column of a type that a library does not have."""
    others = [name for name in schema.names if name != column.name]
    todo = f"leave it out with columns={others}" if others else "there is no other in it"  # [] would be all of them
    return BadInput(f"expected columns of types that {library} has, got {column.name} of {column.type}: {todo}")


@contextmanager
def extra(name: str) -> Iterator[None]:
    """What is imported here comes with an extra of ours, and whoever has not installed it is told so."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == __package__:
            raise
        # By its folder, as client/README.md has it: no package index has a `hanse` of ours yet.
        raise ModuleNotFoundError(
            f"expected {error.name}, which is not installed; it comes with: pip install './client[{name}]' in a "
            "checkout of Hanse",
            name=error.name,
            path=error.path,
        ) from error
