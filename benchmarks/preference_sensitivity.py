"""How preferences of known quality change the TRM's ranking: right, wrong, of the history, or by a language model.

    .venv/bin/python benchmarks/preference_sensitivity.py ml-100k runs/trm_peers/ml-100k/trm-*/ [--traces FILE]

The first argument is a data set, the others are folders of TRMs that were trained on it, one a seed. Users' values
are averaged over the seeds first; brackets hold 95 % intervals of a paired bootstrap over users.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, TRMConfig, load_config
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.data.sources import load_dataset
from deeprec.evaluation.metrics import Floats, ndcg_at, recall_at
from deeprec.evaluation.tables import markdown_table
from deeprec.retrieval.retriever import Query, Retriever, queries_of
from deeprec.runs import environment
from deeprec.trm.preferences import frequent_phrases, item_phrases, recent_titles
from deeprec.trm.trm import TRM
from ratios import ratio_interval

CALLS = 3
PER_CALL = 20
SEED = 0


@dataclass(frozen=True)
class Sensitivity:
    """NDCG@10 and Recall@10 of every user (U,) with one kind of preference at one preference weight."""

    kind: str
    preference_weight: float
    ndcg_U: Floats
    recall_U: Floats


@dataclass(frozen=True)
class Pool:
    """1 for every user (U,) whose target is in the pool of several calls, and in one list of its size without them."""

    preference_weight: float
    pooled_U: Floats
    blank_U: Floats


def item_preference(catalog: Catalog, item: ItemIdx) -> str:
    """All phrases of an item: of the target, the best preference in the catalogue's own words."""
    return "; ".join(item_phrases(catalog, item))


def preferences(
    catalog: Catalog, tasks: Sequence[Task], targets: Mapping[str, ItemIdx], seed: int = SEED
) -> dict[str, list[str]]:
    """A preference of each kind for each task.

    'oracle' is of the target, 'wrong' the oracle of another user drawn at random; the others are of the history alone.
    """
    oracle = [item_preference(catalog, targets[task.id]) for task in tasks]
    others = np.roll(order := np.random.default_rng(seed).permutation(len(tasks)), 1)
    wrong = [""] * len(tasks)
    for own, other in zip(order.tolist(), others.tolist(), strict=True):
        wrong[own] = oracle[other]
    return {
        "oracle": oracle,
        "frequent phrases": ["; ".join(frequent_phrases(catalog, task.history)) for task in tasks],
        "recent titles": ["; ".join(recent_titles(catalog, task.history)) for task in tasks],
        "wrong": wrong,
    }


def sensitivity(
    trm: TRM,
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    texts: Mapping[str, Sequence[str]],
    weights: Sequence[float],
) -> list[Sensitivity]:
    """The TRM without a preference first, then each kind of `texts` (a preference for each task) at each weight."""
    targets_U = [targets[task.id] for task in tasks]

    def measure(kind: str, preferences: Sequence[str], weight: float) -> Sensitivity:
        ranks_U = trm.ranks(queries_of(tasks, preferences, weight), targets_U)
        return Sensitivity(kind, weight, ndcg_at(ranks_U, 10), recall_at(ranks_U, 10))

    blank = measure("none", [""] * len(tasks), 0.0)
    return [blank] + [measure(kind, texts[kind], weight) for kind in texts for weight in weights]


def pool(
    retriever: Retriever, catalog: Catalog, tasks: Sequence[Task], targets: Mapping[str, ItemIdx], weight: float
) -> Pool:
    """A call of 20 items for the phrases of each of the user's last three items, nothing shown twice, against one list
    of as many items without a preference."""
    shown = [list[ItemIdx]() for _ in tasks]
    for turn in range(CALLS):
        queries = [
            Query(
                task.history,
                item_preference(catalog, task.history[-1 - turn]) if turn < len(task.history) else "",
                {*task.history, *items},
                weight,
            )
            for task, items in zip(tasks, shown, strict=True)
        ]
        for items, hits in zip(shown, retriever.retrieve(queries, PER_CALL), strict=True):
            items += [hit.item for hit in hits]
    lists = [[hit.item for hit in hits] for hits in retriever.retrieve(queries_of(tasks), CALLS * PER_CALL)]
    targets_U = [targets[task.id] for task in tasks]
    pooled_U, blank_U = (
        np.array([target in items for target, items in zip(targets_U, found, strict=True)], dtype=float)
        for found in (shown, lists)
    )
    return Pool(weight, pooled_U, blank_U)


