"""Exact search against a sort, FAISS against exact search, and files that are not what they should be."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deeprec.data.catalog import ItemIdx
from deeprec.errors import DeepRecError
from deeprec.retrieval import index as module
from deeprec.retrieval.index import Index
from deeprec.retrieval.retriever import Hit, Query, Retriever, top_hits
from deeprec.testing import RetrieverContract

KINDS = ["exact", "hnsw", "ivfpq"]
WIDTH = 32


@cache
def clustered(n_items=20_000):
    """Items and queries around common centres, of different lengths."""
    rng = np.random.default_rng(0)
    centres_CD = rng.normal(size=(n_items // 100, WIDTH))
    both_ND = centres_CD[rng.integers(len(centres_CD), size=n_items + 64)]
    both_ND = both_ND + 0.7 * rng.normal(size=both_ND.shape)
    both_ND /= np.linalg.norm(both_ND, axis=1, keepdims=True)
    both_ND *= rng.uniform(0.8, 1.2, size=(len(both_ND), 1))
    return both_ND[:n_items].astype(np.float32), both_ND[n_items:].astype(np.float32)


@cache
def built(kind, n_items):
    return Index.build(clustered(n_items)[0], kind)


def sorted_hits(items_ID, queries_QD, k, exclude):
    """By float64 sums, rounded, and Python's sort."""
    scores_QI = (queries_QD.astype(np.float64)[:, None] * items_ID.astype(np.float64)).sum(2).astype(np.float32)
    results = []
    for scores_I, excluded in zip(scores_QI.tolist(), exclude, strict=True):
        free = [item for item in range(len(items_ID)) if item not in excluded]
        results.append([Hit(i, scores_I[i]) for i in sorted(free, key=lambda i: (-scores_I[i], i))[:k]])
    return results


def items_of(results):
    return [[hit.item for hit in hits] for hits in results]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def recall(results, expected):
    pairs = zip(items_of(results), items_of(expected), strict=True)
    return np.mean([len(set(found) & set(best)) / len(best) for found, best in pairs])


class IndexRetriever(Retriever):
    """Histories and words as hashed query vectors."""

    def __init__(self, index):
        self.index = index

    def retrieve(self, queries, k):
        seeds = [[len(query.history), *query.history[-3:], *query.preference.encode()] for query in queries]
        vectors = [np.random.default_rng(seed).normal(size=self.index.width) for seed in seeds]
        vectors_QD = np.array(vectors, dtype=np.float32).reshape(len(queries), self.index.width)
        excluded, included = [query.exclude for query in queries], [query.include for query in queries]
        return self.index.search(vectors_QD, k, excluded, included)


@pytest.mark.parametrize("kind", KINDS)
class TestContract(RetrieverContract):
    @pytest.fixture
    def n_items(self):
        return 2000

    @pytest.fixture
    def retriever(self, kind, n_items):
        return IndexRetriever(built(kind, n_items))


# exact search

small = st.integers(-2, 2)


@given(st.data(), st.integers(1, 60), st.integers(0, 5), st.integers(1, 3), st.integers(0, 70))
def test_exact_is_a_sort_with_ties_by_index(data, n_items, n_queries, width, k):
    items_ID = data.draw(arrays.arrays(np.float32, (n_items, width), elements=small))
    queries_QD = data.draw(arrays.arrays(np.float32, (n_queries, width), elements=small))
    exclude = data.draw(st.lists(st.sets(st.integers(0, n_items - 1)), min_size=n_queries, max_size=n_queries))
    hits = Index.build(items_ID).search(queries_QD, k, exclude)
    assert hits == sorted_hits(items_ID, queries_QD, k, exclude)


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([1, 3, 16, 50]), st.floats(1e-3, 1e3))
@settings(max_examples=25)
def test_equal_vectors_tie_and_the_batch_does_not_matter(seed, k, width, scale):
    """Matrix products round by position and by batch; the hits must not."""
    rng = np.random.default_rng(seed)
    items_ID = (scale * rng.normal(size=(5, width))).astype(np.float32)[rng.integers(5, size=1500)]
    queries_QD = rng.normal(size=(20, width)).astype(np.float32)
    index = Index.build(items_ID)
    together = index.search(queries_QD, k)
    assert together == [index.search(query_D[None], k)[0] for query_D in queries_QD]
    assert together == sorted_hits(items_ID, queries_QD, k, [()] * 20)


