"""RecTools' models: EASE, item-kNN, popularity, SASRec, eSASRec, HSTU and UniSRec.

Item i of the data is the external item i + 1, since RecTools' UniSRec keeps 0 for padding. Models are asked through
their fitted weights, which gives the same ranking as `recommend` with `filter_viewed=True`, for any history.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from numpy.typing import NDArray
from peer import Data, Ints, Job, Ragged, Scorer, TrainingLog, ndcg, padded, rankings
from rectools import Columns
from rectools.dataset import Dataset
from rectools.fast_transformers import UniSRecModel
from rectools.models import EASEModel, HSTUModel, ImplicitItemKNNWrapperModel, PopularModel, SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.ligr import LiGRLayers
from scipy import sparse

KNN = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}


class TimeBudget(lightning.Callback):
    """Stops Lightning at the budget, within an epoch too, and validates every few epochs.

    Args:
        scorer: makes the scorer of a model in training.
        every: epochs between two validations.
    """

    def __init__(self, log: TrainingLog, data: Data, scorer: Callable[[Any], Scorer], every: int) -> None:
        self.training_log, self.data, self.scorer, self.every = log, data, scorer, every

    def __deepcopy__(self, memo: dict[int, Any]) -> TimeBudget:
        return self  # RecTools copies the trainer before it fits: the copy must tell this log

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self.training_log.epoch_begins()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.share = (index + 1) / trainer.num_training_batches
        if self.training_log.over():
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self.training_log.epoch_ends(self.share)
        if not trainer.should_stop and (trainer.current_epoch + 1) % self.every:
            return
        module.eval()
        scorer = self.scorer(module)
        if self.training_log.validate(lambda: ndcg(scorer, self.data.validation), lambda: _copy(module)):
            trainer.should_stop = True
        module.train()

    def trainer(self, **options: Any) -> lightning.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(
            max_epochs=100_000,
            min_epochs=0,
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            callbacks=[self],
            **quiet,
            **options,
        )


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def frame(sequences: Ragged) -> pd.DataFrame:
    """Interactions as RecTools reads them. The sets have positions, so the times only order them."""
    return pd.DataFrame(
        {
            Columns.User: sequences.users(),
            Columns.Item: sequences.items_N + 1,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(sequences.positions(), unit="s"),
        }
    )


def inner_ids(known_K: Ints, n_items: int, first: int) -> Ints:
    """A table (I,) from item to a model's row: `known_K` lists the external ids of rows from `first` on.

    Items that the model does not know have -1.
    """
    rows_I = np.full(n_items, -1, dtype=np.int64)
    rows_I[np.asarray(known_K, dtype=np.int64) - 1] = np.arange(len(known_K)) + first
    return rows_I


def scorer_of(rows_I: Ints, score: Callable[[list[Ints]], NDArray[np.floating]]) -> Scorer:
    """A scorer from `score`, which reads and returns a model's own rows; unknown items leave the histories."""

    def scorer(histories: Sequence[Ints]) -> NDArray[np.floating]:
        rows = [rows_I[history] for history in histories]
        inner_BR = score([row[row >= 0] for row in rows])
        return np.where(rows_I >= 0, inner_BR[:, rows_I], -np.inf)

    return scorer


def counting(job: Job, data: Data) -> Scorer:
    """Fit EASE, item-kNN or popularity: models without training epochs."""
    dataset = Dataset.construct(frame(data.train))
    size = dataset.item_id_map.size
    if job.system == "rectools-popularity":
        popular = PopularModel().fit(dataset)
        items_R, counts_R = popular.popularity_list
        scores_R = np.zeros(size)
        scores_R[items_R] = counts_R

        def score(histories: list[Ints]) -> NDArray[np.floating]:
            return np.tile(scores_R, (len(histories), 1))

    else:
        if job.system == "rectools-ease":
            weights_RR = EASEModel(**job.settings).fit(dataset).weight.T  # as `recommend` applies it
        else:
            options = {**job.settings, "num_threads": job.threads}
            knn = ImplicitItemKNNWrapperModel(KNN[options.pop("weighting")](**options)).fit(dataset)
            weights_RR = knn.model.similarity

        def score(histories: list[Ints]) -> NDArray[np.floating]:
            rows = Ragged.of(histories)
            shape = (len(rows), size)
            inputs_BR = sparse.csr_matrix((np.ones(len(rows.items_N)), rows.items_N, rows.starts_U1), shape)
            product = inputs_BR @ weights_RR
            return product.toarray() if sparse.issparse(product) else np.asarray(product)

    external_R = dataset.item_id_map.get_external_sorted_by_internal()
    return scorer_of(inner_ids(external_R, data.n_items, 0), score)


