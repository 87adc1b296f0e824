"""Free answers beside answers held to what was retrieved, of one model on the same users.

    python benchmarks/answers.py [--users 24] [--adapters none shipped] [--set KEY=VALUE ...] [--output FILE.md]

Both explore in turns of a dozen users, the one first and then the other: they share whatever else the machine does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

from deeprec.cli.workbench import Workbench
from deeprec.config import load_config
from deeprec.evaluation.evaluate import evaluation_tasks
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Stop, Trace
from deeprec.runs import environment

TURN = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=24)
    parser.add_argument("--adapters", nargs="+", default=["none", "shipped"])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = []
    for adapter in args.adapters:
        config = load_config(None, [*args.overrides, f"eval.users={args.users}", f"policy.adapter={adapter}"])
        bench = Workbench(config, runs=args.runs)
        dataset = bench.dataset()
        trm, policy = bench.trm(dataset)[0], bench.policy()
        sample = evaluation_tasks(dataset, config.eval)[1]
        traces: defaultdict[str, list[Trace]] = defaultdict(list)
        writing: defaultdict[str, float] = defaultdict(float)
        processor: defaultdict[str, float] = defaultdict(float)
        for turn, first in enumerate(range(0, len(sample), TURN)):
            for answer in ("free", "pool")[:: 1 if turn % 2 == 0 else -1]:
                explore = config.explore.model_copy(update={"answer": answer})
                wall, spent = sum(policy.seconds.values()), time.process_time()
                traces[answer] += Explorer(policy, trm, dataset.catalog, explore).run(sample[first : first + TURN])
                writing[answer] += sum(policy.seconds.values()) - wall
                processor[answer] += time.process_time() - spent
                print(adapter, answer, f"{len(traces[answer])} of {len(sample)}", file=sys.stderr, flush=True)
        for answer, found in traces.items():
            tokens = sum(trace.policy_tokens for trace in found)
            rows.append(
                f"| {adapter} | {answer} | {len(found)} | {sum(trace.well_formed for trace in found)} "
                f"| {sum(trace.stop is Stop.ANSWERED for trace in found)} "
                f"| {sum(len(trace.answered) == trace.answer_size for trace in found)} "
                f"| {tokens / len(found):.0f} | {tokens / writing[answer]:.0f} | {tokens / processor[answer]:.0f} |"
            )
            faults = sorted({fault.value for trace in found for fault in trace.faults})
            print(adapter, answer, "faults:", ", ".join(faults) or "none", file=sys.stderr)
    table = [
        "| adapter | answers | users | well-formed | answered | in full | tokens a user "
        "| tokens a second of the policy | tokens a second of the processor |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        ", ".join(f"{name} {value}" for name, value in environment(sys.argv).items()),
    ]
    text = "\n".join(table) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