def test_exact_in_several_parts_and_with_tensors(monkeypatch):
    items_ID, queries_QD = clustered(2000)[0], clustered(2000)[1][:8]
    expected = sorted_hits(items_ID, queries_QD, 20, [()] * 8)
    assert Index.build(torch.from_numpy(items_ID)).search(torch.from_numpy(queries_QD).double(), 20) == expected
    monkeypatch.setattr(module, "_SCORES", 7000)
    monkeypatch.setattr(module, "_PAIRS", 33)
    assert Index.build(items_ID).search(queries_QD, 20) == expected


# every kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_are_found(kind):
    """Also next to what is excluded: the fifty best of every query."""
    queries_QD = clustered()[1]
    expected = built("exact", 20_000).search(queries_QD, 70)
    index = built(kind, 20_000)
    assert recall(index.search(queries_QD, 20), [hits[:20] for hits in expected]) >= 0.97
    exclude = [[hit.item for hit in hits[:50]] for hits in expected]
    rest = index.search(queries_QD, 20, exclude)
    assert recall(rest, [hits[50:] for hits in expected]) >= 0.95
    scores = {(row, hit.item): hit.score for row, hits in enumerate(expected) for hit in hits}
    common = [
        (hit, scores[row, hit.item]) for row, hits in enumerate(rest) for hit in hits if (row, hit.item) in scores
    ]
    assert all(hit.score == score for hit, score in common)  # to the last bit
    assert len(common) >= 0.95 * 64 * 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_does_not_matter(kind, monkeypatch):
    queries_QD = clustered()[1]
    exclude = [range(0, 3 * row) for row in range(64)]
    index = built(kind, 20_000)
    asked = []
    if index.faiss is not None:
        search = index.faiss.search

        def noting(queries_QD, fetch):
            asked.extend((query_D.tobytes(), fetch) for query_D in queries_QD)
            return search(queries_QD, fetch)

        monkeypatch.setattr(index.faiss, "search", noting)
    together, asked_together = index.search(queries_QD, 10, exclude), set(asked)
    asked.clear()
    alone = [index.search(queries_QD[[row]], 10, [excluded])[0] for row, excluded in enumerate(exclude)]
    assert together == alone
    assert asked_together == set(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_all_there_is_and_no_more(kind):
    items_ID, queries_QD = clustered(2000)[0], clustered(2000)[1][:6]
    index = built(kind, 2000)
    everything = range(2000)
    exclude = [everything, everything[:-1], [5] * 3000, set(), {1}, {1, 2}]
    hits = index.search(queries_QD, 2007, exclude)
    assert items_of(hits[:2]) == [[], [1999]]
    assert hits == sorted_hits(items_ID, queries_QD, 2007, exclude)
    assert index.search(queries_QD, 0) == [[]] * 6
    assert index.search(queries_QD[:0], 5) == []


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_if_faiss_finds_too_few_more_are_fetched_and_at_last_all_compared(kind, monkeypatch):
    items_ID, queries_QD = clustered(2000)
    index = Index.build(items_ID, kind)
    search, asked = index.faiss.search, []

    def short(queries_QD, fetch):
        asked.append(fetch)
        scores_QF, items_QF = search(queries_QD, fetch)
        items_QF[:, asked[0] // 50 :] = -1
        return scores_QF, items_QF

    monkeypatch.setattr(index.faiss, "search", short)
    assert index.search(queries_QD, 20) == sorted_hits(items_ID, queries_QD, 20, [()] * 64)
    assert len(asked) >= 2
    assert asked == sorted(asked)


@pytest.mark.parametrize("kind", KINDS)
def test_added_items_are_found(kind, tmp_path):
    items_ID, queries_QD = clustered(2000)
    index = Index.build(items_ID[:1500], kind)
    index.save(tmp_path)
    before = contents(tmp_path)
    expected = sorted_hits(items_ID, queries_QD, 10, [()] * 64)
    for grown in (index, Index.load(tmp_path)):
        grown.add(items_ID[1500:1990])
        grown.add(torch.from_numpy(items_ID[1990:]))
        assert len(grown) == 2000
        assert recall(grown.search(queries_QD, 10), expected) >= 0.97
        assert any(item >= 1990 for hits in grown.search(queries_QD, 50) for item in items_of([hits])[0])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("added", [0, 1500])
def test_rounding_hides_no_item(added):
    """All but the last component cancels, but not in float32 sums; vectors that are added are far longer."""
    rng = np.random.default_rng(3)
    half_ID = 1000 * rng.normal(size=(1500, 20))
    halves_ID = rng.permuted(np.concatenate([half_ID, -half_ID], axis=1).astype(np.float32), axis=1)
    items_ID = np.concatenate([halves_ID, 1e-5 * rng.normal(size=(1500, 1)).astype(np.float32)], axis=1)
    items_ID = np.concatenate([items_ID, np.full((50, 41), -1, dtype=np.float32)])[::-1]
    index = Index.build(items_ID[: len(items_ID) - added])
    if added:
        index.add(items_ID[len(items_ID) - added :])
    queries_QD = np.ones((9, 41), dtype=np.float32)
    assert index.search(queries_QD, 20) == sorted_hits(items_ID, queries_QD, 20, [()] * 9)


def test_auto_is_exact_up_to_a_size(monkeypatch):
    items_ID = clustered(2000)[0]
    assert Index.build(items_ID).kind == "exact"
    monkeypatch.setattr("deeprec.retrieval.index._EXACT_LIMIT", 2000)
    assert Index.build(items_ID).kind == "exact"
    monkeypatch.setattr("deeprec.retrieval.index._EXACT_LIMIT", 1999)
    assert Index.build(items_ID).kind == "hnsw"


# files


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_as_before(kind, tmp_path):
    queries_QD = clustered(2000)[1]
    index = built(kind, 2000)
    index.save(tmp_path / "new" / "folder")
    for read_all in (False, True):
        loaded = Index.load(tmp_path / "new" / "folder", read_all=read_all)
        assert (loaded.kind, len(loaded), loaded.width, loaded.refine) == (kind, 2000, WIDTH, index.refine)
        assert loaded.search(queries_QD, 20, [{1, 2}] * 64) == index.search(queries_QD, 20, [{1, 2}] * 64)
    # A loaded index can be saved where it lies, and what was there goes.
    loaded.save(tmp_path / "new" / "folder")
    assert len(contents(tmp_path / "new" / "folder")) == (2 if kind == "exact" else 3)
    assert loaded.search(queries_QD, 5) == Index.load(tmp_path / "new" / "folder").search(queries_QD, 5)


def test_the_vectors_are_mapped(tmp_path):
    built("hnsw", 2000).save(tmp_path)
    loaded = Index.load(tmp_path)
    assert isinstance(loaded.vectors_ID.base, np.memmap)
    loaded.vectors_ID[:] = 0
    assert Index.load(tmp_path).vectors_ID.all()


def test_a_save_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    old = Index.build(clustered(2000)[0][:300])
    old.save(tmp_path)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DeepRecError, match=r"can't be written to .*No space left.*make room"):
        built("hnsw", 2000).save(tmp_path)
    assert len(Index.load(tmp_path)) == 300
    monkeypatch.setattr(os, "replace", replace)
    built("hnsw", 2000).save(tmp_path)
    assert len(Index.load(tmp_path)) == 2000
    assert len(contents(tmp_path)) == 3  # nothing of the failed one
    (tmp_path / "file").touch()
    with pytest.raises(DeepRecError, match="can't be written"):
        old.save(tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "longer", "missing", "other", "flipped"])