def transformer(job: Job, data: Data, log: TrainingLog) -> tuple[Scorer, int]:
    """Fit SASRec, eSASRec or HSTU; the scorer of the best epoch, and the targets of an epoch."""
    options = dict(job.settings)
    every, windows = options.pop("validate_every"), options.pop("windows")
    options["session_max_len"] = options.pop("history")
    if "logits_t" in options:
        options["lightning_module_kwargs"] = {"logits_t": options.pop("logits_t")}
    if job.system == "rectools-esasrec":
        options["transformer_layers_type"] = LiGRLayers
    if job.system == "rectools-hstu":
        options["relative_time_attention"] = False  # no system is given times
    kind = HSTUModel if job.system == "rectools-hstu" else SASRecModel

    def scorer_in(module: Any) -> Scorer:
        network = module.torch_model

        def score(histories: list[Ints]) -> NDArray[np.floating]:
            rows_BT = torch.from_numpy(padded(histories, options["session_max_len"], left=True))
            with torch.inference_mode():
                items_RD = network.item_model.get_all_embeddings()
                states_B1D = network.encode_sessions({"x": rows_BT}, items_RD)[:, -1:]
                return network.similarity_module(states_B1D, items_RD)[:, 0].numpy()

        return scorer_of(inner_ids(model.data_preparator.get_known_item_ids(), data.n_items, 1), score)

    clock = TimeBudget(log, data, scorer_in, every)
    model = kind(**options, item_net_block_types=(IdEmbeddingsItemNet,), get_trainer_func=clock.trainer)
    sequences = data.train.windows(options["session_max_len"]) if windows else data.train
    model.fit(Dataset.construct(frame(sequences)))
    model.lightning_model.load_state_dict(log.best)
    model.lightning_model.eval()
    return scorer_in(model.lightning_model), count_targets(sequences, options["session_max_len"])


def unisrec(job: Job, data: Data, log: TrainingLog) -> tuple[Scorer, int]:
    """Fit UniSRec on the items' MiniLM vectors; as for `transformer`."""
    options = dict(job.settings)
    every, windows = options.pop("validate_every"), options.pop("windows")
    options["session_max_len"] = options.pop("history")

    def scorer_in(module: Any) -> Scorer:
        def score(histories: list[Ints]) -> NDArray[np.floating]:
            rows_BT = torch.from_numpy(padded(histories, options["session_max_len"], left=True))
            with torch.inference_mode():
                return (module.net.encode_last(rows_BT) @ module.net.project_all().T).numpy()

        return scorer_of(inner_ids(model.item_id_mapping.numpy(), data.n_items, 1), score)

    clock = TimeBudget(log, data, scorer_in, every)

    class Timed(UniSRecModel):
        """With our clock in the trainer, and the trained module kept."""

        def _make_trainer(self, max_epochs: int, val_dl: Any = None) -> lightning.Trainer:
            return clock.trainer(gradient_clip_val=self.grad_clip)

        def _make_lightning(self, *args: Any) -> Any:
            self.module = super()._make_lightning(*args)
            return self.module

    text_I1E = torch.from_numpy(np.vstack([np.zeros_like(data.text_IE[:1]), data.text_IE]))
    model = Timed(text_I1E, device="cpu", **options)
    sequences = data.train.windows(options["session_max_len"]) if windows else data.train
    columns = (sequences.users(), sequences.items_N + 1, sequences.positions())
    model.fit(*map(torch.from_numpy, columns))
    model.module.load_state_dict(log.best)
    model.module.eval()
    return scorer_in(model.module), count_targets(sequences, options["session_max_len"])


def count_targets(sequences: Ragged, inputs: int) -> int:
    """Next items that an epoch trains on, where each sequence is one row of at most `inputs`."""
    return int(np.clip(np.diff(sequences.starts_U1) - 1, 0, inputs).sum())


def main() -> None:
    job = Job.parse()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(job.threads)
    lightning.seed_everything(job.seed, verbose=False)
    data, log = Data.load(job.data, job.last), job.log()
    packages = ("RecTools", "numpy", "pandas", "pytorch-lightning", "scipy", "torch")
    if job.system in ("rectools-popularity", "rectools-ease", "rectools-itemknn"):
        scorer = counting(job, data)
        record: dict[str, Any] = {"train_seconds": log.seconds(), "best_ndcg": ndcg(scorer, data.validation)}
    else:
        scorer, targets = (unisrec if job.system == "rectools-unisrec" else transformer)(job, data, log)
        record = log.record(targets)
    job.finish(rankings(scorer, data.test.histories), packages, record)


if __name__ == "__main__":
    main()
