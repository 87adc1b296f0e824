"""Item vectors and the best of them for a query, found exactly or, in a large catalogue, by FAISS."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeprec.assets.downloads import sha256_of
from deeprec.data.item_set import ItemSet, contains
from deeprec.errors import DeepRecError, one_line
from deeprec.retrieval.gathered import GatheredVectors
from deeprec.retrieval.retriever import Hit, flatten, rank, rows_by_set, shortlist
from deeprec.retrieval.saving import replacing

Kind = Literal["exact", "hnsw", "ivfpq"]
Vectors = NDArray[np.float32]
Excluded = Sequence[Collection[int]]
Included = Sequence[Collection[int] | None]

_VECTORS, _FAISS = "vectors.npy", "faiss.bin"
_FORMAT_VERSION = 2
_EXACT_LIMIT = 200_000  # items up to which "auto" compares all
_SCORES = 1 << 25  # scores that an exact search holds in memory at once
_PAIRS = 4096  # pairs of a query and an item that are scored at once: they fit in a processor's cache
_GATHERED_SHARE = 0.25  # of the vectors that may be kept gathered, for filters that come again
_GATHER_COST = 18  # queries of a batch that a vector is compared with in the time that gathering it takes
_READ_COST = 3  # likewise for reading it where it lies
_MIN_TRAINING = 256  # one vector for each code of `ivfpq`, which is a byte


class NoFaissError(DeepRecError):
    """FAISS is needed and not installed."""


@dataclass(eq=False, repr=False)
class Index:
    """Item vectors (I, D) and the best of them by inner product.

    `exact` compares every item. With `hnsw` (a graph) and `ivfpq` (lists of short codes) FAISS names candidates, which
    lack few or none of the best, and the vectors score them. So every kind gives the same scores: inner products,
    summed in float64 and rounded to float32. A score does not depend on the batch, and equal vectors tie.
    `faiss.hnsw.efSearch` and `faiss.nprobe`, which are saved with the index, trade time for recall. A query that
    includes certain items only is compared with all of these, so for it every kind is exact.
    """

    kind: Kind
    vectors_ID: Vectors  # a file mapped into memory after `load`
    max_norm: float  # of all vectors; it bounds rounding errors
    faiss: Any = None  # FAISS's own index; None for exact search
    refine: int = 4  # candidates that `ivfpq` scores for each hit, since its codes rank coarsely
    mapped: bool = False
    gathered: GatheredVectors = field(init=False)

    def __post_init__(self) -> None:
        self.gathered = GatheredVectors(int(_GATHERED_SHARE * len(self)))

    @classmethod
    def build(cls, vectors_ID: NDArray[np.floating] | Tensor, kind: Kind | Literal["auto"] = "auto") -> Index:
        """An index of vectors (I, D), which are not copied if they are float32 rows already.

        The kind "auto" is exact for at most 200,000 items, and hnsw for more if FAISS is installed. DeepRecError if
        the vectors are no finite matrix or too few for `ivfpq`, or FAISS is not installed.
        """
        vectors_ID = _matrix(vectors_ID, "items")
        n_items, width = vectors_ID.shape
        if not vectors_ID.size:
            raise DeepRecError(f"An index needs vectors and was given {n_items} of width {width}: add items.")
        if kind == "auto":
            # Exact search of a large catalogue without FAISS is slow, but right.
            kind = "hnsw" if n_items > _EXACT_LIMIT and importlib.util.find_spec("faiss") else "exact"
        index = None
        if kind != "exact":
            index = _empty(kind, n_items, width)
            index.train(vectors_ID)
            index.add(vectors_ID)
        return cls(kind, vectors_ID, _max_norm(vectors_ID), index)

    def __len__(self) -> int:
        return len(self.vectors_ID)

    @property
    def width(self) -> int:
        return self.vectors_ID.shape[1]

    def search(
        self, vectors_QD: NDArray[np.floating] | Tensor, k: int, exclude: Excluded = (), include: Included = ()
    ) -> list[list[Hit]]:
        """For each query (Q, D) at most `k` hits, best first, equal scores by lower index.

        Fewer than `k` come back only if there are no more. `exclude` holds, for each query, the items that are not
        returned, and `include` the only ones that are, or None. DeepRecError if they have others than the index, or the
        queries are no finite matrix of the items' width.
        """
        queries_QD = _matrix(vectors_QD, "queries", self.width)
        exclude, include = exclude or [()] * len(queries_QD), include or [None] * len(queries_QD)
        for n, what in ((len(exclude), "exclude"), (len(include), "include")):
            if n != len(queries_QD):
                raise DeepRecError(f"{len(queries_QD)} queries came with {n} collections to {what}: give each one.")
        hits: dict[int, list[Hit]] = {}
        whole: dict[int, ItemSet] = {}  # by row: sets that are not worth gathering
        for among, rows in rows_by_set(include):
            batch = queries_QD[rows], k, [exclude[row] for row in rows]
            if among is None:
                found = self._scan(*batch) if self.faiss is None else self._approximate(*batch)
            elif self._is_worth_gathering(among.within(len(self)), len(rows), len(queries_QD)):
                found = self._scan(*batch, among)
            else:
                whole |= dict.fromkeys(rows, among)
                continue
            hits |= zip(rows, found, strict=True)
        rows = list(whole)
        found = self._scan_whole(queries_QD[rows], k, [exclude[row] for row in rows], list(whole.values()))
        hits |= zip(rows, found, strict=True)
        return [hits[row] for row in range(len(queries_QD))]

    def add(self, vectors_ND: NDArray[np.floating] | Tensor) -> None:
        """Append items after the known ones. It copies all vectors, so add many at once.

        The lists and codes of `ivfpq` are not fitted again: build a new index when the catalogue has changed much.
        DeepRecError if the vectors are no finite matrix of the items' width.
        """
        vectors_ND = _matrix(vectors_ND, "new items", self.width)
        if self.faiss is not None:
            if self.mapped:  # FAISS kills the process if a mapped index has to grow, so copy it
                faiss = import_faiss(self.kind)
                self.faiss = faiss.deserialize_index(faiss.serialize_index(self.faiss))
            self.faiss.add(vectors_ND)
        self.vectors_ID = np.concatenate([self.vectors_ID, vectors_ND])
        self.max_norm, self.mapped = max(self.max_norm, _max_norm(vectors_ND)), False
        self.gathered.clear()

    def save(self, folder: Path) -> None:
        """Write the index into a folder of its own and replace one that is there; errors as in `replacing`."""
        with replacing(folder, "index", "index") as (files, record):
            np.save(files / _VECTORS, self.vectors_ID)
            if self.faiss is not None:
                import_faiss(self.kind).write_index(self.faiss, str(files / _FAISS))
            record |= {"format_version": _FORMAT_VERSION, "kind": self.kind, "items": len(self), "width": self.width}
            record |= {"max_norm": self.max_norm, "refine": self.refine}
            written = sorted(files.iterdir())
            record["files"] = {p.name: {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in written}

    @classmethod
    def load(cls, folder: Path, *, read_all: bool = False) -> Index:
        """A saved index, mapped into memory: parts are read when a search needs them.

        Sizes and shapes are checked, with `read_all` the sha256 sums too (about a second a GB). DeepRecError if the
        folder holds no index or a damaged one, or FAISS is needed and not installed.
        """
        path = folder / "index.json"
        if not path.is_file():
            raise DeepRecError(f"{folder} holds no index (index.json is missing): build and save one there.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"it has the format version {record['format_version']!r} instead of {_FORMAT_VERSION}")
            files = folder / record["folder"]
            for name, file in record["files"].items():
                if (size := (files / name).stat().st_size) != file["size"]:
                    raise ValueError(f"{name} has {size:,} bytes instead of {file['size']:,}")
                if read_all and sha256_of(files / name) != file["sha256"]:
                    raise ValueError(f"{name} fails its sha256")
            return cls._map(record, files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            fault = f"a damaged index ({one_line(error)}): remove it, build it again and save it."
            raise DeepRecError(f"{folder} holds {fault}") from None

    @classmethod
    def _map(cls, record: dict[str, Any], files: Path) -> Index:
        # Copy on write: torch wants writable memory, and the file must not change.
        vectors_ID = np.asarray(np.load(files / _VECTORS, mmap_mode="c"))
        shape, kind = (record["items"], record["width"]), record["kind"]
        if vectors_ID.shape != shape or vectors_ID.dtype != np.float32:
            raise ValueError(f"{vectors_ID.dtype} {vectors_ID.shape} in {_VECTORS} instead of float32 {shape}")
        if record["files"].keys() != ({_VECTORS} if kind == "exact" else {_VECTORS, _FAISS}):
            raise ValueError(f"kind {kind!r} with the files {', '.join(record['files'])}")
        index = None
        if kind != "exact":
            faiss = import_faiss(kind)
            index = faiss.read_index(str(files / _FAISS), faiss.IO_FLAG_MMAP_IFC)
            if (found := (index.ntotal, index.d)) != shape:
                raise ValueError(f"{found} in {_FAISS} instead of {shape}")
        return cls(kind, vectors_ID, float(record["max_norm"]), index, int(record["refine"]), mapped=True)

    def _scan(self, queries_QD: Vectors, k: int, exclude: Excluded, among: ItemSet | None = None) -> list[list[Hit]]:
        """Compare every item, or every one of a set."""
        vectors_ND = torch.from_numpy(self.vectors_ID) if among is None else self.gathered.of(among, self.vectors_ID)
        hits: list[list[Hit]] = []
        for batch in _batches(len(queries_QD), len(vectors_ND)):
            scores_QN = (torch.from_numpy(queries_QD[batch]) @ vectors_ND.T).numpy()
            hits += self._best(scores_QN, queries_QD[batch], k, exclude[batch], among)
        return hits

    def _is_worth_gathering(self, among: ItemSet, n_queries: int, n_together: int) -> bool:
        """Whether so many queries of a batch compare with a set sooner than with all items."""
        cost = n_queries if self.gathered.holds(among) else n_queries + _GATHER_COST
        return len(among) * cost <= len(self) * n_queries * (1 + _READ_COST / n_together)

    def _scan_whole(
        self, queries_QD: Vectors, k: int, exclude: Excluded, include: Sequence[ItemSet]
    ) -> list[list[Hit]]:
        """Compare every item, and look at those of each query's own set."""
        hits: list[list[Hit]] = []
        for batch in _batches(len(queries_QD), len(self)):
            scores_QI = (torch.from_numpy(queries_QD[batch]) @ torch.from_numpy(self.vectors_ID).T).numpy()
            for row in range(batch.start, batch.start + len(scores_QI)):
                one, scores_I = slice(row, row + 1), scores_QI[row - batch.start]
                hits += self._best(scores_I[None, include[row].items_N], queries_QD[one], k, exclude[one], include[row])
        return hits

    def _best(
        self, scores_QN: Vectors, queries_QD: Vectors, k: int, exclude: Excluded, among: ItemSet | None
    ) -> list[list[Hit]]:
        """Hits by float32 scores of all items or those of a set: exact arithmetic scores all that may be the best."""
        # |error| <= D u |query| |item| for a float32 sum in any order; twice for two scores, and twice to be safe.
        margin_Q = 4 * self.width * 2.0**-24 * self.max_norm * np.linalg.norm(queries_QD, axis=1)
        rows_E, items_E = self._excluded(exclude)
        if among is not None:
            there_E = among.contains(items_E)
            rows_E, items_E = rows_E[there_E], np.searchsorted(among.items_N, items_E[there_E])
        scores_QN[rows_E, items_E] = -np.inf
        rows_N, items_N = shortlist(scores_QN, k, margin_Q)
        if among is not None:
            items_N = among.items_N[items_N]
        return rank(len(queries_QD), rows_N, items_N, self.inner(queries_QD, rows_N, items_N), k)

    def _approximate(self, queries_QD: Vectors, k: int, exclude: Excluded) -> list[list[Hit]]:
        """Fetch candidates from FAISS, four times as many while there are too few hits, at last compare every item."""
        results: list[list[Hit]] = [[]] * len(queries_QD)
        # The number of candidates depends on the query alone, or its answer would depend on the others. It is rounded,
        # so that many queries share a number and are searched together.
        rows_by_fetch: dict[int, list[int]] = {}
        for row, excluded in enumerate(exclude):
            fetch = k * (self.refine if self.kind == "ivfpq" else 1) + len(excluded)
            rows_by_fetch.setdefault((fetch // 32 + 1) * 32, []).append(row)
        while rows_by_fetch:
            fetch, rows = rows_by_fetch.popitem()
            scan = 4 * fetch > len(self)
            batch = queries_QD[rows], k, [exclude[row] for row in rows]
            for row, hits in zip(rows, self._scan(*batch) if scan else self._fetch(*batch, fetch), strict=True):
                results[row] = hits
                if len(hits) < k and not scan:
                    rows_by_fetch.setdefault(4 * fetch, []).append(row)
        return results

    def _fetch(self, queries_QD: Vectors, k: int, exclude: Excluded, fetch: int) -> list[list[Hit]]:
        items_QF = np.sort(self.faiss.search(queries_QD, fetch)[1], axis=1)
        rows_QF = np.broadcast_to(np.arange(len(queries_QD))[:, None], items_QF.shape)
        excluded_rows, excluded_items = self._excluded(exclude)
        excluded_M = np.sort(excluded_rows * len(self) + excluded_items)
        # FAISS fills up with -1.
        allowed_QF = (items_QF >= 0) & ~contains(excluded_M, rows_QF * len(self) + items_QF)
        scores_QF = np.full(items_QF.shape, -np.inf, dtype=np.float32)
        scores_QF[allowed_QF] = self.inner(queries_QD, rows_QF[allowed_QF], items_QF[allowed_QF])
        rows_N, positions_N = shortlist(scores_QF, k)
        return rank(len(queries_QD), rows_N, items_QF[rows_N, positions_N], scores_QF[rows_N, positions_N], k)

    def inner(self, queries_QD: Vectors, rows_N: NDArray[np.int64], items_N: NDArray[np.int64]) -> Vectors:
        """Inner products (N,) of pairs of a query and an item."""
        scores_N = np.empty(len(items_N), dtype=np.float32)
        for start in range(0, len(items_N), _PAIRS):
            part = slice(start, start + _PAIRS)
            products_ND = np.take(self.vectors_ID, items_N[part], axis=0).astype(np.float64)
            products_ND *= np.take(queries_QD, rows_N[part], axis=0)
            scores_N[part] = products_ND.sum(axis=1)
        return scores_N

    def _excluded(self, exclude: Excluded) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows_N, items_N = flatten(exclude)
        if items_N.size and not (items_N.min() >= 0 and items_N.max() < len(self)):
            asked = f"Items {items_N.min()} to {items_N.max()} are to be excluded from an index of {len(self)}"
            raise DeepRecError(f"{asked} items: use the index that was built for this catalogue.")
        return rows_N, items_N


def _batches(n_queries: int, n_items: int) -> Iterator[slice]:
    """Queries that are compared with so many items at once."""
    step = max(_SCORES // max(n_items, 1), 1)
    return (slice(start, start + step) for start in range(0, n_queries, step))


def _matrix(vectors: NDArray[np.floating] | Tensor, what: str, width: int | None = None) -> Vectors:
    array = vectors.detach().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    matrix = np.require(array, np.float32, ["C", "W"])
    if matrix.ndim != 2 or matrix.shape[1] != (width or matrix.shape[1]):
        wanted = f"{matrix.shape} instead of {f'(any number, {width})' if width else '(items, width)'}"
        raise DeepRecError(f"The vectors of the {what} have the shape {wanted}: reshape them.")
    if not np.isfinite(matrix).all():
        raise DeepRecError(f"The vectors of the {what} hold nan or infinity: train the model again, or mend its input.")
    return matrix


def _max_norm(vectors_ND: Vectors) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND).max(initial=0)))