def test_damaged_files(kind, damage, tmp_path):
    whole, other = tmp_path / "whole", tmp_path / "other"
    built(kind, 2000).save(whole)
    Index.build(clustered(2000)[0][:500], kind).save(other)
    for name in json.loads((whole / "index.json").read_text())["files"]:
        folder = tmp_path / name.replace(".", "-")
        shutil.copytree(whole, folder)
        path = next(folder.glob(f"index-*/{name}"))
        if damage == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif damage == "longer":
            path.write_bytes(path.read_bytes() + b"more")
        elif damage == "missing":
            path.unlink()
        elif damage == "other":  # a whole file of another index, with its size in the record
            found = next(other.glob(f"index-*/{name}"))
            shutil.copy(found, path)
            edit(folder, lambda record, n=name, f=found: record["files"][n].update(size=f.stat().st_size))
        else:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        with pytest.raises(DeepRecError, match=r"holds a damaged index .*: remove it, build it again"):
            Index.load(folder, read_all=damage == "flipped")


def edit(folder, change):
    record = json.loads((folder / "index.json").read_text())
    change(record)
    (folder / "index.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format_version=1),
        lambda record: record.update(kind="hnsw"),
        lambda record: record.update(kind=["exact"]),
        lambda record: record.update(items=7),
        lambda record: record.update(max_norm="very"),
        lambda record: record.update(files=[]),
        lambda record: record.update(files={}),
        lambda record: record.pop("width"),
        lambda record: record["files"].update(nothing=3),
    ],
)
def test_damaged_records(change, tmp_path):
    built("exact", 2000).save(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(DeepRecError, match="holds a damaged index"):
        Index.load(tmp_path)


def test_records_that_are_none(tmp_path):
    with pytest.raises(DeepRecError, match=r"holds no index \(index.json is missing\): build"):
        Index.load(tmp_path)
    for text in ("", "{", "3", "[]", "null"):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DeepRecError, match="holds a damaged index"):
            Index.load(tmp_path)
    (tmp_path / "index.json").write_bytes(b"\xff")
    with pytest.raises(DeepRecError, match="holds a damaged index"):
        Index.load(tmp_path)


