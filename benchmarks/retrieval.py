"""Retrieval: the index against bare torch and against FAISS called directly, side by side in one run.

The items are a mixture of Gaussians, one for 500 items, whose centres are drawn from the standard normal distribution
and whose spread is 0.7; vectors are then scaled to lengths drawn from 0.8 to 1.2. Queries come from the same mixture.
Both sides answer the same batches of 64 queries with 20 items each, in turn, and medians are compared. FAISS called
directly searches the very graph or lists of the index, and for `ivfpq` refines by `IndexRefineFlat` with its factor.
Where 50 items are excluded (the best ones, in the approximate kinds), the bare side is asked for 70, so that it could
leave them out, and doesn't.

    python benchmarks/retrieval.py [--items 1000000] [--kinds hnsw ivfpq] [--rounds 40] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from deeprec import assets
from deeprec.retrieval.index import Index, Kind
from deeprec.retrieval.retriever import Hit
from deeprec.runs import environment
from deeprec.trm.text_encoder import TextEncoder

WIDTH, BATCH, K, EXCLUDED, BATCHES = 64, 64, 20, 50, 8


def mixture(n_items: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Items (I, 64) and queries (512, 64)."""
    rng = np.random.default_rng(0)
    centres_CD = rng.standard_normal((max(n_items // 500, 1), WIDTH), dtype=np.float32)

    def draw(n: int) -> NDArray[np.float32]:
        vectors_ND = rng.standard_normal((n, WIDTH), dtype=np.float32)
        vectors_ND *= 0.7
        vectors_ND += centres_CD[rng.integers(len(centres_CD), size=n)]
        vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        vectors_ND *= rng.uniform(0.8, 1.2, (n, 1)).astype(np.float32)
        return vectors_ND

    return draw(n_items), draw(BATCH * BATCHES)


def side_by_side(sides: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side, which is given the number of a batch; who begins changes every round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-2, rounds):  # two rounds to warm up
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            started = time.perf_counter()
            sides[name](number % BATCHES)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {f"{name} ms": 1000 * statistics.median(values) for name, values in seconds.items()}


def recall(results: Sequence[Sequence[int]], expected: Sequence[Sequence[Hit]]) -> float:
    pairs = zip(results, expected, strict=True)
    return float(np.mean([len({hit.item for hit in best} & set(found)) / K for found, best in pairs]))


def items_of(results: Sequence[Sequence[Hit]]) -> list[list[int]]:
    return [[hit.item for hit in hits] for hits in results]


def peak_gib(*, reset: bool = False) -> float | None:
    """The most memory this process had since the last reset; None where the system doesn't say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def exact(n_items: int, rounds: int) -> dict[str, Any]:
    items_ID, queries_ND = mixture(n_items)
    items, queries = torch.from_numpy(items_ID), torch.from_numpy(queries_ND).view(BATCHES, BATCH, WIDTH)
    rng = np.random.default_rng(1)
    exclude = [set(rng.choice(n_items, EXCLUDED, replace=False).tolist()) for _ in range(BATCH)]
    index = Index.build(items_ID, "exact")
    figures: dict[str, Any] = side_by_side(
        {
            "index": lambda b: index.search(queries[b], K),
            "index, excluding": lambda b: index.search(queries[b], K, exclude),
            "bare": lambda b: torch.topk(queries[b] @ items.T, K),
            "bare, excluding": lambda b: torch.topk(queries[b] @ items.T, K + EXCLUDED),
        },
        rounds,
    )
    direct = torch.topk(torch.from_numpy(queries_ND) @ items.T, K).indices.tolist()
    return figures | {"recall": recall(direct, index.search(queries_ND, K)), "bare is": "torch.topk(q @ items.T)"}


def approximate(kind: Kind, n_items: int, rounds: int) -> dict[str, Any]:
    items_ID, queries_ND = mixture(n_items)
    queries = queries_ND.reshape(BATCHES, BATCH, WIDTH)
    started = time.perf_counter()
    expected = Index.build(items_ID, "exact").search(queries_ND, K)
    figures: dict[str, Any] = {"exact ms": 1000 * (time.perf_counter() - started) / BATCHES}
    before = peak_gib(reset=True)
    started = time.perf_counter()
    built = Index.build(items_ID, kind)
    figures |= {"build s": time.perf_counter() - started, "GiB before": before, "GiB at most": peak_gib()}
    print(f"{kind} of {n_items:,} items: built in {figures['build s']:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        built.save(folder)
        figures["save s"] = time.perf_counter() - started
        figures["disk MB"] = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        started = time.perf_counter()
        index = Index.load(folder)
        figures["load ms"] = 1000 * (time.perf_counter() - started)
        started = time.perf_counter()
        index.search(queries[0], K)
        figures["first search ms"] = 1000 * (time.perf_counter() - started)
    direct, factor = index.faiss, 1
    if kind == "ivfpq":
        direct = faiss.IndexRefineFlat(index.faiss, faiss.swig_ptr(items_ID))
        direct.k_factor = factor = index.refine
    exclude = [[hit.item for hit in hits][:EXCLUDED] for hits in index.search(queries_ND, EXCLUDED)]
    excluded = [exclude[start : start + BATCH] for start in range(0, len(exclude), BATCH)]
    figures |= side_by_side(
        {
            "index": lambda b: index.search(queries[b], K),
            "index, excluding": lambda b: index.search(queries[b], K, excluded[b]),
            "bare": lambda b: direct.search(queries[b], K),
            "bare, excluding": lambda b: direct.search(queries[b], K + EXCLUDED),
        },
        rounds,
    )
    figures["recall"] = recall(items_of(index.search(queries_ND, K)), expected)
    figures["bare recall"] = recall(direct.search(queries_ND, K)[1].tolist(), expected)
    return figures | {"bare is": f"{type(direct).__name__}.search, factor {factor}"}


def texts(n_texts: int) -> dict[str, Any]:
    """Seconds for short texts that are new, and for the same texts at the next start, from their file."""
    folder = assets.fetch("minilm-l6")
    words = ["comedy", "drama", "war", "slow", "funny", "of the nineties", "for children", "black and white"]
    rng = np.random.default_rng(0)
    written = [f"{' '.join(rng.choice(words, 3))} {number}" for number in range(n_texts)]
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for label in ("new", "from disk"):
            encoder = TextEncoder(folder, Path(name))
            encoder.encode(["warm-up"])
            started = time.perf_counter()
            encoder.encode(written)
            figures[f"{label} s"] = time.perf_counter() - started
    return figures | {"texts": n_texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help="of the approximate kinds")
    parser.add_argument("--kinds", nargs="*", choices=["hnsw", "ivfpq"], default=["hnsw", "ivfpq"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results: dict[str, dict[str, Any]] = {"exact": {"items": 10_000} | exact(10_000, args.rounds)}
    for kind in args.kinds:
        results[kind] = {"items": args.items} | approximate(kind, args.items, args.rounds)
    for figures in results.values():
        figures["ratio"] = figures["index ms"] / figures["bare ms"]
        figures["ratio, excluding"] = figures["index, excluding ms"] / figures["bare, excluding ms"]
    rows = list(dict.fromkeys(key for figures in results.values() for key in figures))
    print(f"\n| batch of {BATCH}, top {K}, width {WIDTH} | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for row in rows:
        cells = [figures.get(row, "") for figures in results.values()]
        print(f"| {row} | {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    encoding = texts(args.texts)
    print(f"\n{args.texts} short texts: {encoding['new s']:.2f} s, at the next start {encoding['from disk s']:.3f} s")
    threads = {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()}
    if args.output:
        record = {"results": results, "texts": encoding, "threads": threads, "faiss": faiss.__version__}
        args.output.write_text(json.dumps(record | environment(sys.argv), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
