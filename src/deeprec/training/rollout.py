"""Explorations for TRL's trainer: its `rollout_func`, and its reward functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from deeprec.config import Config
from deeprec.data.dataset import Task
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Line, Stop, Trace
from deeprec.retrieval.retriever import Query
from deeprec.rewards.rubric import Rubric, Scored
from deeprec.training.sampling import Sampler, in_process
from deeprec.training.task_sets import TaskSets

OnRollout = Callable[[Sequence[Trace], Sequence[Scored], Mapping[str, float]], None]
"""Receives each step's traces, their rewards, and seconds by activity."""

TOP_P = 0.95  # of the explorations' sampling
RESAMPLING_ROUNDS = 1  # rounds in which other tasks replace groups of equal rewards (dynamic sampling)


@dataclass
class Rollout:
    """Explores the tasks of a step, each in a group of `group_size`. The trainer calls it.

    A prompt of the trainer's data set is a task's id. Groups of equal rewards teach nothing, so groups of other tasks
    replace them, for up to `RESAMPLING_ROUNDS` rounds.
    """

    task_sets: TaskSets
    tasks: Sequence[Task]
    rubric: Rubric
    config: Config
    on_rollout: OnRollout
    sampler: Sampler = in_process

    def __post_init__(self) -> None:
        self._targets = self.task_sets.targets()

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What TRL asks for (tokens, logprobs, who wrote each token), and the reward of each exploration."""
        train, step = self.config.train, trainer.state.global_step
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        policy = self.sampler(model.eval(), trainer.processing_class)
        sampling = {"temperature": train.temperature, "top_p": TOP_P, "seed": (train.seed << 20) + step}
        explore = self.config.explore.model_copy(update=sampling)
        explorer = Explorer(policy, self.task_sets.retriever, self.task_sets.catalog, explore)
        by_id = {task.id: task for task in self.tasks}
        tasks = [by_id[prompt] for prompt in prompts[:: train.group_size]]
        substitutes = self._substitutes(step, gather_object([task.id for task in tasks]))
        groups = self._explore(explorer, tasks)
        first = trainer.accelerator.process_index * len(groups)  # of this process's groups among those of all
        for _ in range(RESAMPLING_ROUNDS):
            flat = [g for g, group in enumerate(groups) if len({scored.total for _, scored in group}) < 2]
            # Every process draws for the flat groups of all, and takes what falls to its own.
            drawn = dict(zip(gather_object([first + g for g in flat]), substitutes, strict=False))
            flat = [g for g in flat if first + g in drawn]
            for g, group in zip(flat, self._explore(explorer, [drawn[first + g] for g in flat]), strict=True):
                groups[g] = group
        model.train(training)
        traces, scores = zip(*(pair for group in groups for pair in group), strict=True)
        self.on_rollout(traces, scores, {**explorer.seconds, **policy.seconds})
        return _fields(traces) | {"scored": list(scores)}

    def _explore(self, explorer: Explorer, tasks: Sequence[Task]) -> list[list[tuple[Trace, Scored]]]:
        """A group of explorations for each task, with their rewards."""
        size = self.config.train.group_size
        traces = explorer.run([task for task in tasks for _ in range(size)])
        groups = [traces[first : first + size] for first in range(0, len(traces), size)]
        totals = self._trm_totals(traces[::size])
        return [
            [(trace, replace(self._score(trace), trm_total=total)) for trace in group]
            for group, total in zip(groups, totals, strict=True)
        ]

    def _trm_totals(self, traces: Sequence[Trace]) -> list[float]:
        """The reward of answering each trace's task with the TRM's own list, without a call.

        Tasks differ far more than a step changes a policy. Relative to this, rewards of different tasks compare.
        """
        queries = [Query(trace.history, exclude=frozenset(trace.history)) for trace in traces]
        lists = self.task_sets.retriever.retrieve(queries, self.config.explore.answer_size)
        titles = self.task_sets.catalog.titles
        totals = []
        for trace, hits in zip(traces, lists, strict=True):
            answer = tuple(Line(titles[hit.item], hit.item, retrieved=True, fault=None) for hit in hits)
            as_answer = replace(trace, turns=(), thought="", answer=answer, faults=(), stop=Stop.ANSWERED)
            totals.append(self._score(as_answer).total)
        return totals

    def _score(self, trace: Trace) -> Scored:
        return self.rubric.score(trace, self._targets[trace.task])

    def _substitutes(self, step: int, asked: Sequence[str]) -> Iterator[Task]:
        """Tasks that are not among the step's own, in an order that depends on the step."""
        known = set(asked)
        rest = [task for task in self.tasks if task.id not in known]
        for position in np.random.default_rng([self.config.train.seed, step]).permutation(len(rest)):
            yield rest[position]


def reward_functions(rubric: Rubric) -> list[Callable[..., list[float]]]:
    """One function a term, as TRL wants them; they read the scores of the rollout."""
    return [_reward(name) for name in rubric.rewards]


def _reward(name: str) -> Callable[..., list[float]]:
    def reward(scored: Sequence[Scored], **_: Any) -> list[float]:
        return [each.terms[name] for each in scored]

    reward.__name__ = name
    return reward


def _fields(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    """The rollout's fields in TRL's form: the prompt apart from what follows it."""
    fields: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    for trace in traces:
        tokens, written, logprobs = trace.tokens()
        start = len(trace.segments[0].tokens)
        fields["prompt_ids"].append(tokens[:start])
        fields["completion_ids"].append(tokens[start:])
        fields["logprobs"].append(logprobs[start:])
        fields["env_mask"].append([int(by_policy) for by_policy in written[start:]])
    return fields
