"""DeepRec's own systems, run as the peers are: the TRM without a preference, and popularity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from export import load
from numpy.typing import NDArray
from peer import TOP, Data, Ints, Job, Ragged, TrainingLog, ndcg, rankings

from deeprec.config import load_config
from deeprec.data.dataset import Dataset
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import queries_of
from deeprec.trm import batches, network, training
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.training import Epoch
from deeprec.trm.trm import TRM

CONSTANTS = {"dropout": (network, "DROPOUT"), "batch_positions": (batches, "BATCH_POSITIONS")}
"""Settings of a run that are constants of the TRM, not keys of its configuration."""


def fit(dataset: Dataset, encoder: TextEncoder, job: Job) -> tuple[TRM, TrainingLog]:
    """Train until patience or the budget ends; the epoch in which the budget ends is finished."""
    training.time = SimpleNamespace(perf_counter=time.process_time)  # trm.minutes counts what the budget counts
    training.PATIENCE = job.patience
    log = job.log()
    settings: dict[str, Any] = {"epochs": 1000, "minutes": job.budget / 60} | job.settings | {"seed": job.seed}
    for name, (module, constant) in CONSTANTS.items():
        if name in settings:
            setattr(module, constant, settings.pop(name))
    config = load_config(None, [f"trm.{name}={value}" for name, value in settings.items()]).trm

    def on_epoch(epoch: Epoch) -> None:
        log.laps.append((1.0, epoch.seconds))  # without its validation
        log.note(epoch.ndcg)

    trm = TRM.fit(dataset, config, encoder, on_epoch=on_epoch)
    stale = len(trm.curve) - int(np.argmax([epoch.ndcg for epoch in trm.curve])) > job.patience
    log.stopped_by = "patience" if stale else "epochs" if len(trm.curve) == config.epochs else "budget"
    return trm, log


def cut(dataset: Dataset, last: int) -> Dataset:
    """The data set with `last` training interactions a user; the two that are held out stay."""
    rows = Ragged(dataset.items_N, dataset.starts_U1).last(last + 2)
    return replace(dataset, items_N=rows.items_N.astype(np.int32), starts_U1=rows.starts_U1, times_N=None)


def main() -> None:
    job = Job.parse()
    torch.set_num_threads(job.threads)
    data = Data.load(job.data, job.last)
    packages = ("deeprec", "numpy", "torch")
    if job.system == "popularity":
        counts_I = PopularityRetriever.fit(data.train, data.n_items).counts_I

        def scorer(histories: Sequence[Ints]) -> NDArray[np.floating]:
            return np.tile(counts_I, (len(histories), 1))

        job.finish(rankings(scorer, data.test.histories), packages, {"best_ndcg": ndcg(scorer, data.validation)})
        return
    dataset, encoder = load(job.source), TextEncoder.load()
    trm, log = fit(dataset if job.last is None else cut(dataset, job.last), encoder, job)
    trm.save(job.out)  # for preference_sensitivity.py
    queries = queries_of(dataset.tasks("test"))
    ranked_TK = np.full((len(queries), TOP), -1, dtype=np.int32)
    for row_K, hits in zip(ranked_TK, trm.retrieve(queries, TOP), strict=True):
        row_K[: len(hits)] = [hit.item for hit in hits]
    targets = len(data.train.items_N) - len(data.train)
    job.finish(ranked_TK, packages, log.record(targets) | {"config": trm.config.model_dump(mode="json")})


if __name__ == "__main__":
    main()
