"""Exploration throughput: the explorer against the naive loop, side by side in one run.

The naive loop takes one user at a time; in every turn it encodes the whole text again and continues it with `generate`.
Both use the same model, data type, prompts, limits and retriever, and decode greedily.

    python benchmarks/exploration.py [--tasks 16] [--segment-tokens 48] [--dtype auto] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.evaluation.rankings import evaluation_tasks
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Chunk, Finish, Request
from deeprec.explore.protocol import STOPS
from deeprec.explore.trace import Trace
from deeprec.policies.loading import load_policy
from deeprec.policies.text import SegmentPolicy
from deeprec.policies.transformers import TransformersPolicy
from deeprec.retrieval.baselines import TransitionRetriever
from deeprec.runs import environment


class NaivePolicy(SegmentPolicy):
    """One request at a time, no state: every segment encodes its whole context again."""

    def __init__(self, fast: TransformersPolicy) -> None:
        super().__init__(fast)
        self.fast = fast

    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        return [self._chunk(request) for request in requests]

    def _chunk(self, request: Request) -> Chunk:
        context = self.encode(self.decode(request.context))
        output = self.fast.model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            stop_strings=list(request.stops),
            tokenizer=self.fast.tokenizer,
            pad_token_id=next(iter(self.fast.ends)),
        )
        tokens = output[0, len(context) :].tolist()
        text = self.decode(tokens)
        finish = Finish.LENGTH
        if any(stop in text for stop in request.stops):
            finish = Finish.STOP
        elif tokens[-1] in self.fast.ends:
            finish = Finish.END
        return Chunk(request.key, tuple(tokens), (), finish)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--segment-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    config = load_config(
        None,
        [
            f"eval.users={args.tasks}",
            f"explore.segment_tokens={args.segment_tokens}",
            f"explore.batch_size={args.tasks}",
            f"policy.dtype={args.dtype}",
            "policy.adapter=none",
        ],
    )
    dataset = load_dataset(config.data)
    _, tasks = evaluation_tasks(dataset, config.eval)
    # The retriever is not what is measured: transitions need no training.
    retriever = TransitionRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    fast = load_policy(config)
    assert isinstance(fast, TransformersPolicy)
    alone = config.explore.model_copy(update={"batch_size": 1})
    naive = NaivePolicy(fast)
    # Stop strings cost `generate` half a minute of preparation, once per process: not what is measured.
    naive.submit([Request("warm-up", tuple(fast.encode("Warm-up.")), STOPS, 1)])
    naive.step()
    results: dict[str, dict[str, float]] = {}
    traces: dict[str, list[Trace]] = {}
    for name, explorer in (
        ("explorer", Explorer(fast, retriever, dataset.catalog, config.explore)),
        ("naive loop", Explorer(naive, retriever, dataset.catalog, alone)),
    ):
        started, processor = time.perf_counter(), time.process_time()
        traces[name] = explorer.run(tasks)
        wall, processor = time.perf_counter() - started, time.process_time() - processor
        results[name] = {
            "wall seconds": wall,
            "processor seconds": processor,
            "trajectories/s": len(tasks) / wall,
            "tokens/s": sum(trace.policy_tokens for trace in traces[name]) / wall,
            "calls": sum(len(trace.turns) for trace in traces[name]),
        }
        if name == "explorer":
            seconds_by_activity = {**fast.seconds, **explorer.seconds}
            results[name] |= {f"share {activity}": part / wall for activity, part in seconds_by_activity.items()}
    same = sum(
        [s.text for s in a.segments] == [s.text for s in b.segments]
        for a, b in zip(traces["explorer"], traces["naive loop"], strict=True)
    )
    ratio = results["explorer"]["trajectories/s"] / results["naive loop"]["trajectories/s"]
    for name, figures in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    print(f"explorer / naive loop: {ratio:.2f} x trajectories a second; {same} of {len(tasks)} traces equal")
    if args.output:
        record = {"results": results, "ratio": ratio, "equal": same, "tasks": len(tasks), **environment(sys.argv)}
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
