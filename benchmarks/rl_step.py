"""Seconds of a step of reinforcement learning by activity: ours against plain `generate` and TRL's loss.

The plain way is what one first writes with TRL. In every turn, all open explorations are padded to one length, encoded
anew from their first token, and continued by one call of transformers' `generate` until the last of them stops. TRL's
trainer then computes the logits of all tokens; ours computes those of the policy's own. Model, tasks, prompts, limits,
sampling and rewards are the same. The explorations differ, since the random numbers do, so read the seconds beside the
tokens.

    python benchmarks/rl_step.py RUN [--rounds 2] [--tasks 4] [--output FILE.json]

RUN is the folder of a `deeprec train` whose SFT is finished.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from deeprec.data.sources import load_dataset
from deeprec.explore.policy import Chunk, Finish, Request
from deeprec.explore.protocol import STOPS
from deeprec.explore.trace import Trace
from deeprec.policies.adapters import bare
from deeprec.policies.text import SegmentPolicy
from deeprec.policies.transformers import TransformersPolicy
from deeprec.runs import Run, environment
from deeprec.training import rollout, stages
from deeprec.training.callback import StageCallback
from deeprec.training.run import prepare_task_sets
from deeprec.training.sampling import in_process
from deeprec.training.schedule import SFT
from deeprec.training.time_budget import TimeBudget
from deeprec.training.trainer import adapted, load_weights, rubrics_of


class PlainPolicy(SegmentPolicy):
    """One call of `generate` for all open explorations; no cache from turn to turn."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        fast = TransformersPolicy(model, tokenizer)
        super().__init__(fast)
        self.model, self.tokenizer, self.ends = model, tokenizer, fast.ends
        self.seconds = {"generate": 0.0}

    @torch.no_grad()
    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        started = time.perf_counter()
        length = max(len(request.context) for request in requests)
        rows = [[0] * (length - len(request.context)) + list(request.context) for request in requests]
        real = [[0] * (length - len(request.context)) + [1] * len(request.context) for request in requests]
        # As in the trainer's forward pass: the adapter's weights are float32, the model's may be bfloat16.
        half = self.model.dtype == torch.bfloat16
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=half):
            output_BT = self.model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(real),
                do_sample=True,
                temperature=requests[0].temperature,
                top_p=requests[0].top_p,
                top_k=0,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                stop_strings=list(requests[0].stops),
                tokenizer=self.tokenizer,
                pad_token_id=min(self.ends),
            )
        self.seconds["generate"] += time.perf_counter() - started
        return [self._chunk(request, row[length:].tolist()) for request, row in zip(requests, output_BT, strict=True)]

    def _chunk(self, request: Request, tokens: list[int]) -> Chunk:
        for n in range(1, len(tokens) + 1):
            if tokens[n - 1] in self.ends:
                return Chunk(request.key, tuple(tokens[:n]), (0.0,) * n, Finish.END)
            text = self.decode(tokens[max(0, n - 40) : n])
            if any(stop in text for stop in request.stops):
                return Chunk(request.key, tuple(tokens[:n]), (0.0,) * n, Finish.STOP)
        return Chunk(request.key, tuple(tokens), (0.0,) * len(tokens), Finish.LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", type=int, help="of a step, each explored in a group; default: the training's")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    run = Run.open(args.run)
    if not (run.path / SFT).is_dir():
        parser.error(f"{run.path} has no finished SFT.")
    config = run.config
    task_sets = prepare_task_sets(load_dataset(config.data), config, run.path.parent)
    policy = TransformersPolicy.load(bare(config.policy))
    model = adapted(policy.model, config.train.lora_rank)
    stage = config.train.stages[-1].model_copy(update={"steps": 1})
    rubric = rubrics_of({stage.name: stage}, task_sets, config)[stage.name]
    # Stop strings cost `generate` half a minute of preparation in each process, which is not what is measured.
    plain = PlainPolicy(policy.model, policy.tokenizer)
    plain.submit([Request("warm-up", tuple(plain.encode("Warm-up.")), STOPS, 1, temperature=1.0)])
    plain.step()
    own = stages.OwnTokensTrainer
    rollout.RESAMPLING_ROUNDS = 0
    seconds: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for round_ in range(args.rounds):
        train = {"seed": round_, "tasks_per_step": args.tasks or config.train.tasks_per_step}
        settings = config.model_copy(update={"train": config.train.model_copy(update=train)})
        for name, sampler, trainer in (("ours", in_process, own), ("plain", PlainPolicy, GRPOTrainer)):
            stages.OwnTokensTrainer = trainer  # type: ignore[misc]
            load_weights(model, run.path / SFT)
            watch = _StopWatch(stage.name)
            tasks = task_sets.tasks[stage.name]
            explorations = rollout.Rollout(task_sets, tasks, rubric, settings, watch.on_rollout, sampler)
            with tempfile.TemporaryDirectory() as folder:
                stages.run_stage(model, policy.tokenizer, stage, explorations, Path(folder), watch)
            seconds[name].append(watch.parts)
            print(name, {part: round(value, 1) for part, value in watch.parts.items()}, flush=True)
    report = environment(sys.argv) | {"threads": torch.get_num_threads(), "rounds": seconds}
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class _StopWatch(StageCallback):
    """The step's seconds by activity."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage, lambda *_: None, TimeBudget(Path(), {}, None))
        self.parts: dict[str, float] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_rollout(self, traces: Sequence[Trace], scores: Any, seconds: Any) -> None:
        self.parts = {"explore": time.perf_counter() - self.started, **seconds}
        self.parts["explorations"] = len(traces)
        self.parts["tokens written"] = sum(trace.policy_tokens for trace in traces)
        self.parts["tokens in all"] = sum(len(trace.tokens()[0]) for trace in traces)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.parts["step"] = time.perf_counter() - self.started
        self.parts["learn"] = self.parts["step"] - self.parts["explore"]


if __name__ == "__main__":
    main()
