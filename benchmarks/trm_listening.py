"""What a preference is worth to the TRM: none, right, of the history, wrong, or written by a language model.

    .venv/bin/python benchmarks/trm_listening.py ml-100k runs/trm_peers/ml-100k/trm-*/ [--traces FILE]

The first argument is a data set, the others are folders of TRMs that were trained on it, one a seed. Users' values
are averaged over the seeds first; brackets hold 95 % intervals of a paired bootstrap over users.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, EvalConfig, TRMConfig, load_config
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.data.sources import load_dataset
from deeprec.evaluation.intervals import ratio_interval
from deeprec.evaluation.metrics import Floats
from deeprec.evaluation.preference_sensitivity import CALLS, PER_CALL, condition, pool, preferences
from deeprec.evaluation.tables import markdown_table
from deeprec.runs import environment
from deeprec.trm.preferences import frequent_phrases
from deeprec.trm.trm import TRM

CONFIG = EvalConfig()


def main() -> None:
    args = _arguments()
    dataset = load_dataset(load_config(None, [f'data.source="{args.source}"']).data)
    trms = [TRM.load(folder) for folder in args.trms]
    for trm in trms:
        trm.config = trm.config.model_copy(update={"lexical": args.bm25})
    tasks, targets = dataset.tasks(args.split), dataset.targets(args.split)
    said = preferences(dataset.catalog, tasks, targets, CONFIG.seed)
    for last in args.frequent_phrases:
        texts = ["; ".join(frequent_phrases(dataset.catalog, task.history[-last:])) for task in tasks]
        said[f"theme of the last {last}"] = texts
    rows = _listen(trms, tasks, targets, said, args.preference_weight)
    if args.traces:
        written = _written(args.traces)
        some = [task for task in tasks if task.id in written]
        if not some:
            sys.exit(f"{args.traces} holds no preference of a {args.split} user of {args.source}.")
        rows += _listen(
            trms, some, targets, {"language model": [written[task.id] for task in some]}, args.preference_weight
        )
    pools = [_pool(trms, dataset, tasks, targets, preference_weight) for preference_weight in args.preference_weight]
    name = Path(args.source).name
    text = _markdown(name, args, rows, pools)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment(sys.argv), "preferences": rows, "pools": pools}
    (args.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def _listen(
    trms: Sequence[TRM],
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    said: Mapping[str, Sequence[str]],
    preference_weights: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for each kind and trust, the blank TRM first."""
    of_seeds = [condition(trm, tasks, targets, said, preference_weights) for trm in trms]
    blank_U = _mean(of_seeds, lambda heard: heard[0].ndcg_U)
    rows = []
    for position, first in enumerate(of_seeds[0]):
        ndcg_U = _mean(of_seeds, lambda heard, position=position: heard[position].ndcg_U)
        recall = float(_mean(of_seeds, lambda heard, position=position: heard[position].recall_U).mean())
        row = {
            "kind": first.kind,
            "preference_weight": first.preference_weight,
            "users": len(tasks),
            "NDCG@10": float(ndcg_U.mean()),
        }
        rows.append(row | {"Recall@10": recall, "ratio": _ratio(ndcg_U, blank_U)})
    return rows


def _pool(
    trms: Sequence[TRM],
    dataset: Dataset,
    tasks: Sequence[Task],
    targets: Mapping[str, ItemIdx],
    preference_weight: float,
) -> dict[str, Any]:
    of_seeds = [pool(trm, dataset.catalog, tasks, targets, preference_weight) for trm in trms]
    pooled_U, blank_U = _mean(of_seeds, lambda p: p.pooled_U), _mean(of_seeds, lambda p: p.blank_U)
    return {
        "preference_weight": preference_weight,
        "pool hit": float(pooled_U.mean()),
        "blank hit": float(blank_U.mean()),
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
        said = [turn["preference"] for turn in trace.get("turns", []) if turn["preference"]]  # a rerank states none
        if said:
            found.setdefault(trace["task"], said[0])
    return found


def _markdown(name: str, args: argparse.Namespace, rows: Sequence[dict[str, Any]], pools: Sequence[Any]) -> str:
    lines = [f"# Listening on {name}, {args.split}, {len(args.trms)} seeds", ""]
    lines += [f"- {key}: {text}" for key, text in environment(sys.argv).items()]
    table = []
    for row in rows:
        ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])
        cells = [row["kind"], f"{row['preference_weight']:g}", f"{row['users']:,}", f"{row['NDCG@10']:.4f}"]
        table.append([*cells, f"{row['Recall@10']:.4f}", ratio])
    headings = ["preference", "preference_weight", "users", "NDCG@10", "Recall@10", "NDCG@10 / blank"]
    lines += ["", *markdown_table(headings, table)]
    lines += [
        "",
        f"{CALLS} calls x {PER_CALL} items (what the last items are) against the blank list of the same size:",
        "",
    ]
    table = []
    for row in pools:
        ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*row["ratio"])
        table.append([f"{row['preference_weight']:g}", f"{row['pool hit']:.4f}", f"{row['blank hit']:.4f}", ratio])
    lines += markdown_table(["preference_weight", "pool hit", "blank hit", "ratio"], table)
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("trms", nargs="+", type=Path)
    parser.add_argument("--trust", nargs="+", type=float, default=[0.2, 0.4, DEFAULT_PREFERENCE_WEIGHT, 0.7, 0.85, 1.0])
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--lexical", type=float, default=TRMConfig().bm25, help="the weight trm.bm25")
    parser.add_argument("--themes", nargs="*", type=int, default=[], help="also themes of so many last items")
    parser.add_argument("--traces", type=Path, help="traces.jsonl of an evaluation: its first preferences are tried")
    parser.add_argument("--out", type=Path, default=Path("runs/trm_listening"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
