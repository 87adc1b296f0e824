"""What the peers share: the exported data, the clock and early stopping, ranking, and the files a run leaves.

It runs in every environment of this folder, so it needs NumPy alone. A system is asked through one function,
its scorer: histories (B item vectors, oldest first) in, scores_BI over the whole catalogue out, -inf for items
that it does not know.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 100  # items of each ranking that are written
CUTOFF = 10  # of the NDCG that training is chosen by
_BATCH = 256

Ints = NDArray[np.int64]
Scores = NDArray[np.floating]
Scorer = Callable[[Sequence[Ints]], Scores]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Item vectors end to end: number u is `items_N[starts_U1[u]:starts_U1[u + 1]]`."""

    items_N: Ints
    starts_U1: Ints

    def __len__(self) -> int:
        return len(self.starts_U1) - 1

    def __getitem__(self, u: int) -> Ints:
        if not 0 <= u < len(self):
            raise IndexError(u)
        return self.items_N[self.starts_U1[u] : self.starts_U1[u + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | Ints]) -> Ragged:
        starts_U1 = np.cumsum([0] + [len(row) for row in rows]).astype(np.int64)
        return cls(np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), starts_U1)

    def users(self) -> Ints:
        """The number (N,) of the vector that each item belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts_U1))

    def positions(self) -> Ints:
        """The 0-based position (N,) of each item in its vector."""
        return np.arange(len(self.items_N)) - np.repeat(self.starts_U1[:-1], np.diff(self.starts_U1))

    def windows(self, inputs: int) -> Ragged:
        """All vectors cut from their ends into pieces of at most `inputs` + 1 items that share one item.

        Every item but a vector's first is a target in exactly one piece: this gives a library that trains on
        each user's last items alone all of the user's transitions.
        """
        pieces = []
        for row in self:
            for end in range(len(row), 1, -inputs):
                pieces.append(row[max(0, end - inputs - 1) : end])
        return Ragged.of(pieces)

    def last(self, count: int) -> Ragged:
        """The last `count` items of each vector."""
        return Ragged.of([row[-count:] for row in self])


@dataclass(frozen=True, eq=False)
class Tasks:
    """Histories and the item that came next."""

    histories: Ragged
    targets_T: Ints


@dataclass(frozen=True, eq=False)
class Data:
    """A data set as `export.py` writes it; items are 0 to n_items - 1 everywhere. text_IE: MiniLM vectors."""

    n_items: int
    train: Ragged
    validation: Tasks
    test: Tasks
    text_IE: NDArray[np.float32]

    @classmethod
    def load(cls, path: Path, last: int | None = None) -> Data:
        """With `last`, only that many of each user's training interactions, the last ones, are trained on."""
        with np.load(path) as file:
            tasks = {
                split: Tasks(Ragged(file[f"{split}_items_N"], file[f"{split}_starts_T1"]), file[f"{split}_targets_T"])
                for split in ("validation", "test")
            }
            train = Ragged(file["items_N"], file["starts_U1"])
            train = train if last is None else train.last(last)
            return cls(len(file["text_IE"]), train, text_IE=file["text_IE"], **tasks)


@dataclass
class TrainingLog:
    """One training's clock, validation curve and best state. It begins when it is made; times are wall clock.

    Attributes:
        budget: processor seconds of the whole training, preparation and validations included (the TRM's, by
            epochs and validations); unlike the wall clock's, they count nothing that other processes take.
        patience: validations without a better NDCG@10 before stopping.
        laps: (share of an epoch, processor seconds) of the training alone, one an epoch; the clock may cut the last.
        stopped_by: "patience", "budget" or "epochs" (the system's own limit).
    """

    budget: float
    patience: int
    started: float = field(default_factory=time.perf_counter)
    started_processor: float = field(default_factory=time.process_time)
    curve: list[dict[str, float]] = field(default_factory=list)
    laps: list[tuple[float, float]] = field(default_factory=list)
    stopped_by: str = "epochs"
    best: Any = None
    began: float = 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def processor(self) -> float:
        """Processor seconds since the start, of all threads."""
        return time.process_time() - self.started_processor

    def epochs(self) -> float:
        return sum(share for share, _ in self.laps)

    def epoch_begins(self) -> None:
        self.began = time.process_time()

    def epoch_ends(self, share: float) -> None:
        """`share` of the epoch's batches were trained on."""
        self.laps.append((share, time.process_time() - self.began))

    def over(self) -> bool:
        """Whether the budget is used up; cheap enough to ask after every batch."""
        if self.processor() >= self.budget:
            self.stopped_by = "budget"
            return True
        return False

    def validate(self, measure: Callable[[], float], state: Callable[[], Any]) -> bool:
        """Measure now, keep `state()` if it is the best so far, and say whether to stop."""
        ndcg = measure()
        if ndcg > self.best_ndcg():
            self.best = state()
        self.note(ndcg)
        if self.over():
            return True
        if len(self.curve) - 1 - int(np.argmax([point["ndcg"] for point in self.curve])) >= self.patience:
            self.stopped_by = "patience"
            return True
        return False

    def note(self, ndcg: float) -> None:
        """A point of the curve."""
        point = {"epoch": self.epochs(), "seconds": self.seconds(), "processor": self.processor(), "ndcg": ndcg}
        self.curve.append(point)
        print(f"epoch {self.epochs():.2f}, {self.seconds():.1f} s, validation NDCG@10 {ndcg:.4f}", flush=True)

    def best_ndcg(self) -> float:
        return max((point["ndcg"] for point in self.curve), default=-1.0)

    def record(self, targets: int) -> dict[str, Any]:
        """For the run's JSON; `targets` is the number of next items that one epoch trains on."""
        best = max(self.curve, key=lambda point: point["ndcg"])
        training = sum(seconds for _, seconds in self.laps)
        return {
            "train_seconds": self.curve[-1]["seconds"],
            "train_processor": self.curve[-1]["processor"],
            "epochs": self.epochs(),
            "epoch_seconds": training / self.epochs(),
            "best_epoch": best["epoch"],
            "best_ndcg": best["ndcg"],
            "stopped_by": self.stopped_by,
            "targets_per_epoch": targets,
            "targets_per_second": targets * self.epochs() / training,
            "laps": self.laps,
            "curve": self.curve,
        }


