"""Which link of an exploration loses: preference, retrieval or ranking. An evaluation's traces, with one link replaced.

    python benchmarks/links.py RUN [--system NAME] [--output FILE.md]

RUN is the folder of a finished `deeprec eval` of a language model. Every row ranks the same users' lists; "list after
list" is the order in which items first came back. Nothing is written by the model anew, so it takes a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deeprec.cli.workbench import Workbench
from deeprec.config import items_of, preference_weight_of
from deeprec.data.catalog import ItemIdx
from deeprec.evaluation.eval_report import Report
from deeprec.evaluation.evaluate import evaluation_tasks, rankings_of, score_rankings
from deeprec.evaluation.oracle_ablation import in_front, in_own_order, phrases_to, replay
from deeprec.explore.explorer import resolve_defaults
from deeprec.explore.trace import Trace
from deeprec.policies.adapters import adapter_folder, read_prompt_defaults
from deeprec.runs import Run, environment
from deeprec.trm.preferences import frequent_phrases

CANDIDATE_WEIGHTS = (0.1, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--system", help="whose explorations; default: the last that was evaluated")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    run = Run.open(args.run)
    logged = [(entry["system"], Trace.from_json(entry["trace"])) for entry in run.traces]
    if not logged:
        parser.error(f"{run.path} has no traces of a language model.")
    system = args.system or logged[-1][0]
    traces = {trace.task: trace for name, trace in logged if name == system}
    if not traces:
        parser.error(f"{run.path} has no system {system!r}: it has {sorted({name for name, _ in logged})}.")
    bench = Workbench(run.config, runs=run.path.parent)
    dataset, config = bench.dataset(), run.config
    trm = bench.trm(dataset)[0]
    tasks = [task for task in evaluation_tasks(dataset, config.eval)[1] if task.id in traces]
    targets = dataset.targets(config.eval.split)
    n_items, catalog = len(dataset.catalog), dataset.catalog
    said = [[turn.preference for turn in traces[task.id].turns] for task in tasks]
    pools = [list(traces[task.id].pool) for task in tasks]
    alone = rankings_of(trm, tasks, n_items)
    themed = ["; ".join(frequent_phrases(catalog, task.history)) for task in tasks]
    right = phrases_to(catalog, [targets[task.id] for task in tasks])
    adapter = adapter_folder(config.policy)
    explore = resolve_defaults(config.explore, read_prompt_defaults(adapter), trm)
    per_call, preference_weight = items_of(explore), preference_weight_of(explore)
    with_fallback = [list(traces[task.id].with_fallback()[0]) for task in tasks]
    rows: dict[str, tuple[list[list[ItemIdx]], list[list[ItemIdx]]]] = {
        "TRM alone": (alone, [ranking[: len(pool)] for ranking, pool in zip(alone, pools, strict=True)]),
        "explorer, as served": (with_fallback, pools),
        "its pool, list after list": (pools, pools),
        "its pool, in the TRM's own order": (in_own_order(trm, tasks, pools), pools),
        "its pool, the target first": (
            [sorted(pool, key=targets[task.id].__ne__) for pool, task in zip(pools, tasks, strict=True)],
            pools,
        ),
    }
    for name, words, preference_weights in (
        ("its words", said, CANDIDATE_WEIGHTS),
        ("the history's themes for its first words", in_front(themed, said), [preference_weight]),
        ("phrases of the target for its first words", in_front(right, said), [preference_weight]),
    ):
        for each in preference_weights:
            lists = replay(trm, tasks, words, per_call, each)
            rows[f"{name}, trust {each:g}, list after list"] = (lists, lists)
    k = max(config.eval.cutoffs)

    def hit_share(found: Sequence[Sequence[ItemIdx]]) -> float:
        return sum(targets[task.id] in pool for pool, task in zip(found, tasks, strict=True)) / len(tasks)

    report = Report(
        dataset=f"{dataset.name}: {len(tasks)} users; {system}, trust {preference_weight:g}",
        fingerprint=dataset.fingerprint,
        split=config.eval.split,
        cutoffs=config.eval.cutoffs,
        baseline="TRM alone",
        systems=tuple(
            score_rankings(name, tasks, [r[:k] for r in rankings], targets, n_items, k, {"pool hit": hit_share(found)})
            for name, (rankings, found) in rows.items()
        ),
        config_path=str(run.config_path),
        environment=environment(sys.argv),
        timings={},
        confidence=config.eval.confidence,
        resamples=config.eval.bootstrap,
        seed=config.eval.seed,
    )
    print(report.to_markdown())
    if args.output:
        args.output.write_text(report.to_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
