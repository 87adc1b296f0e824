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
from deeprec.metrics import ndcg_at
from deeprec.trm.index import Index, NoFaissError, import_faiss
from deeprec.trm.lexical import Lexical
from deeprec.trm.model import PreferenceSASRec
from deeprec.trm.neighbours import Neighbours
from deeprec.trm.preferences import encode_preferences, themes
from deeprec.trm.retriever import Hit, Query, pairs, queries_of, rank
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.training import Epoch, train
from deeprec.trm.worth import worth_of_guesses

_BATCH = 256
_IDS = "ids.weight"
_RECORD = "trm.json"
_STAMP = "trm-"
"""Of the folders beside it that hold what is saved."""
_GIVES_WAY = 0.5
"""Of what neighbours add, the part that a preference takes away which is wholly heard."""
_TAKEN_AT_WORD = 0.1
"""The trust from which on a preference's words count in full: that an item bears them is no guess."""
EDITION = 5
"""Of saved TRMs; raise it when those of before can't be loaded, or trainings with them not gone on with."""


class TRM:
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
        neighbours: Neighbours,
        trust: float | None = None,
    ) -> None:
        self.model = model.eval()
        self.catalog = catalog
        self.encoder = encoder
        self.config = config
        self.index = index
        self.neighbours = neighbours
        self.trust = trust
        self._lexical: Lexical | None = None
        self._lock = threading.Lock()

    @property
    def lexical(self) -> Lexical:
        """Of the catalogue; made when a preference first asks for it, for that takes a while in a large one."""
        with self._lock:
            if self._lexical is None:
                self._lexical = Lexical(self.catalog)
            return self._lexical

    @classmethod
    def of(
        cls,
        model: PreferenceSASRec,
        catalog: Catalog,
        encoder: TextEncoder,
        config: TRMConfig,
        neighbours: Neighbours,
    ) -> TRM:
        """The TRM of a trained network, with the index of its item vectors."""
        with torch.inference_mode():
            vectors_ID = model.eval().items()
        return cls(model, catalog, encoder, config, Index.build(vectors_ID, config.index), neighbours)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        encoder: TextEncoder,
        config: TRMConfig,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> tuple[TRM, list[Epoch]]:
        """Train on all but the last two interactions of each user; the second last validates, and sets the trust.

        Returns the model of the best validation epoch and the curve. See `training.train` for the checkpoint.
        """
        tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
        if not tasks:
            raise DeepRecError(f"{dataset.name}: no user has the 3 interactions that training and validation need.")
        if config.index in ("hnsw", "ivfpq"):
            import_faiss(config.index)  # now, and not after the training
        queries = queries_of(tasks)
        wanted = np.array([targets[task.id] for task in tasks])
        sequences = dataset.train_sequences()
        neighbours = Neighbours.of(sequences, len(dataset.catalog))

        def validate(model: PreferenceSASRec) -> float:
            with torch.inference_mode():
                exact = Index.build(model.eval().items(), "exact")
            ranks_Q = cls(model, dataset.catalog, encoder, config, exact, neighbours).ranks(queries, wanted)
            return float(ndcg_at(ranks_Q, 10).mean())

        model, curve = train(sequences, dataset.catalog, encoder, config, validate, checkpoint, on_epoch)
        trm = cls.of(model, dataset.catalog, encoder, config, neighbours)
        trm.trust = worth_of_guesses(trm.ranks, dataset.catalog, tasks, wanted)
        return trm, curve

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """See `Retriever`."""
        hits = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            hits += self._retrieve(batch, k)
        return hits

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """The best by vectors alone, and all that have a bonus: what the index does not miss can't be better."""
        users_QD, bonuses_QI = self._hear(queries)
        exclude = [query.exclude for query in queries]
        found = self.index.search(users_QD, k, exclude)
        if not bonuses_QI.nnz:
            return found
        n_items = len(self.index)
        # A pair of row and item is one number, so that pairs can be looked up among sorted ones.
        rows_N, items_N = pairs([[hit.item for hit in hits] for hits in found])
        found_N = rows_N * n_items + items_N
        rows_N, items_N = pairs(exclude)
        shut_N = np.sort(rows_N * n_items + items_N)
        near_N = np.repeat(np.arange(len(queries)), np.diff(bonuses_QI.indptr)) * n_items + bonuses_QI.indices
        open_N, others_N = ~_among(near_N, shut_N), found_N[~_among(found_N, near_N)]
        keys_N = np.concatenate([near_N[open_N], others_N])
        bonuses_N = np.concatenate([bonuses_QI.data[open_N], np.zeros(others_N.size)])
        order_N = np.argsort(keys_N, kind="stable")
        rows_N, items_N = np.divmod(keys_N[order_N], n_items)
        scores_N = self.index.inner(users_QD, rows_N, items_N) + bonuses_N[order_N]
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
        users_QD, bonuses_QI = self._hear(queries)
        scores_QI: NDArray[np.float32] = (
            torch.from_numpy(users_QD) @ torch.from_numpy(self.index.vectors_ID).T
        ).numpy()
        bonuses_QI = bonuses_QI.tocoo()
        scores_QI[bonuses_QI.row, bonuses_QI.col] += bonuses_QI.data.astype(np.float32)
        return scores_QI

    @torch.inference_mode()
    def _hear(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], csr_array]:
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
            "; ".join(themes(self.catalog, query.history)) if given else ""
            for query, given in zip(queries, given_Q.tolist(), strict=True)
        ]
        themes_QE, _ = encode_preferences(self.encoder, said)
        trust_Q = torch.tensor([query.trust for query in queries]) * given_Q
        users_QD, heard_Q = self.model.listen(states_QD, preferences_QE, themes_QE, trust_Q)
        # Where they weigh nothing, none are looked for.
        bonuses_QI = self.neighbours.bonuses([query.history if self.config.neighbours else () for query in queries])
        _weigh(bonuses_QI, self.config.neighbours * (1 - _GIVES_WAY * heard_Q.numpy()))
        if self.config.lexical and trust_Q.any():
            shared_QI = self.lexical.scores([query.preference for query in queries])
            _weigh(shared_QI, self.config.lexical * np.minimum(1, trust_Q.numpy() / _TAKEN_AT_WORD))
            bonuses_QI = bonuses_QI + shared_QI  # in rising order, as both are
        return users_QD.numpy(), bonuses_QI

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
        self.neighbours = self.neighbours.grown(len(self.index))
        with self._lock:
            self.catalog, self._lexical = Catalog.from_frame(frame), None

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
            np_save_file(self.neighbours.parts(), files / "neighbours.safetensors")
            self.index.save(files / "index")
            self.catalog.to_frame().write_parquet(files / "catalog.parquet")
            config = self.config.model_dump(mode="json")
            record = {"edition": EDITION, "files": stamp, "config": config, "trust": self.trust}
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
            if record.get("edition") != EDITION:
                raise ValueError("it was trained by another version of DeepRec")
            files = folder / record["files"]
            config, trust = TRMConfig.model_validate(record["config"]), record["trust"]
            catalog = Catalog.from_frame(pl.read_parquet(_there(files / "catalog.parquet")))
            state = load_file(_there(files / "model.safetensors"))
            # The index holds the item vectors; the ids that they were made of are needed in training only.
            model = PreferenceSASRec(config, torch.empty(0, state["text.weight"].shape[1]))
            model.load_state_dict(state | {_IDS: torch.empty(0, config.width)})
            neighbours = Neighbours.from_parts(np_load_file(_there(files / "neighbours.safetensors")))
            index = Index.load(files / "index")
            if neighbours.shares_II.shape[0] != len(catalog):
                raise ValueError(
                    f"neighbours of {neighbours.shares_II.shape[0]} items, {len(catalog)} in the catalogue"
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
        return cls(model, catalog, TextEncoder.load(offline=offline), config, index, neighbours, trust)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "missing", str(path))
    return path


def _weigh(scores_QI: csr_array, weights_Q: NDArray[np.floating]) -> None:
    """Multiplies each row, in place."""
    scores_QI.data *= np.repeat(weights_Q, np.diff(scores_QI.indptr))


def _among(keys_N: NDArray[np.int64], sorted_M: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are among sorted ones; several times as fast as the set functions of NumPy."""
    places_N = np.searchsorted(sorted_M, keys_N)
    found_N: NDArray[np.bool_] = places_N < sorted_M.size
    found_N[found_N] = sorted_M[places_N[found_N]] == keys_N[found_N]
    return found_N
