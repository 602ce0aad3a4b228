"""Training job of the demo: logistic regression by stochastic gradient descent over a stream, in constant memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from connector.demo.space import read_resident_bytes

COLUMNS = ["month", "hour", "distance", "carrier", "origin", "dep_delay", "arr_delay"]
CARRIERS = ("9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN")
ORIGINS = ("EWR", "JFK", "LGA")
LATE_MINUTES = 15
_SETTLED = 4  # batches after which memory must not grow any more
_RATE = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the training. Losses are over the last tenth of the batches, each scored before it is learned."""

    rows: int
    batches: int
    bytes: int
    loss: float
    base_loss: float
    grown: int  # bytes of resident memory since the first batches


def fit(dataset: Any, *, advance: Callable[[float], None], batch_rows: int = 16_384) -> Outcome:
    """Train a model of late flights on a stream; each batch is scored before it is learned."""
    import numpy as np

    weights = np.zeros(3 + len(CARRIERS) + len(ORIGINS) + 1)
    rows = batches = nbytes = late = 0
    losses: list[tuple[float, float, int]] = []
    memory: list[int] = []
    for batch in dataset.stream(columns=COLUMNS, where="arr_delay IS NOT NULL", batch_rows=batch_rows):
        features, labels = _make_features(batch)
        share = (late + 1) / (rows + 2)
        losses.append((_loss(features @ weights, labels), _constant_loss(share, labels), len(labels)))
        weights = _learn(weights, features, labels)
        rows, batches, nbytes, late = rows + len(labels), batches + 1, nbytes + batch.nbytes, late + int(labels.sum())
        memory.append(read_resident_bytes(os.getpid()))
        advance(len(labels))
    tail = losses[-max(1, len(losses) // 10) :]
    count = sum(n for _, _, n in tail)
    return Outcome(
        rows=rows,
        batches=batches,
        bytes=nbytes,
        loss=sum(loss * n for loss, _, n in tail) / count,
        base_loss=sum(base * n for _, base, n in tail) / count,
        grown=max(0, max(memory) - memory[min(_SETTLED, len(memory)) - 1]),
    )


def _make_features(batch: Any) -> tuple[Any, Any]:
    """Return the features (known at departure) and labels of one batch."""
    import numpy as np

    def number(name: str) -> Any:
        return np.nan_to_num(batch.column(name).to_numpy(zero_copy_only=False).astype(float))

    def one_of(name: str, values: tuple[str, ...]) -> Iterator[Any]:
        texts = np.asarray(batch.column(name).to_pylist(), dtype=object)
        return ((texts == value).astype(float) for value in values)

    columns = [number("hour") / 24, number("distance") / 2500, np.clip(number("dep_delay"), -30, 120) / 60]
    columns += [*one_of("carrier", CARRIERS), *one_of("origin", ORIGINS), np.ones(batch.num_rows)]
    return np.column_stack(columns), (number("arr_delay") > LATE_MINUTES).astype(float)


def _learn(weights: Any, features: Any, labels: Any, *, mini: int = 1024) -> Any:
    import numpy as np

    for start in range(0, len(labels), mini):
        part, wanted = features[start : start + mini], labels[start : start + mini]
        guessed = 1 / (1 + np.exp(-np.clip(part @ weights, -30, 30)))
        weights = weights - _RATE * part.T @ (guessed - wanted) / len(wanted)
    return weights


def _loss(scores: Any, labels: Any) -> float:
    import numpy as np

    signed = np.where(labels > 0, -scores, scores)
    return float(np.logaddexp(0, np.clip(signed, -30, 30)).mean())


def _constant_loss(share: float, labels: Any) -> float:
    mean = float(labels.mean())
    return -(mean * math.log(share) + (1 - mean) * math.log(1 - share))
