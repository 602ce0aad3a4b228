"""One rank of a training job, as a process: `python -m tests.frameworks.rank <folder> <width>`."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch
from hanse.loaders.torch.batches import dataset
from torch import distributed
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader


def main(folder: Path, width: int) -> None:
    """Learn a weighted sum of the vectors; write which rows were seen, the weights, the first and last loss."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranks = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", **ranks)
    datasets = pickle.loads((folder / "datasets").read_bytes())
    rows = dataset(datasets, columns=["id", "vector"], batch_size=50, seed=4, shapes={"vector": (width,)})
    model = DistributedDataParallel(torch.nn.Linear(width, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    seen: list[int] = []
    losses: list[float] = []
    with Join([model]):  # ranks may have a batch more or less than others
        for batch in StatefulDataLoader(rows, batch_size=None, num_workers=4):
            inputs = batch["vector"] / 3000.0
            loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seen += batch["id"].tolist()
            losses.append(loss.item())
    weights = [value for one in model.parameters() for value in one.flatten().tolist()]
    said = {"rank": distributed.get_rank(), "ids": seen, "weights": weights, "first": losses[0], "last": losses[-1]}
    (folder / f"rank-{distributed.get_rank()}").write_text(json.dumps(said))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
