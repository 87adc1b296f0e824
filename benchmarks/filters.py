"""What a filter costs: searches among some of a million items, next to the same searches without a filter.

Items and queries are those of `benchmarks/retrieval.py`, width 64. A filter allows random items. Ratios are medians of
searches taken in turn, in one run. A batch has 64 queries, all with one filter as in an evaluation ("shared"), or each
with its own as on a server ("own"). A filter is new or was used just before ("again"). Beside the index, FAISS's own
filter: its graph, searched with a bitmap of the allowed items and the index's `efSearch`, as it is and scaled up by
the filter. Its recall is the share of the 20 best allowed items.

    python benchmarks/filters.py [--items 1000000] [--kinds exact hnsw] [--rounds 12] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from deeprec.data.item_set import ItemSet
from deeprec.retrieval.index import Index, Kind
from deeprec.runs import environment
from retrieval import BATCH, K, items_of, mixture, side_by_side

SIZES = (100, 10_000, 100_000, 500_000)
BATCHES = 8
SCALES = (1, 10)


def measure(index: Index, queries: np.ndarray[Any, Any], size: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way to ask, and each divided by the same without a filter."""
    rng = np.random.default_rng(size)

    def draw() -> ItemSet:
        return ItemSet.of(rng.choice(len(index), size, replace=False))

    def fresh(items: ItemSet) -> ItemSet:
        """Equal, but unknown to the index."""
        return ItemSet(items.items_N)

    one, own = draw(), [draw() for _ in range(BATCH)]
    whole: dict[str, Callable[[int], Any]] = {
        "batch": lambda b: index.search(queries[b], K),
        "single": lambda b: index.search(queries[b, :1], K),
    }
    again: dict[str, Callable[[int], Any]] = {
        "batch, one filter again": lambda b: index.search(queries[b], K, (), [one] * BATCH),
        "single, filter again": lambda b: index.search(queries[b, :1], K, (), [one]),
    }
    new: dict[str, Callable[[int], Any]] = {
        "batch, one filter": lambda b: index.search(queries[b], K, (), [fresh(one)] * BATCH),
        "single, filter": lambda b: index.search(queries[b, :1], K, (), [fresh(one)]),
        "batch, a filter each": lambda b: index.search(queries[b], K, (), own),
    }
    figures: dict[str, float] = {}
    for filtered in (again, new):  # apart, or new filters would drive out the one that comes again
        found = side_by_side(whole | filtered, rounds)
        for name in filtered:
            figures[f"{name} ms"] = found[f"{name} ms"]
            figures[f"{name}: ratio"] = found[f"{name} ms"] / found[f"{name.partition(',')[0]} ms"]
        figures |= {f"{name}, no filter ms": found[f"{name} ms"] for name in whole}
    return figures


def faiss_alone(index: Index, queries: np.ndarray[Any, Any], size: int, rounds: int) -> dict[str, float]:
    """FAISS's own filter: milliseconds, and recall of the exact answer."""
    rng = np.random.default_rng(size)
    allowed = ItemSet.of(rng.choice(len(index), size, replace=False))
    bits = np.zeros(len(index), dtype=np.bool_)
    bits[allowed.items_N] = True
    packed = np.packbits(bits, bitorder="little")
    selector = faiss.IDSelectorBitmap(packed)
    expected = items_of(index.search(queries[0], K, (), [allowed] * BATCH))
    figures = {}
    for scale in SCALES:
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=index.faiss.hnsw.efSearch * scale)

        def search(b: int, parameters: Any = parameters) -> Any:
            return index.faiss.search(queries[b], K, params=parameters)[1]

        figures |= side_by_side({f"FAISS, efSearch x {scale}": search}, rounds)
        found = [set(row) & set(best) for row, best in zip(search(0).tolist(), expected, strict=True)]
        figures[f"FAISS, efSearch x {scale}: recall"] = sum(map(len, found)) / sum(map(len, expected))
    return figures


def open_index(items_ID: np.ndarray[Any, Any], kind: Kind, folder: Path | None) -> Index:
    """Built, or from an earlier run."""
    place = folder and folder / f"{kind}-{len(items_ID)}"
    if place and place.exists():
        return Index.load(place)
    started = time.perf_counter()
    index = Index.build(items_ID, kind)
    print(f"{kind} of {len(items_ID):,} items: built in {time.perf_counter() - started:.0f} s", flush=True)
    if place:
        index.save(place)
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="*", choices=["exact", "hnsw", "ivfpq"], default=["exact", "hnsw"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the searches")
    parser.add_argument("--folder", type=Path, help="keeps the built indexes for the next run")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    items_ID, queries_ND = mixture(args.items)
    queries = queries_ND.reshape(-1, BATCH, queries_ND.shape[1])
    sizes = [size for size in SIZES if size <= args.items]
    results: dict[str, dict[int, dict[str, float]]] = {}
    for kind in args.kinds:
        index = open_index(items_ID, kind, args.folder)
        torch.set_num_threads(args.threads)
        faiss.omp_set_num_threads(args.threads)
        results[kind] = {size: measure(index, queries, size, args.rounds) for size in sizes}
        if kind == "hnsw":
            for size in sizes:
                results[kind][size] |= faiss_alone(index, queries, size, args.rounds)
        rows = dict.fromkeys(itertools.chain.from_iterable(results[kind].values()))
        print(f"\n| {kind} | {' | '.join(f'{size:,} allowed' for size in sizes)} |\n|---|{'---|' * len(sizes)}")
        for row in rows:
            print(f"| {row} | {' | '.join(f'{results[kind][size][row]:.3g}' for size in sizes)} |", flush=True)
    threads = {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()}
    if args.output:
        record = {"results": results, "threads": threads, "faiss": faiss.__version__}
        args.output.write_text(json.dumps(record | environment(sys.argv), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