def main() -> None:
    args = _arguments()
    dataset = load_dataset(load_config(None, [f'data.source="{args.source}"']).data)
    trms = [TRM.load(folder) for folder in args.trms]
    for trm in trms:
        trm.config = trm.config.model_copy(update={"bm25": args.bm25})
    tasks, targets = dataset.tasks(args.split), dataset.targets(args.split)
    texts = preferences(dataset.catalog, tasks, targets)
    for last in args.frequent_phrases:
        texts[f"frequent phrases of the last {last}"] = [
            "; ".join(frequent_phrases(dataset.catalog, task.history[-last:])) for task in tasks
        ]
    rows = _rows(trms, tasks, targets, texts, args.weights)
    if args.traces:
        written = _written(args.traces)
        some = [task for task in tasks if task.id in written]
        if not some:
            sys.exit(f"{args.traces} holds no preference of a {args.split} user of {args.source}.")
        rows += _rows(trms, some, targets, {"language model": [written[task.id] for task in some]}, args.weights)
    pools = [_pool_row(trms, dataset, tasks, targets, weight) for weight in args.weights]
    name = Path(args.source).name
    text = _markdown(name, args, rows, pools)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment(sys.argv), "preferences": rows, "pools": pools}
    (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def _rows(
    trms: Sequence[TRM],
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    texts: Mapping[str, Sequence[str]],
    weights: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for each kind and weight, that without a preference first."""
    of_seeds = [sensitivity(trm, tasks, targets, texts, weights) for trm in trms]
    blank_U = _mean(of_seeds, lambda found: found[0].ndcg_U)
    rows = []
    for position, first in enumerate(of_seeds[0]):
        ndcg_U = _mean(of_seeds, lambda found, position=position: found[position].ndcg_U)
        recall = float(_mean(of_seeds, lambda found, position=position: found[position].recall_U).mean())
        row = {"kind": first.kind, "preference_weight": first.preference_weight, "users": len(tasks)}
        rows.append(row | {"NDCG@10": float(ndcg_U.mean()), "Recall@10": recall, "ratio": _ratio(ndcg_U, blank_U)})
    return rows


def _pool_row(
    trms: Sequence[TRM], dataset: Dataset, tasks: Sequence[Task], targets: Mapping[str, ItemIdx], weight: float
) -> dict[str, Any]:
    of_seeds = [pool(trm, dataset.catalog, tasks, targets, weight) for trm in trms]
    pooled_U, blank_U = _mean(of_seeds, lambda found: found.pooled_U), _mean(of_seeds, lambda found: found.blank_U)
    return {
        "preference_weight": weight,
        "pool recall": float(pooled_U.mean()),
        "blank recall": float(blank_U.mean()),
        "ratio": _ratio(pooled_U, blank_U),
    }


def _mean(of_seeds: Sequence[Any], values: Callable[[Any], Floats]) -> Floats:
    mean_U: Floats = np.mean([values(one) for one in of_seeds], axis=0)
    return mean_U


def _ratio(ours_U: Floats, theirs_U: Floats) -> list[float]:
    found = ratio_interval(ours_U, theirs_U)
    return [found.mean, found.low, found.high]


def _written(traces: Path) -> dict[str, str]:
    """The first preference of every exploration that stated one, by task."""
    found: dict[str, str] = {}
    for line in traces.read_text(encoding="utf-8").splitlines():
        trace = json.loads(line)
        trace = trace.get("trace", trace)
        stated = [turn["preference"] for turn in trace.get("turns", []) if turn["preference"]]  # a rerank has none
        if stated:
            found.setdefault(trace["task"], stated[0])
    return found


def _markdown(name: str, args: argparse.Namespace, rows: Sequence[dict[str, Any]], pools: Sequence[Any]) -> str:
    lines = [f"# Preference sensitivity on {name}, {args.split}, {len(args.trms)} seeds", ""]
    lines += [f"- {key}: {text}" for key, text in environment(sys.argv).items()]
    table = []
    for row in rows:
        cells = [row["kind"], f"{row['preference_weight']:g}", f"{row['users']:,}", f"{row['NDCG@10']:.4f}"]
        table.append([*cells, f"{row['Recall@10']:.4f}", "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])])
    headings = ["preference", "preference weight", "users", "NDCG@10", "Recall@10", "NDCG@10 / blank"]
    lines += ["", *markdown_table(headings, table), ""]
    lines += [f"{CALLS} calls of {PER_CALL} items for the phrases of the last items, against a blank list as long:", ""]
    table = []
    for row in pools:
        cells = [f"{row['preference_weight']:g}", f"{row['pool recall']:.4f}", f"{row['blank recall']:.4f}"]
        table.append([*cells, "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])])
    lines += markdown_table(["preference weight", "pool recall", "blank recall", "ratio"], table)
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("trms", nargs="+", type=Path)
    weights = [0.2, 0.4, DEFAULT_PREFERENCE_WEIGHT, 0.7, 0.85, 1.0]
    parser.add_argument("--weights", nargs="+", type=float, default=weights, help="preference weights")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--bm25", type=float, default=TRMConfig().bm25, help="the weight trm.bm25")
    parser.add_argument(
        "--frequent-phrases", nargs="*", type=int, default=[], metavar="N", help="also those of the last N items"
    )
    parser.add_argument("--traces", type=Path, help="traces.jsonl of an evaluation: its first preferences are tried")
    parser.add_argument("--out", type=Path, default=Path("runs/preference_sensitivity"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
