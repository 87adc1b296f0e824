"""The TRM as users meet it: trained from a data set, saved in a folder, asked as a retriever."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file as np_load_file
from safetensors.numpy import save_file as np_save_file
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Dataset
from deeprec.errors import DeepRecError, one_line
from deeprec.evaluation.metrics import ndcg_at
from deeprec.retrieval.bm25 import BM25
from deeprec.retrieval.cooccurrence import CoOccurrence
from deeprec.retrieval.index import Index, NoFaissError, import_faiss
from deeprec.retrieval.retriever import Hit, Query, Retriever, pairs, queries_of, rank
from deeprec.trm.calibration import calibrate_preference_weight
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.preferences import encode_preferences, frequent_phrases
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.training import Epoch, train

_BATCH = 256
_IDS = "ids.weight"
_RECORD = "trm.json"
_STAMP = "trm-"
"""Of the folders beside it that hold what is saved."""
_GIVES_WAY = 0.5
"""Of what neighbours add, the part that a preference takes away which is wholly heard."""
_TAKEN_AT_WORD = 0.1
"""The trust from which on a preference's words count in full: that an item bears them is no guess."""
FORMAT_VERSION = 5
"""Of saved TRMs; raise it when those of before can't be loaded, or trainings with them not gone on with."""


class TRM(Retriever):
    """A trained preference-aware recommender; a `Retriever` for any history, also of users never seen.

    Attributes:
        trust: how far a guess at a preference is worth believing on this catalogue, as its validation users have it.
    """

    def __init__(
        self,
        model: PreferenceSASRec,
        catalog: Catalog,
        encoder: TextEncoder,
        config: TRMConfig,
        index: Index,
        cooccurrence: CoOccurrence,
        preference_weight: float | None = None,
    ) -> None:
        self.model = model.eval()
        self.catalog = catalog
        self.encoder = encoder
        self.config = config
        self.index = index
        self.cooccurrence = cooccurrence
        self.preference_weight = preference_weight
        self.curve: tuple[Epoch, ...] = ()
        self._bm25: BM25 | None = None
        self._lock = threading.Lock()

    @property
    def bm25(self) -> BM25:
        """Of the catalogue; made when a preference first asks for it, for that takes a while in a large one."""
        with self._lock:
            if self._bm25 is None:
                self._bm25 = BM25(self.catalog)
            return self._bm25

    @classmethod
    def of(
        cls,
        model: PreferenceSASRec,
        catalog: Catalog,
        encoder: TextEncoder,
        config: TRMConfig,
        cooccurrence: CoOccurrence,
    ) -> TRM:
        """The TRM of a trained network, with the index of its item vectors."""
        with torch.inference_mode():
            vectors_ID = model.eval().items()
        return cls(model, catalog, encoder, config, Index.build(vectors_ID, config.index), cooccurrence)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        config: TRMConfig | None = None,
        encoder: TextEncoder | None = None,
        *,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> TRM:
        """Train on all but the last two interactions of each user; the second last validates and calibrates.

        Args:
            config: default: `TRMConfig()`.
            encoder: of item texts and preferences; default: MiniLM, fetched where the cache lacks it.
            checkpoint: a file that is written after every epoch; a training that finds one goes on from it.
            on_epoch: called after every epoch.

        Returns:
            The model of the best validation epoch; `curve` has all epochs.

        Raises:
            DeepRecError: no user has three interactions, the loss diverged, or the encoder can't be fetched.
        """
        config = config or TRMConfig()
        tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
        if not tasks:
            raise DeepRecError(f"{dataset.name}: no user has the 3 interactions that training and validation need.")
        if config.index in ("hnsw", "ivfpq"):
            import_faiss(config.index)  # now, and not after the training
        encoder = encoder or TextEncoder.load()
        queries = queries_of(tasks)
        wanted = np.array([targets[task.id] for task in tasks])
        sequences = dataset.train_sequences()
        cooccurrence = CoOccurrence.of(sequences, len(dataset.catalog))

        def validate(model: PreferenceSASRec) -> float:
            with torch.inference_mode():
                exact = Index.build(model.eval().items(), "exact")
            ranks_Q = cls(model, dataset.catalog, encoder, config, exact, cooccurrence).ranks(queries, wanted)
            return float(ndcg_at(ranks_Q, 10).mean())

        model, curve = train(sequences, dataset.catalog, encoder, config, validate, checkpoint, on_epoch)
        trm = cls.of(model, dataset.catalog, encoder, config, cooccurrence)
        trm.curve = tuple(curve)
        trm.preference_weight = calibrate_preference_weight(trm.ranks, dataset.catalog, tasks, wanted)
        return trm

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """See `Retriever`."""
        hits = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            hits += self._retrieve(batch, k)
        return hits

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """The best by vectors alone, and all that have a bonus: what the index does not miss can't be better."""
        users_QD, offsets_QI = self._condition(queries)
        exclude = [query.exclude for query in queries]
        found = self.index.search(users_QD, k, exclude)
        if not offsets_QI.nnz:
            return found
        n_items = len(self.index)
        # A pair of row and item is one number, so that pairs can be looked up among sorted ones.
        rows_N, items_N = pairs([[hit.item for hit in hits] for hits in found])
        found_N = rows_N * n_items + items_N
        rows_N, items_N = pairs(exclude)
        shut_N = np.sort(rows_N * n_items + items_N)
        near_N = np.repeat(np.arange(len(queries)), np.diff(offsets_QI.indptr)) * n_items + offsets_QI.indices
        open_N, others_N = ~_among(near_N, shut_N), found_N[~_among(found_N, near_N)]
        keys_N = np.concatenate([near_N[open_N], others_N])
        offsets_N = np.concatenate([offsets_QI.data[open_N], np.zeros(others_N.size)])
        order_N = np.argsort(keys_N, kind="stable")
        rows_N, items_N = np.divmod(keys_N[order_N], n_items)
        scores_N = self.index.inner(users_QD, rows_N, items_N) + offsets_N[order_N]
        return rank(len(queries), rows_N, items_N, scores_N, k)

    def ranks(self, queries: Sequence[Query], targets: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The 0-based place (Q,) of each query's target in the full ranking; -1 where it is excluded."""
        ranks = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            scores_BI = self.scores(batch)
            for scores_I, query, target in zip(scores_BI, batch, targets[start : start + _BATCH], strict=True):
                if query.exclude:
                    scores_I[np.fromiter(query.exclude, dtype=np.int64)] = -np.inf
                own = scores_I[target]
                ahead = (scores_I > own).sum() + (scores_I[:target] == own).sum()
                ranks.append(int(ahead) if own > -np.inf else -1)
        return np.array(ranks, dtype=np.int64)

    def scores(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Scores (Q, I) of all items, nothing excluded."""
        users_QD, offsets_QI = self._condition(queries)
        scores_QI: NDArray[np.float32] = (
            torch.from_numpy(users_QD) @ torch.from_numpy(self.index.vectors_ID).T
        ).numpy()
        offsets_QI = offsets_QI.tocoo()
        scores_QI[offsets_QI.row, offsets_QI.col] += offsets_QI.data.astype(np.float32)
        return scores_QI

    @torch.inference_mode()
    def _condition(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], csr_array]:
        """User vectors (Q, D) in the space of the item vectors, and what is added to the scores (Q, I): by neighbours,
        the less, the more of a preference is heard, and by the words of the preference.
        """
        histories = [query.history[-self.config.history :] for query in queries]
        # An empty history reads one padding item, whose vector is zero.
        lengths_Q = torch.tensor([max(len(history), 1) for history in histories], dtype=torch.long)
        rows_QT = np.full((len(queries), int(lengths_Q.max()) if queries else 1), len(self.index))
        for row, history in enumerate(histories):
            rows_QT[row, : len(history)] = history
        # Only the vectors that the histories name: the others may lie in a file.
        named, rows = np.unique(rows_QT, return_inverse=True)
        named_ND = torch.from_numpy(self.index.vectors_ID[named[named < len(self.index)]])
        states_QTD = self.model.encode(named_ND, torch.from_numpy(rows.reshape(rows_QT.shape)))
        states_QD = states_QTD[torch.arange(len(queries)), lengths_Q - 1]
        preferences_QE, given_Q = encode_preferences(self.encoder, [query.preference for query in queries])
        said = [
            "; ".join(frequent_phrases(self.catalog, query.history)) if given else ""
            for query, given in zip(queries, given_Q.tolist(), strict=True)
        ]
        frequent_QE, _ = encode_preferences(self.encoder, said)
        preference_weight_Q = torch.tensor([query.preference_weight for query in queries]) * given_Q
        users_QD, applied_Q = self.model.condition(states_QD, preferences_QE, frequent_QE, preference_weight_Q)
        # Where they weigh nothing, none are looked for.
        offsets_QI = self.cooccurrence.score_offsets(
            [query.history if self.config.cooccurrence else () for query in queries]
        )
        _weigh(offsets_QI, self.config.cooccurrence * (1 - _GIVES_WAY * applied_Q.numpy()))
        if self.config.bm25 and preference_weight_Q.any():
            shared_QI = self.bm25.scores([query.preference for query in queries])
            _weigh(shared_QI, self.config.bm25 * np.minimum(1, preference_weight_Q.numpy() / _TAKEN_AT_WORD))
            offsets_QI = offsets_QI + shared_QI  # in rising order, as both are
        return users_QD.numpy(), offsets_QI

    @torch.inference_mode()
    def add_items(self, items: Catalog) -> None:
        """Make items retrievable that training never saw: their vectors come from their text alone.

        They take the indices after those there are. Nothing is trained; `Index.add` says what it costs.

        Raises:
            DeepRecError: an id is in the catalogue already.
        """
        known = set(self.catalog.ids)
        for item in items.ids:
            if item in known:
                raise DeepRecError(f"The catalogue holds the item {item!r} already: add only new ones, each once.")
            known.add(item)
        frame = pl.concat([self.catalog.to_frame(), items.to_frame()], how="vertical_relaxed")
        texts_NE = torch.from_numpy(self.encoder.encode(items.texts()))
        self.index.add(self.model.text(texts_NE))
        self.cooccurrence = self.cooccurrence.grown(len(self.index))
        with self._lock:
            self.catalog, self._bm25 = Catalog.from_frame(frame), None

    def save(self, folder: Path) -> None:
        """Weights, item vectors with their index, and the catalogue: all that recommending needs.

        Over what TRM is there; a kill leaves the old one or the new.

        Raises:
            DeepRecError: the folder can't be written.
        """
        stamp = _STAMP + secrets.token_hex(4)
        files = folder / stamp
        try:
            files.mkdir(parents=True)
            weights = {name: tensor for name, tensor in self.model.state_dict().items() if name != _IDS}
            save_file(weights, files / "model.safetensors")
            np_save_file(self.cooccurrence.parts(), files / "cooccurrence.safetensors")
            self.index.save(files / "index")
            self.catalog.to_frame().write_parquet(files / "catalog.parquet")
            config = self.config.model_dump(mode="json")
            record = {
                "format_version": FORMAT_VERSION,
                "files": stamp,
                "config": config,
                "preference_weight": self.preference_weight,
            }
            part = folder / f"{_RECORD}.part"
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            os.replace(part, folder / _RECORD)  # from here on the folder holds this TRM and no other
        except (DeepRecError, OSError, SafetensorError) as error:
            shutil.rmtree(files, ignore_errors=True)
            if isinstance(error, DeepRecError):  # the index has said what is wrong
                raise
            raise DeepRecError(
                f"The TRM can't be written to {folder} ({one_line(error)}): make room there or mend its permissions."
            ) from None
        for old in folder.glob(_STAMP + 8 * "[0-9a-f]"):
            if old.name != stamp:
                shutil.rmtree(old, ignore_errors=True)  # what is mapped of it lives on in memory

    @classmethod
    def load(cls, folder: Path, *, offline: bool = False) -> TRM:
        """A saved TRM with its catalogue; no data set is needed to recommend for any history.

        Raises:
            DeepRecError: the folder holds no TRM, or a damaged one.
        """
        try:
            record = json.loads(_there(folder / _RECORD).read_text(encoding="utf-8"))
            if record.get("format_version") != FORMAT_VERSION:
                raise ValueError("it was trained by another version of DeepRec")
            files = folder / record["files"]
            config, preference_weight = TRMConfig.model_validate(record["config"]), record["preference_weight"]
            catalog = Catalog.from_frame(pl.read_parquet(_there(files / "catalog.parquet")))
            state = load_file(_there(files / "model.safetensors"))
            # The index holds the item vectors; the ids that they were made of are needed in training only.
            model = PreferenceSASRec(config, torch.empty(0, state["text.weight"].shape[1]))
            model.load_state_dict(state | {_IDS: torch.empty(0, config.width)})
            cooccurrence = CoOccurrence.from_parts(np_load_file(_there(files / "cooccurrence.safetensors")))
            index = Index.load(files / "index")
            if cooccurrence.shares_II.shape[0] != len(catalog):
                raise ValueError(
                    f"neighbours of {cooccurrence.shares_II.shape[0]} items, {len(catalog)} in the catalogue"
                )
            if len(catalog) != len(index):
                raise ValueError(f"{len(index)} items in the index, {len(catalog)} in the catalogue")
            if index.width != config.width:
                raise ValueError(f"vectors of width {index.width} in the index, {config.width} in the model")
        except FileNotFoundError as error:
            raise DeepRecError(
                f"{folder} holds no trained TRM ({Path(error.filename or folder).name} is missing): train one with "
                "`deeprec trm train --again`."
            ) from None
        except NoFaissError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a damaged file makes its reader raise)
            raise DeepRecError(
                f"{folder} holds a damaged or unfit TRM ({one_line(error)}): "
                "train it again with `deeprec trm train --again`."
            ) from None
        return cls(model, catalog, TextEncoder.load(offline=offline), config, index, cooccurrence, preference_weight)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "missing", str(path))
    return path


def _weigh(scores_QI: csr_array, weights_Q: NDArray[np.floating]) -> None:
    """Multiplies each row, in place."""
    scores_QI.data *= np.repeat(weights_Q, np.diff(scores_QI.indptr))


def _among(keys_N: NDArray[np.int64], sorted_M: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are among sorted ones; several times as fast as the set functions of NumPy."""
    positions_N = np.searchsorted(sorted_M, keys_N)
    found_N: NDArray[np.bool_] = positions_N < sorted_M.size
    found_N[found_N] = sorted_M[positions_N[found_N]] == keys_N[found_N]
    return found_N
