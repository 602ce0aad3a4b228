"""Datasets as training code takes them: `Loader` here, frameworks in modules that import theirs when they are used.

loader = space.agree("north/images", purpose="dpv:ScientificResearch").loader(batch_size=256, seed=7)
for batch in loader:            # Arrow record batches
    ...
"""

from __future__ import annotations

from hanse.loaders.epoch_order import merge
from hanse.loaders.loader import Loader
from hanse.loaders.throughput import Throughput

__all__ = ["Loader", "Throughput", "merge"]
