"""What the words of a first call are worth: how much nearer they bring the target, on held-out users, paired.

    python benchmarks/first_words.py SET ADAPTER [ADAPTER ...] [--users N] [--split S] [--temperature T]

SET is a data source; each ADAPTER a folder, `shipped` or `none`. "Doublings" is log2 of the target's place without any
words less that with them, of users whose target the TRM alone has among its first hundred; NDCG@10 is that of the TRM's
one list with these words, on all users. Beside them stand what rules say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from deeprec.cli.workbench import Workbench
from deeprec.config import Config, preference_weight_of
from deeprec.evaluation.eval_report import interval_text, markdown_table
from deeprec.evaluation.evaluate import evaluation_tasks
from deeprec.evaluation.intervals import mean_interval
from deeprec.evaluation.metrics import ndcg_at
from deeprec.explore.explorer import Explorer
from deeprec.retrieval.retriever import queries_of
from deeprec.runs import environment
from deeprec.trm.preferences import recent_titles

NEAR = 100


def within(values: np.ndarray) -> str:
    return interval_text(mean_interval(values, confidence=0.95, resamples=2000, seed=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--policy", default="openvino", help="the engine")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = Config.model_validate(
        {
            "data": {"source": args.set},
            "explore": {"horizon": 1, "preference_weight": 0.1, "temperature": args.temperature, "batch_size": 48},
            "eval": {"split": args.split, "users": args.users},
            "policy": {"kind": args.policy},
        }
    )
    bench = Workbench(config, runs=args.runs)
    dataset = bench.dataset()
    trm = bench.trm(dataset)[0]
    tasks = evaluation_tasks(dataset, config.eval)[1]
    targets = [dataset.targets(args.split)[task.id] for task in tasks]

    def ranks(words: list[str]) -> np.ndarray:
        return trm.ranks(queries_of(tasks, words, preference_weight_of(config.explore)), targets)

    said = {
        f"titles of the last {n}": ["; ".join(recent_titles(dataset.catalog, task.history[-n:])) for task in tasks]
        for n in (1, 3)
    }
    silent = [0.0] * len(said)
    for adapter in args.adapters:
        policy = config.policy.model_copy(update={"adapter": adapter})
        speaker = Workbench(config.model_copy(update={"policy": policy}), runs=args.runs).policy()
        traces = Explorer(speaker, trm, dataset.catalog, config.explore).run(tasks)
        said[f"adapter {adapter}"] = [trace.turns[0].preference if trace.turns else "" for trace in traces]
        silent.append(sum(not trace.turns for trace in traces) / len(traces))
        print(adapter, "said, for the first three users:", *said[f"adapter {adapter}"][:3], sep="\n  ", flush=True)
    alone = ranks([""] * len(tasks))
    near = (alone >= 0) & (alone < NEAR)
    first: np.ndarray | None = None
    rows = []
    for (name, words), quiet in zip(said.items(), silent, strict=True):
        heard = ranks(words)
        gained = (np.log2(1 + alone) - np.log2(1 + heard))[near]
        ndcg = ndcg_at(heard, 10)
        first = gained if first is None and name.startswith("adapter") else first
        rows.append(
            (
                name,
                f"{quiet:.1%}",
                within(gained),
                within(gained - first) if first is not None else "",
                f"{ndcg.mean():.4f}",
                within(ndcg - ndcg_at(alone, 10)),
            )
        )
    head = ("words", "no call", "doublings", "to the first adapter", "NDCG@10", "to the TRM alone")
    text = "\n".join(
        [
            f"{dataset.name}, {len(tasks)} {args.split} users ({int(near.sum())} near), at temperature "
            f"{args.temperature:g}; TRM alone {ndcg_at(alone, 10).mean():.4f}; {environment(sys.argv)}",
            "",
            *markdown_table(head, rows),
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