def _empty(kind: Kind, n_items: int, width: int) -> Any:
    faiss = import_faiss(kind)
    if kind == "hnsw":  # in half precision, which is smaller and faster; candidates are scored in full anyway
        index = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
        return index
    # Lists by spherical k-means; a byte codes four components, or more if the width is no multiple of four.
    if n_items < _MIN_TRAINING:
        least = f"at least {_MIN_TRAINING} vectors and was given {n_items}"
        raise DeepRecError(f"An ivfpq index learns its codes from {least}: choose the kind exact.")
    size = max(size for size in range(1, max(width // 4, 1) + 1) if width % size == 0)
    centres = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFPQ(centres, width, int(2 * n_items**0.5), size, 8, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 32
    for clustering in (index.cp, index.pq.cp):
        # A sample and few rounds: the default takes several times as long for the same recall.
        clustering.niter, clustering.min_points_per_centroid, clustering.max_points_per_centroid = 10, 1, 64
    return index


def import_faiss(kind: Kind) -> Any:
    """FAISS's module, or NoFaissError if it can't be imported."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise NoFaissError(
            f"An index of kind {kind} needs FAISS, which can't be imported ({one_line(error)}): "
            "run `pip install --editable '.[faiss]'`, or choose the kind exact."
        ) from None
