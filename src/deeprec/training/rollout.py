"""Explorations for TRL's trainer: its `rollout_func`, and its reward functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from deeprec.config import ExploreConfig, TrainConfig
from deeprec.data.dataset import Task
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Line, Stop, Trace
from deeprec.retrieval.retriever import Query
from deeprec.rewards.rubric import Rubric, Scored
from deeprec.training.sampling import Sampler, in_process
from deeprec.training.task_sets import TaskSets

Listener = Callable[[Sequence[Trace], Sequence[Scored], dict[str, float]], None]
"""Hears each step's traces, their rewards, and seconds by activity."""

TOP_P = 0.95
"""Of the explorations."""
RESAMPLING_ROUNDS = 1
"""Rounds in which groups of equal rewards give way to other tasks (dynamic sampling)."""


class Rollout:
    """Explores for the tasks of a step, each in a group of `samples`; called by the trainer.

    A prompt of the trainer's data set is a task's id. Groups whose rewards are all equal teach nothing: they give way
    to groups of other tasks, as often as the configuration says.
    """

    def __init__(
        self,
        task_sets: TaskSets,
        tasks: Sequence[Task],
        rubric: Rubric,
        explore: ExploreConfig,
        config: TrainConfig,
        listener: Listener,
        sampler: Sampler = in_process,
    ) -> None:
        self.task_sets = task_sets
        self.tasks = {task.id: task for task in tasks}
        self.targets = task_sets.targets()
        self.rubric = rubric
        self.explore = explore
        self.config = config
        self.listener = listener
        self.sampler = sampler

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What TRL asks for (tokens, logprobs, who wrote each token), and what each exploration is paid."""
        step, size = trainer.state.global_step, self.config.group_size
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        policy = self.sampler(model.eval(), trainer.processing_class)
        settings = self.explore.model_copy(
            update={
                "temperature": self.config.temperature,
                "top_p": TOP_P,
                "seed": (self.config.seed << 20) + step,
            }
        )
        explorer = Explorer(policy, self.task_sets.retriever, self.task_sets.catalog, settings)
        groups = [self.tasks[prompts[first]] for first in range(0, len(prompts), size)]
        substitutes = self._others(step, gather_object([task.id for task in groups]))
        found: list[list[tuple[Trace, Scored]]] = [[] for _ in groups]
        for round_ in range(RESAMPLING_ROUNDS + 1):
            flat = [g for g, group in enumerate(found) if len({scored.total for _, scored in group}) < 2]
            if round_:
                # All processes draw for all flat groups, and each takes what falls to its own.
                first = trainer.accelerator.process_index * len(groups)
                drawn = dict(zip(gather_object([first + g for g in flat]), substitutes, strict=False))
                flat = [g for g in flat if first + g in drawn]
                groups = [drawn.get(first + g, task) for g, task in enumerate(groups)]
            traces = explorer.run([groups[g] for g in flat for _ in range(size)])
            alone = self._alone(traces[::size])
            for position, g in enumerate(flat):
                group = traces[position * size : (position + 1) * size]
                scores = [self.rubric.score(trace, self.targets[trace.task]) for trace in group]
                found[g] = [
                    (trace, replace(each, alone=alone[position])) for trace, each in zip(group, scores, strict=True)
                ]
        model.train(training)
        everything = [pair for group in found for pair in group]
        traces, scores = [trace for trace, _ in everything], [scored for _, scored in everything]
        self.listener(traces, scores, {**explorer.seconds, **policy.seconds})
        return _fields(traces) | {"scored": scores}

    def _alone(self, traces: Sequence[Trace]) -> list[float]:
        """What answering with the retriever's own list, without a call, is paid in the task of each trace.

        Tasks differ far more than a step changes a policy; less this, rewards of different tasks can be compared.
        """
        queries = [Query(trace.history, exclude=frozenset(trace.history)) for trace in traces]
        lists = self.task_sets.retriever.retrieve(queries, self.explore.answer_size)
        titles = self.task_sets.catalog.titles
        found = []
        for trace, hits in zip(traces, lists, strict=True):
            answer = tuple(Line(titles[hit.item], hit.item, retrieved=True, fault=None) for hit in hits)
            told = replace(trace, turns=(), thought="", answer=answer, faults=(), stop=Stop.ANSWERED)
            found.append(self.rubric.score(told, self.targets[trace.task]).total)
        return found

    def _others(self, step: int, asked: Sequence[str]) -> Iterator[Task]:
        """Tasks to take the place of those of the step, in an order of the step's own."""
        known = set(asked)
        rest = [task for name, task in self.tasks.items() if name not in known]
        for position in np.random.default_rng([self.config.seed, step]).permutation(len(rest)):
            yield rest[position]


def reward_functions(rubric: Rubric) -> list[Callable[..., list[float]]]:
    """One function a term, as TRL wants them; they read what the rollout scored."""
    return [_reward(name) for name in rubric.rewards]


def _reward(name: str) -> Callable[..., list[float]]:
    def reward(scored: Sequence[Scored], **_: Any) -> list[float]:
        return [each.terms[name] for each in scored]

    reward.__name__ = name
    return reward


def _fields(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    prompts, completions, logprobs, masks = [], [], [], []
    for trace in traces:
        tokens, written, logs = trace.tokens()
        start = len(trace.segments[0].tokens)
        prompts.append(tokens[:start])
        completions.append(tokens[start:])
        logprobs.append(logs[start:])
        masks.append([int(own) for own in written[start:]])
    return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": logprobs, "env_mask": masks}