def padded(histories: Sequence[Ints], length: int, *, left: bool, fill: int = 0) -> Ints:
    """The last `length` items of each history as rows (B, length), filled up on one side."""
    rows_BT = np.full((len(histories), length), fill, dtype=np.int64)
    for row_T, history in zip(rows_BT, histories, strict=True):
        kept = history[-length:]
        if len(kept):
            row_T[slice(-len(kept), None) if left else slice(0, len(kept))] = kept
    return rows_BT


def ndcg(scorer: Scorer, tasks: Tasks) -> float:
    """NDCG@10 over the full catalogue, history excluded; equal scores are ranked by lower index."""
    total = 0.0
    for begin, histories, scores_BI in _batches(scorer, tasks.histories):
        for row, scores_I in enumerate(scores_BI[: len(histories)]):
            target = tasks.targets_T[begin + row]
            own = scores_I[target]
            rank = (scores_I > own).sum() + (scores_I[:target] == own).sum()
            total += 1 / np.log2(rank + 2) if own > -np.inf and rank < CUTOFF else 0.0
    return float(total / len(tasks.targets_T))


def rankings(scorer: Scorer, histories: Ragged) -> NDArray[np.int32]:
    """The `TOP` best items (T, TOP) of each history, its own items excluded; -1 where there are no more."""
    ranked_TK = np.full((len(histories), TOP), -1, dtype=np.int32)
    for begin, _, scores_BI in _batches(scorer, histories):
        for row, scores_I in enumerate(scores_BI):
            order = np.argsort(-scores_I, kind="stable")[:TOP]
            order = order[scores_I[order] > -np.inf]
            ranked_TK[begin + row, : len(order)] = order
    return ranked_TK


def _batches(scorer: Scorer, histories: Ragged) -> Iterator[tuple[int, list[Ints], Scores]]:
    """Where a batch begins, its histories, and their scores with -inf for the histories' own items."""
    for begin in range(0, len(histories), _BATCH):
        batch = [histories[t] for t in range(begin, min(begin + _BATCH, len(histories)))]
        scores_BI = np.array(scorer(batch))
        for scores_I, history in zip(scores_BI, batch, strict=True):
            scores_I[history] = -np.inf
        yield begin, batch, scores_BI


@dataclass(frozen=True)
class Job:
    """What one peer process is to do, from its command line."""

    system: str
    data: Path
    source: str
    out: Path
    seed: int
    budget: float
    patience: int
    threads: int
    settings: dict[str, Any]
    last: int | None

    @classmethod
    def parse(cls) -> Job:
        parser = argparse.ArgumentParser()
        parser.add_argument("--system", required=True)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--source", required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seed", type=int, required=True)
        parser.add_argument("--budget", type=float, required=True)
        parser.add_argument("--patience", type=int, required=True)
        parser.add_argument("--threads", type=int, required=True)
        parser.add_argument("--settings", type=json.loads, required=True)
        parser.add_argument("--last", type=int)
        args = parser.parse_args()
        args.data, args.out = args.data.resolve(), args.out.resolve()
        return cls(**vars(args))

    def log(self) -> TrainingLog:
        return TrainingLog(self.budget, self.patience)

    def finish(self, ranked_TK: NDArray[np.int32], packages: Sequence[str], record: dict[str, Any]) -> None:
        """Write `<out>.npz`, then `<out>.json`: a run that has its JSON is whole."""
        np.savez_compressed(self.out.with_suffix(".npz"), ranked_TK=ranked_TK)
        record |= {
            "system": self.system,
            "seed": self.seed,
            "budget": self.budget,
            "patience": self.patience,
            "threads": self.threads,
            "settings": self.settings,
            "processor_seconds": time.process_time(),
            "load_average": os.getloadavg()[0],
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": {name: metadata.version(name) for name in packages},
        }
        part = self.out.with_suffix(".json.part")
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        part.replace(self.out.with_suffix(".json"))
