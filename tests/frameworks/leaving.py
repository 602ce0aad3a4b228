"""A program that ends in the middle of an epoch: `python -m tests.frameworks.leaving <datasets> <workers>`.

It keeps its batch, says nothing, and ends by itself; its exit status is 3 where pandas was loaded meanwhile.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from hanse.loaders.torch.batches import dataset
from torch.utils.data import DataLoader

given, workers = pickle.loads(Path(sys.argv[1]).read_bytes()), int(sys.argv[2])
columns = ["id", "image"]
rows = dataset(given, columns=columns, batch_size=32)
batches = iter(DataLoader(rows, batch_size=None, num_workers=workers))
kept = next(batches)
assert torch.is_tensor(kept["id"])
if "pandas" in sys.modules:
    sys.exit(3)
