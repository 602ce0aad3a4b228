"""The columns of a batch on their way from a DataLoader's worker to the loop, by PyTorch's own transfer.

PyTorch opens a file for each tensor that it sends. That costs more than the bytes do, and a process may open a limited
number of files. So tensors of one type are sent as one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch


class TensorColumns(dict[str, Any]):
    """The columns of a batch by their names. The loop receives a dict."""

    def __copy__(self) -> TensorColumns:
        return TensorColumns(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a dict, where it is not sent by a queue between processes."""
        return dict, (dict(self),)


class _Place(NamedTuple):
    """Stands for a tensor."""

    kind: Any
    shape: tuple[int, ...]
    start: int  # among all numbers of its type


def _send(columns: TensorColumns) -> tuple[Any, ...]:
    """As `__reduce__`: the columns with places for their tensors, and the numbers of all tensors by their type."""
    numbers: dict[Any, list[Any]] = {}
    counts: dict[Any, int] = {}

    def place(tensor: Any) -> Any:
        if not _is_plain(tensor):
            return tensor
        start = counts.get(tensor.dtype, 0)
        counts[tensor.dtype] = start + tensor.numel()
        numbers.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        return _Place(tensor.dtype, tuple(tensor.shape), start)

    rest = {name: _replace(value, torch.Tensor, place) for name, value in columns.items()}
    return _receive, (rest, {kind: _joined(parts, counts[kind]) for kind, parts in numbers.items()})


def _receive(rest: dict[str, Any], numbers: dict[Any, Any]) -> dict[str, Any]:
    """The columns again. Each tensor has a storage of its own: one that is saved takes no others along."""
    memory = {kind: memoryview(one.view(torch.uint8).numpy()) for kind, one in numbers.items()}

    def tensor(place: _Place) -> Any:
        kind, shape, start = place
        if not (count := math.prod(shape)):
            return torch.empty(shape, dtype=kind)
        found = torch.frombuffer(memory[kind], dtype=kind, count=count, offset=start * kind.itemsize)
        return found.reshape(shape)

    return {name: _replace(value, _Place, tensor) for name, value in rest.items()}


def _joined(parts: Sequence[Any], count: int) -> Any:
    """In shared memory from the start, as in PyTorch's `default_collate`."""
    kind = parts[0].dtype
    storage = torch.UntypedStorage._new_shared(max(1, count) * kind.itemsize)
    return torch.cat(parts, out=torch.empty(0, dtype=kind).set_(storage)[:count])


def _is_plain(tensor: Any) -> bool:
    """Whether a tensor is its numbers, type and shape, and nothing else."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.device.type == "cpu" and not tensor.requires_grad


def _replace(value: Any, kind: type, other: Callable[[Any], Any]) -> Any:
    """A column with others in place of what is of exactly this type: itself, or the items of a list."""
    if type(value) is kind:
        return other(value)
    if type(value) is list and kind in set(map(type, value)):
        return [other(one) if type(one) is kind else one for one in value]
    return value


ForkingPickler.register(TensorColumns, _send)
