"""PyTorch: datasets that stream governed batches. Names load on first use: only `batches` imports PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hanse.loaders.torch.batches import Batches, dataset

__all__ = ["Batches", "dataset"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hanse.loaders.torch import batches

    return getattr(batches, name)