# errors that a user can fix


def test_without_faiss(tmp_path, monkeypatch):
    items_ID, queries_QD = clustered(2000)
    built("hnsw", 2000).save(tmp_path)
    import_module = importlib.import_module

    def without(name):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'")
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", without)
    monkeypatch.setattr("deeprec.retrieval.index._EXACT_LIMIT", 1999)
    for act in (
        lambda: Index.build(items_ID, "hnsw"),
        lambda: Index.build(items_ID, "ivfpq"),
        lambda: Index.build(items_ID),
        lambda: Index.load(tmp_path),
    ):
        with pytest.raises(DeepRecError, match=r"needs FAISS.*`pip install --editable '\.\[faiss\]'`.*exact"):
            act()
    assert len(Index.build(items_ID[:1999]).search(queries_QD, 3)[0]) == 3


def test_bad_input():
    index = Index.build(np.eye(3, dtype=np.float32))
    holey = np.array([[0, np.nan, 0]], dtype=np.float32)
    for act, message in (
        (lambda: Index.build(np.ones(3)), r"items have the shape \(3,\) instead of \(items, width\)"),
        (lambda: Index.build(np.ones((0, 3))), "given 0 of width 3: add items"),
        (lambda: Index.build(holey), "items hold nan or infinity"),
        (lambda: Index.build(np.ones((255, 4)), "ivfpq"), "at least 256 vectors and was given 255: choose"),
        (lambda: index.search(np.ones((2, 4)), 1), r"queries have the shape \(2, 4\) instead of \(any number, 3\)"),
        (lambda: index.search(holey, 1), "queries hold nan or infinity"),
        (lambda: index.search(np.ones((2, 3)), 1, [{0}]), "2 queries came with 1 collections"),
        (lambda: index.search(np.ones((2, 3)), 1, [{0}, {3}]), "Items 0 to 3 .* index of 3 items"),
        (lambda: index.search(np.ones((1, 3)), 1, [{-1}]), "Items -1 to -1 .* index of 3 items"),
        (lambda: index.add(np.ones((1, 4))), r"new items have the shape \(1, 4\)"),
        (lambda: index.add(holey), "new items hold nan"),
    ):
        with pytest.raises(DeepRecError, match=message):
            act()
    assert len(index) == 3


# top_hits


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(0, 4), st.integers(1, 200)), elements=st.integers(0, 6)),
    st.sets(st.integers(0, 199)),
    st.integers(0, 12) | st.integers(190, 210),
)
def test_top_hits_is_a_sort(scores_BI, exclude, k):
    n_items = scores_BI.shape[1]
    exclude = frozenset(ItemIdx(item) for item in exclude if item < n_items)
    queries = [Query((), exclude=exclude if row % 2 else ()) for row in range(len(scores_BI))]
    expected = [
        [Hit(i, s[i]) for i in sorted(set(range(n_items)) - set(q.exclude), key=lambda i: (-s[i], i))[:k]]
        for s, q in zip(scores_BI.tolist(), queries, strict=True)
    ]
    assert top_hits(scores_BI, queries, k) == expected


def test_top_hits_of_one_good_group():
    """The best items all lie where one peak stands for them."""
    scores_BI = np.arange(10_000, dtype=np.float32)[None] % 80 == 0
    scores_BI = np.where(scores_BI, np.arange(10_000), -np.arange(10_000)).astype(np.float32)
    hits = top_hits(scores_BI, [Query((), exclude=[ItemIdx(9920)])], 10)
    assert items_of(hits) == [[9840 - 80 * position for position in range(10)]]
