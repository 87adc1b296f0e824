"""The TRM as users meet it: trained from a data set, saved in a folder, asked as a retriever."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Dataset
from deeprec.errors import DeepRecError
from deeprec.trm.model import PreferenceSASRec
from deeprec.trm.retriever import Hit, Query, top_hits
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.training import Epoch, train

_BATCH = 256


class TRM:
    """A trained preference-aware recommender; a `Retriever` for any history, also of users never seen."""

    def __init__(self, model: PreferenceSASRec, catalog: Catalog, encoder: TextEncoder, config: TRMConfig) -> None:
        self.model = model.eval()
        self.catalog = catalog
        self.encoder = encoder
        self.config = config
        with torch.inference_mode():
            self.items_ID = model.items()

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        encoder: TextEncoder,
        config: TRMConfig,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> tuple[TRM, list[Epoch]]:
        """Train on all but the last two interactions of each user; the second last validates.

        Returns the model of the best validation epoch and the curve. See `training.train` for the checkpoint.
        """
        tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
        if not tasks:
            raise DeepRecError(f"{dataset.name}: no user has the 3 interactions that training and validation need.")
        queries = [Query(task.history, exclude=frozenset(task.history)) for task in tasks]
        wanted = np.array([targets[task.id] for task in tasks])

        def validate(model: PreferenceSASRec) -> float:
            trm = cls(model, dataset.catalog, encoder, config)
            ranks_Q = trm.ranks(queries, wanted)
            return float(np.where((ranks_Q >= 0) & (ranks_Q < 10), 1 / np.log2(np.maximum(ranks_Q, 0) + 2), 0).mean())

        model, curve = train(
            dataset.train_sequences(), dataset.catalog, encoder, config, validate, checkpoint, on_epoch
        )
        return cls(model, dataset.catalog, encoder, config), curve

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """See `Retriever`."""
        hits = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            hits += top_hits(self.scores(batch), batch, k)
        return hits

    def ranks(self, queries: Sequence[Query], targets: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The 0-based place (Q,) of each query's target in the full ranking; -1 where it is excluded."""
        ranks = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            scores_BI = self.scores(batch)
            for scores_I, query, target in zip(scores_BI, batch, targets[start:], strict=False):
                if query.exclude:
                    scores_I[np.fromiter(query.exclude, dtype=np.int64)] = -np.inf
                own = scores_I[target]
                ahead = (scores_I > own).sum() + (scores_I[:target] == own).sum()
                ranks.append(int(ahead) if own > -np.inf else -1)
        return np.array(ranks, dtype=np.int64)

    @torch.inference_mode()
    def scores(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Scores (Q, I) of all items, nothing excluded."""
        n_items = self.items_ID.shape[0]
        histories = [query.history[-self.config.history :] for query in queries]
        # An empty history reads one padding item, whose vector is zero.
        lengths_Q = torch.tensor([max(len(history), 1) for history in histories])
        rows_QT = torch.full((len(queries), int(lengths_Q.max())), n_items)
        for row, history in enumerate(histories):
            rows_QT[row, : len(history)] = torch.tensor(history, dtype=torch.long)
        states_QTD = self.model.encode(self.items_ID, rows_QT)
        states_QD = states_QTD[torch.arange(len(queries)), lengths_Q - 1]
        given_Q = torch.tensor([float(bool(query.preference.strip())) for query in queries])
        texts_QE = torch.from_numpy(self.encoder.encode([query.preference for query in queries]))
        scores_QI: NDArray[np.float32] = (self.model.listen(states_QD, texts_QE, given_Q) @ self.items_ID.T).numpy()
        return scores_QI

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.model.state_dict(), folder / "model.safetensors")
        self.catalog.to_frame().write_parquet(folder / "catalog.parquet")
        (folder / "trm.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, offline: bool = False) -> TRM:
        """A saved TRM with its catalogue; no data set is needed to recommend for any history.

        Raises:
            DeepRecError: the folder holds no TRM, or a damaged one.
        """
        paths = [folder / name for name in ("trm.json", "catalog.parquet", "model.safetensors")]
        for path in paths:
            if not path.is_file():
                raise DeepRecError(
                    f"{folder} holds no trained TRM ({path.name} is missing): train one with "
                    "`deeprec trm train --again`."
                )
        try:
            config = TRMConfig.model_validate(json.loads(paths[0].read_text(encoding="utf-8")))
            catalog = Catalog.from_frame(pl.read_parquet(paths[1]))
            state = load_file(paths[2])
            model = PreferenceSASRec(config, torch.empty_like(state["text_ID"]))
            model.load_state_dict(state)
            if len(catalog) != len(state["text_ID"]):
                raise ValueError(f"{len(state['text_ID'])} items in the model, {len(catalog)} in the catalogue")
        except Exception as error:  # noqa: BLE001 (whatever a damaged file makes three readers raise)
            reason = " ".join(str(error).split())
            raise DeepRecError(
                f"{folder} holds a damaged TRM ({reason}): train it again with `deeprec trm train --again`."
            ) from None
        return cls(model, catalog, TextEncoder.load(offline=offline), config)
