"""A batch on its way from a DataLoader's worker to the training loop, its tensors as one piece of shared memory.

PyTorch sends each tensor as a file of its own: a batch of many columns costs more on this way than on the network. Here
its tensors lie one after the other in one; at the other end they are views of it. All else goes as it would.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_ALIGNED = 64


class Columns(dict[str, Any]):
    """The columns of a batch by their names: a dict whose tensors are pickled as one."""

    def __copy__(self) -> Columns:
        return Columns(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tensors = {name: value for name, value in self.items() if isinstance(value, torch.Tensor)}
        rest = {name: None if name in tensors else value for name, value in self.items()}  # with their order
        return _taken, (rest, *_put(tensors))


def _put(tensors: dict[str, Any]) -> tuple[Any, dict[str, tuple[int, Any, tuple[int, ...]]]]:
    """The piece, and where in it each tensor begins, its type and its shape."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = (size, tensor.dtype, tuple(tensor.shape))
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    # As PyTorch's own `default_collate` makes it: in shared memory from the start.
    piece = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(1, size)))
    memory = memoryview(piece.numpy())
    for name, place in places.items():
        _at(memory, *place).copy_(tensors[name])
    return piece, places


def _taken(rest: dict[str, Any], piece: Any, places: dict[str, tuple[int, Any, tuple[int, ...]]]) -> dict[str, Any]:
    """The columns again."""
    memory = memoryview(piece.numpy())
    for name, place in places.items():
        rest[name] = _at(memory, *place)
    return rest


def _at(memory: memoryview, start: int, kind: Any, shape: tuple[int, ...]) -> Any:
    """The tensor over a place of the piece."""
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=kind)
    tensor = torch.frombuffer(memory, dtype=kind, count=count, offset=start)
    return tensor if len(shape) == 1 else tensor.reshape(shape)
