"""The TRM as users meet it: fitted to a data set, saved in a folder, asked as a retriever."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as np_load_file
from safetensors.numpy import save_file as np_save_file
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, DEFAULT_TEXT_ENCODER, TRMConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset
from deeprec.data.filters import ItemFilter, allowed_items
from deeprec.data.item_set import contains
from deeprec.errors import DeepRecError, one_line
from deeprec.evaluation.metrics import ndcg_at
from deeprec.retrieval.bm25 import BM25
from deeprec.retrieval.cooccurrence import CoOccurrence
from deeprec.retrieval.index import Index, NoFaissError, import_faiss
from deeprec.retrieval.names import Names
from deeprec.retrieval.retriever import Hit, Query, Retriever, flatten, forbid, queries_of, rank, rows_by_set
from deeprec.retrieval.saving import replacing
from deeprec.trm.calibration import calibrate_preference_weight
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.preferences import encode_preferences, frequent_phrases
from deeprec.trm.text_encoder import TextEncoder, coincidence_notes
from deeprec.trm.training import Epoch, train

FORMAT_VERSION = 6  # of saved TRMs. Raise it if older ones can't be loaded, or their trainings can't be resumed
_BATCH = 256
_T = TypeVar("_T")
IDS = "ids.weight"
_MAX_REDUCTION = 0.5  # share of the co-occurrence offset that a fully applied preference removes
_FULL_BM25_WEIGHT = 0.1  # preference weight from which on BM25 counts in full: a shared word is a fact, not a guess

History = Sequence[str | ItemIdx]  # items by title, id or position in the catalogue, oldest first


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """What a training goes on from: the items of an earlier TRM and others, in the order of the new one.

    The catalogue begins with the items of the data that are trained on.
    """

    catalog: Catalog
    weights: Mapping[str, torch.Tensor]
    cooccurrence: CoOccurrence


class TRM(Retriever):
    """A trained preference-aware recommender; a `Retriever` for any history, also of users never seen.

    `preference_weight` suits guessed preferences on this catalogue; `curve` has the training's epochs, none after
    `load`. `notes` are sentences about what the training found.
    """

    catalog: Catalog

    def __init__(
        self,
        model: PreferenceSASRec,
        catalog: Catalog,
        encoder: TextEncoder,
        config: TRMConfig,
        cooccurrence: CoOccurrence,
        index: Index | None = None,
        preference_weight: float | None = None,
    ) -> None:
        """A TRM from its parts; without an index, one of the network's item vectors is built."""
        self.model, self.encoder, self.config = model.eval(), encoder, config
        self.catalog, self.cooccurrence = catalog, cooccurrence
        with torch.inference_mode():
            self.index = index or Index.build(model.items(), config.index)
        self.preference_weight = preference_weight
        self.curve: tuple[Epoch, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._bm25: BM25 | None = None
        self._names: Names | None = None
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:  # type: ignore[override]  # computed, and only read
        """sha256 (hex) of what decides its rankings beside the catalogue's text: weights, item vectors, encoder."""
        digest = hashlib.sha256(self.config.model_dump_json().encode() + self.encoder.digest.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if name != IDS:  # a saved TRM has none
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        for array in (self.index.vectors_ID, self.cooccurrence.shares_II.data):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def bm25(self) -> BM25:
        """Of the catalogue. Made when first needed, since a large catalogue takes a while."""
        with self._lock:
            if self._bm25 is None:
                self._bm25 = BM25(self.catalog)
            return self._bm25

    @property
    def names(self) -> Names:
        """Of the catalogue. Made when first needed, as `bm25`."""
        with self._lock:
            if self._names is None:
                self._names = Names(self.catalog)
            return self._names

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        config: TRMConfig | None = None,
        encoder: TextEncoder | None = None,
        *,
        start: Start | None = None,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> TRM:
        """Train on the training interactions; the validation targets choose the epoch and calibrate.

        The encoder of item texts and preferences is that of `config.text_encoder` by default, fetched if the cache
        lacks it. `start` is an earlier TRM to go on from (see `update_trm`). `checkpoint` is a file that is written
        after every epoch; a training that finds it resumes. DeepRecError if no user has three interactions, the loss
        diverged, or the encoder can't be loaded.
        """
        config = config or TRMConfig()
        tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
        if not tasks:
            raise DeepRecError(f"{dataset.name}: no user has the 3 interactions that training and validation need.")
        if config.index in ("hnsw", "ivfpq"):
            import_faiss(config.index)  # fails now and not after the training
        encoder = encoder or TextEncoder.load(source=config.text_encoder)
        queries, targets_Q = queries_of(tasks), np.array([targets[task.id] for task in tasks])
        sequences, catalog = dataset.train_sequences(), start.catalog if start else dataset.catalog
        cooccurrence = CoOccurrence.fit(sequences, len(catalog))
        if start:
            cooccurrence = cooccurrence.filled(start.cooccurrence, len(dataset.catalog))
        exact = config.model_copy(update={"index": "exact"})

        def validate(model: PreferenceSASRec) -> float:
            trm = cls(model, catalog, encoder, exact, cooccurrence)
            return float(ndcg_at(trm.ranks(queries, targets_Q), 10).mean())

        weights = start.weights if start else None
        model, curve = train(sequences, catalog, encoder, config, validate, checkpoint, on_epoch, weights)
        trm = cls(model, catalog, encoder, config, cooccurrence)
        trm.curve, trm.exclude_history = tuple(curve), dataset.exclude_history
        trm.notes = coincidence_notes(catalog.texts(), model.text_ID.numpy())
        trm.preference_weight = calibrate_preference_weight(trm.ranks, catalog, tasks, targets_Q)
        return trm

    def recommend(
        self,
        users: Dataset | Mapping[str, History] | Sequence[History],
        k: int = 10,
        *,
        preference: str = "",
        preference_weight: float | None = None,
        exclude_history: bool | None = None,
        filter: ItemFilter | None = None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> pl.DataFrame:
        """The `k` best items for each user; fewer only if the catalogue has no more.

        Args:
            users: a data set, of which each user's whole sequence is the history; histories by user; or a sequence of
                histories, whose users are "0", "1" and so on.
            preference: in words, the same for all users, and asked for outright: what it names leads.
            preference_weight: how far the preference moves the ranking (0..1); default: 0.75.
            exclude_history: leave a user's history out; default: not where targets of the TRM's data repeated theirs.
            filter: which items may be recommended; default: all.
            on_batch: called with the number of users done, and of all.

        Returns:
            A frame, best items first: user (str), item (id, str), title (str), rank (1..k, int), score (float; see
            `retrieve`). DeepRecError if the catalogue lacks an item, no item passes the filter, or `k` or the weight is
            out of bounds.
        """
        if k < 1:
            raise DeepRecError(f"k is the number of items to recommend, at least 1, not {k}.")
        weight = DEFAULT_PREFERENCE_WEIGHT if preference_weight is None else preference_weight
        excludes = self.exclude_history if exclude_history is None else exclude_history
        allowed = allowed_items(self.catalog, filter)
        queries = {
            name: Query(history, preference, frozenset(history if excludes else ()), weight, allowed, requested=True)
            for name, history in self._histories(users).items()
        }
        ids, titles = self.catalog.ids, self.catalog.titles
        rows: list[tuple[str, str, str, int, float]] = []
        for done, batch in _batches(list(queries)):
            for name, hits in zip(batch, self.retrieve([queries[name] for name in batch], k), strict=True):
                rows += [(name, ids[hit.item], titles[hit.item], n, hit.score) for n, hit in enumerate(hits, start=1)]
            on_batch(done, len(queries))
        schema = {"user": pl.String, "item": pl.String, "title": pl.String, "rank": pl.Int64, "score": pl.Float64}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _histories(self, users: Dataset | Mapping[str, History] | Sequence[History]) -> dict[str, tuple[ItemIdx, ...]]:
        if isinstance(users, Dataset):
            # By id: the TRM may have been fitted to other data.
            items = [self.catalog.index(item) for item in users.catalog.ids]
            return {user: tuple(items[item] for item in users.sequence(u)) for u, user in enumerate(users.users)}
        if not isinstance(users, Mapping):
            users = {str(number): history for number, history in enumerate(users)}
        return {str(user): self.catalog.history(history) for user, history in users.items()}

    def retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """See `Retriever`. A score is an inner product plus score offsets, comparable within one query only."""
        return [hits for _, batch in _batches(queries) for hits in self._retrieve(batch, k)]

    def _retrieve(self, queries: Sequence[Query], k: int) -> list[list[Hit]]:
        """The best of what the index finds and of all items with an offset; no other item can be better."""
        users_QD, offsets_QI = self._condition(queries)
        exclude = [query.exclude for query in queries]
        include = [query.include for query in queries]
        hits = self.index.search(users_QD, k, exclude, include)
        if not offsets_QI.nnz:
            return hits
        found_N, excluded_N = self._keys([[hit.item for hit in found] for found in hits]), self._keys(exclude)
        offset_N = np.repeat(np.arange(len(queries)), np.diff(offsets_QI.indptr)) * len(self.index) + offsets_QI.indices
        allowed_N = ~contains(np.sort(excluded_N), offset_N)
        starts_Q1 = offsets_QI.indptr
        for items, rows in rows_by_set(include):
            if items is not None:
                for start, end in zip(starts_Q1[rows], starts_Q1[1:][rows], strict=True):
                    allowed_N[start:end] &= items.contains(offsets_QI.indices[start:end])
        others_N = found_N[~contains(offset_N, found_N)]
        keys_N = np.concatenate([offset_N[allowed_N], others_N])
        offsets_N = np.concatenate([offsets_QI.data[allowed_N], np.zeros(others_N.size)])
        order_N = np.argsort(keys_N, kind="stable")
        rows_N, items_N = np.divmod(keys_N[order_N], len(self.index))
        scores_N = self.index.inner(users_QD, rows_N, items_N) + offsets_N[order_N]
        return rank(len(queries), rows_N, items_N, scores_N, k)

    def _keys(self, items: Sequence[Collection[ItemIdx]]) -> NDArray[np.int64]:
        """One number for each pair of row and item, so that pairs can be looked up."""
        rows_N, items_N = flatten(items)
        return rows_N * len(self.index) + items_N

    def ranks(self, queries: Sequence[Query], targets: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The 0-based rank (Q,) of each query's target among the items that may come back; -1 if it may not."""
        ranks = []
        for done, batch in _batches(queries):
            scores_BI = self.scores(batch)
            forbid(scores_BI, batch)
            for scores_I, target in zip(scores_BI, targets[done - len(batch) : done], strict=True):
                own = scores_I[target]
                ahead = (scores_I > own).sum() + (scores_I[:target] == own).sum()
                ranks.append(int(ahead) if own > -np.inf else -1)
        return np.array(ranks, dtype=np.int64)

    def scores(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Scores (Q, I) of all items, also of those that may not come back: inner products plus score offsets."""
        users_QD, offsets_QI = self._condition(queries)
        items_ID = torch.from_numpy(self.index.vectors_ID)
        scores_QI: NDArray[np.float32] = (torch.from_numpy(users_QD) @ items_ID.T).numpy()
        offsets_QI = offsets_QI.tocoo()
        scores_QI[offsets_QI.row, offsets_QI.col] += offsets_QI.data.astype(np.float32)
        return scores_QI

    @torch.inference_mode()
    def _condition(self, queries: Sequence[Query]) -> tuple[NDArray[np.float32], csr_array]:
        """User vectors (Q, D) in the space of the item vectors, and score offsets (Q, I).

        Co-occurrence offsets shrink as far as the preference is applied; BM25 offsets come from its words. What a
        request names comes first.
        """
        states_QD = self._encode([query.history[-self.config.history :] for query in queries])
        preferences = [query.preference for query in queries]
        preferences_QE, given_Q = encode_preferences(self.encoder, preferences)
        given = [query.history if given else () for query, given in zip(queries, given_Q.tolist(), strict=True)]
        frequent = ["; ".join(frequent_phrases(self.catalog, history)) for history in given]
        frequent_QE, _ = encode_preferences(self.encoder, frequent)
        weight_Q = torch.tensor([query.preference_weight for query in queries]) * given_Q
        users_QD, applied_Q = self.model.condition(states_QD, preferences_QE, frequent_QE, weight_Q)
        # Without a weight nothing is looked up.
        histories = [query.history if self.config.cooccurrence else () for query in queries]
        offsets_QI = self.cooccurrence.score_offsets(histories)
        _scale_rows(offsets_QI, self.config.cooccurrence * (1 - _MAX_REDUCTION * applied_Q.numpy()))
        if self.config.bm25 and weight_Q.any():
            bm25_QI = self.bm25.scores(preferences)
            _scale_rows(bm25_QI, self.config.bm25 * np.minimum(1, weight_Q.numpy() / _FULL_BM25_WEIGHT))
            offsets_QI = offsets_QI + bm25_QI  # both have sorted indices, so the sum has them too
        pairs = zip(queries, weight_Q.tolist(), strict=True)
        requests = [query.preference if query.requested and weight else "" for query, weight in pairs]
        if any(requests):
            levels_QI = self.names.levels(requests)
            # No two items differ by as much: inner products are at most that of the norms, offsets not below 0.
            spread_Q = 1 + 2 * self.index.max_norm * users_QD.norm(dim=1).numpy()
            _scale_rows(levels_QI, spread_Q + offsets_QI.max(axis=1).toarray())
            offsets_QI = offsets_QI + levels_QI
        return users_QD.numpy(), offsets_QI

    def _encode(self, histories: Sequence[Sequence[ItemIdx]]) -> torch.Tensor:
        """The network's states (Q, D) after the last item of each history."""
        # An empty history reads one padding item, whose vector is zero.
        lengths_Q = np.array([max(len(history), 1) for history in histories], dtype=np.int64)
        rows_QT = np.full((len(histories), lengths_Q.max(initial=1)), len(self.index))
        for row, history in enumerate(histories):
            rows_QT[row, : len(history)] = history
        # Only the vectors of the histories' items: the others may lie in a file.
        items, rows = np.unique(rows_QT, return_inverse=True)
        items_ND = torch.from_numpy(self.index.vectors_ID[items[items < len(self.index)]])
        states_QTD = self.model.encode(items_ND, torch.from_numpy(rows.reshape(rows_QT.shape)))
        return states_QTD[np.arange(len(histories)), lengths_Q - 1]

    @torch.inference_mode()
    def add_items(self, items: Catalog) -> None:
        """Make items retrievable that training never saw, by vectors from their text alone.

        They follow the known items of the catalogue. Nothing is trained; the cost is that of `Index.add`.
        DeepRecError if the catalogue has an id already.
        """
        [(item, times)] = Counter([*self.catalog.ids, *items.ids]).most_common(1)
        if times > 1:
            raise DeepRecError(f"The catalogue holds the item {item!r} already: add only new ones, each once.")
        frame = pl.concat([self.catalog.to_frame(), items.to_frame()], how="vertical_relaxed")
        texts_NE = torch.from_numpy(self.encoder.encode(items.texts()))
        self.index.add(self.model.text(texts_NE))
        self.cooccurrence = self.cooccurrence.moved(np.arange(len(self.catalog)), len(self.index))
        with self._lock:
            self.catalog, self._bm25, self._names = Catalog.from_frame(frame), None, None

    def save(self, folder: Path | str) -> None:
        """Write weights, index, co-occurrence and catalogue: all that recommending needs.

        A TRM that is there is replaced; a kill leaves the old one or the new. DeepRecError if it can't be written.
        """
        with replacing(Path(folder), "trm", "TRM") as (files, record):
            weights = {name: tensor for name, tensor in self.model.state_dict().items() if name != IDS}
            save_file(weights, files / "model.safetensors")
            np_save_file(self.cooccurrence.to_arrays(), files / "cooccurrence.safetensors")
            self.index.save(files / "index")
            self.catalog.to_frame().write_parquet(files / "catalog.parquet")
            config = self.config.model_dump(mode="json")
            record |= {"format_version": FORMAT_VERSION, "config": config, "preference_weight": self.preference_weight}
            encoder = {name: getattr(self.encoder, name) for name in ("source", "digest", "width")}
            record |= {"text_encoder": encoder, "notes": self.notes, "exclude_history": self.exclude_history}

    @classmethod
    def load(cls, folder: Path | str, *, offline: bool = False, encoder: TextEncoder | None = None) -> TRM:
        """A saved TRM with its catalogue, ready to recommend without a data set.

        The text encoder is by default looked for where it was at the training. DeepRecError if the folder holds no TRM,
        a damaged one, or one of another version of DeepRec; if the encoder is another than at the training; or if
        `offline` and the cache lacks it.
        """
        folder = Path(folder)
        try:
            record = json.loads((folder / "trm.json").read_text(encoding="utf-8"))
            if record.get("format_version") != FORMAT_VERSION:
                raise ValueError("it was trained by another version of DeepRec")
            names = ("catalog.parquet", "model.safetensors", "cooccurrence.safetensors")
            files = folder / record["folder"]
            catalog_file, model_file, cooccurrence_file = ((files / name).resolve(strict=True) for name in names)
            config, preference_weight = TRMConfig.model_validate(record["config"]), record["preference_weight"]
            catalog = Catalog.from_frame(pl.read_parquet(catalog_file))
            state = load_file(model_file)
            # The index has the item vectors; only training needs the ids that they are made of.
            model = PreferenceSASRec(config, torch.empty(0, state["text.weight"].shape[1]))
            model.load_state_dict(state | {IDS: torch.empty(0, config.width)})
            cooccurrence = CoOccurrence.from_arrays(np_load_file(cooccurrence_file))
            index = Index.load(files / "index")
            sizes = len(catalog), len(index), cooccurrence.shares_II.shape[0]
            if len(set(sizes)) > 1:
                raise ValueError("{} items in the catalogue, {} in the index, {} in the co-occurrence".format(*sizes))
            if index.width != config.width:
                raise ValueError(f"vectors of width {index.width} in the index, {config.width} in the model")
        except NoFaissError:
            raise
        except Exception as error:  # noqa: BLE001 (readers of damaged files raise anything)
            fault = f"a damaged or unfit TRM ({one_line(error)})"
            if isinstance(error, FileNotFoundError):
                fault = f"no trained TRM ({Path(error.filename or folder).name} is missing)"
            raise DeepRecError(f"{folder} holds {fault}: train it again with `deeprec trm train --again`.") from None
        # A TRM of before has no record of its encoder, which was the default one.
        known = record.get("text_encoder") or {"source": DEFAULT_TEXT_ENCODER, "width": model.text.in_features}
        try:
            encoder = encoder or TextEncoder.load(source=known["source"], offline=offline)
        except DeepRecError as error:
            raise DeepRecError(f"{folder} needs the text encoder of its training. {error}") from None
        _refuse_other_encoder(folder, known, encoder)
        trm = cls(model, catalog, encoder, config, cooccurrence, index, preference_weight)
        trm.notes = tuple(record.get("notes", ()))
        trm.exclude_history = record.get("exclude_history", True)  # older TRMs have none
        return trm


def _refuse_other_encoder(folder: Path, known: Mapping[str, Any], encoder: TextEncoder) -> None:
    if encoder.width != known["width"]:
        fault = f"whose vectors have {known['width']} numbers, not {encoder.width}"
    elif encoder.digest != known.get("digest", encoder.digest):
        fault = "whose files were others"
    else:
        return
    raise DeepRecError(
        f"{folder} was trained with the text encoder {known['source']}, {fault} as those of {encoder.source}: bring "
        "that encoder back, or train again with `deeprec trm train --again`."
    )


def _batches(entries: Sequence[_T]) -> Iterator[tuple[int, Sequence[_T]]]:
    """Up to `_BATCH` at a time, each with the number of entries up to its end."""
    for start in range(0, len(entries), _BATCH):
        batch = entries[start : start + _BATCH]
        yield start + len(batch), batch


def _scale_rows(scores_QI: csr_array, weights_Q: NDArray[np.floating]) -> None:
    """In place."""
    scores_QI.data *= np.repeat(weights_Q, np.diff(scores_QI.indptr))
