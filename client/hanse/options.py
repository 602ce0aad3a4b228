"""Options of `Dataset.loader` and its siblings as types for editors, and the errors for wrong options and missing
extras."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import requires
from typing import Any, TypedDict

import pyarrow as pa

from hanse.errors import BadInput


class RowOptions(TypedDict, total=False):
    """Which rows to read, and how long to retry after a failure."""

    columns: Sequence[str]
    where: str
    patience: float


class OrderOptions(RowOptions, total=False):
    """Options of rows, and their order."""

    seed: int | None
    epoch: int


class BatchOptions(OrderOptions, total=False):
    """Options of rows, order and batches."""

    batch_size: int | None
    drop_last: bool
    window: int
    prefetch_bytes: int
    codec: str
    progress: bool


class LoaderOptions(BatchOptions, total=False):
    """Options of `Loader`."""

    part: int | None
    parts: int | None


class TorchOptions(BatchOptions, total=False):
    """Options of `hanse.loaders.torch.batches.dataset`; the parts follow from rank, world and workers."""

    form: Callable[..., Any] | None
    shapes: Mapping[str, tuple[int, ...]] | None
    blobs: str
    rank: int | None
    world: int | None
    state: dict[str, Any] | None


class HfOptions(OrderOptions, total=False):
    """Options of `hanse.loaders.hf.dataset`."""

    world: int


class RayOptions(RowOptions, total=False):
    """Options of `hanse.loaders.ray.dataset`."""

    tasks: int


class SparkOptions(RowOptions, total=False):
    """Options of `hanse.loaders.spark.frame`."""

    partitions: int


def check_options(options: Mapping[str, Any], known: type) -> None:
    """Check that each option is a key of `known`, one of the types here. Raises: BadInput."""
    if unknown := sorted({*options} - {*known.__annotations__}):
        raise BadInput(f"expected options among {', '.join(known.__annotations__)}; got {', '.join(unknown)}")


def unfit_error(library: str, schema: pa.Schema, column: pa.Field) -> BadInput:
    """Return the error for a column of a type that a library does not have."""
    others = [name for name in schema.names if name != column.name]
    todo = f"leave it out with columns={others}" if others else "it is the only column"  # columns=[] would be all
    return BadInput(f"expected columns of types that {library} has, got {column.name} of {column.type}: {todo}")


@contextmanager
def require_extra(name: str) -> Iterator[None]:
    """Explain which extra to install if an import in this block fails.

    Raises:
        ModuleNotFoundError: a library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == __package__:
            raise
        raise ModuleNotFoundError(
            f"expected {error.name}, which is not installed; install it with: {_install_line(name)}",
            name=error.name,
            path=error.path,
        ) from error


def _install_line(extra: str) -> str:
    """Return the command that installs the libraries of an extra, wherever the client itself came from."""
    named = f'extra == "{extra}"'
    asked = (line.partition(";") for line in requires("hanse") or ())
    needed = [need.strip() for need, _, marker in asked if marker.strip().replace("'", '"') == named]
    return f"pip install {' '.join(map(shlex.quote, needed))}"
