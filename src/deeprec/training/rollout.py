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
from deeprec.explore.settings import resolve_defaults
from deeprec.explore.trace import Line, Stop, Trace
from deeprec.retrieval.retriever import queries_of
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

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """What TRL asks for (tokens, logprobs, who wrote each token), and the reward of each exploration."""
        train, step = self.config.train, trainer.state.global_step
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        policy = self.sampler(model.eval(), trainer.processing_class)
        retriever, catalog = self.task_sets.retriever, self.task_sets.catalog
        explore = resolve_defaults(self.config.explore, policy.prompt_defaults, retriever, catalog)
        sampling = {"temperature": train.temperature, "top_p": TOP_P, "seed": (train.seed << 20) + step}
        explorer = Explorer(policy, retriever, catalog, explore.model_copy(update=sampling))
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
        """A group of explorations for each task, with their rewards and that of the TRM's own list, without a call.

        Tasks differ far more than a step changes a policy. Relative to the latter, rewards of different tasks compare.
        """
        size, titles = self.config.train.group_size, self.task_sets.catalog.titles
        traces = explorer.run([task for task in tasks for _ in range(size)])
        lists = self.task_sets.retriever.retrieve(queries_of(tasks), self.config.explore.answer_size)
        groups = []
        for first, hits in zip(range(0, len(traces), size), lists, strict=True):
            answer = tuple(Line(titles[hit.item], hit.item, retrieved=True, fault=None) for hit in hits)
            own = replace(traces[first], turns=(), thought="", answer=answer, faults=(), stop=Stop.ANSWERED, titles=())
            total, group = self._score(own).total, traces[first : first + size]
            groups.append([(trace, replace(self._score(trace), trm_total=total)) for trace in group])
        return groups

    def _score(self, trace: Trace) -> Scored:
        return self.rubric.score(trace, self.task_sets.followed[trace.task][0])

    def _substitutes(self, step: int, asked: Sequence[str]) -> Iterator[Task]:
        """Tasks that are not among the step's own, in an order that depends on the step."""
        known = set(asked)
        rest = [task for task in self.tasks if task.id not in known]
        for position in np.random.default_rng([self.config.train.seed, step]).permutation(len(rest)):
            yield rest[position]


def reward_functions(rubric: Rubric) -> list[Callable[..., list[float]]]:
    """One function a term, as TRL wants them; they read the scores of the rollout."""

    def named(name: str) -> Callable[..., list[float]]:
        def reward(scored: Sequence[Scored], **_: Any) -> list[float]:
            return [each.terms[name] for each in scored]

        reward.__name__ = name
        return reward

    return list(map(named, rubric.rewards))


def _fields(traces: Sequence[Trace]) -> dict[str, list[Any]]:
    """The rollout's fields in TRL's form: the prompt apart from what follows it."""
    rows = []
    for trace in traces:
        tokens, written, logprobs = trace.tokens()
        start = len(trace.segments[0].tokens)
        # What the environment wrote last has no part in learning.
        end = max((position for position, own in enumerate(written, start=1) if own), default=len(tokens))
        rows.append((tokens[:start], tokens[start:end], logprobs[start:end], list(map(int, written[start:end]))))
    names = ("prompt_ids", "completion_ids", "logprobs", "env_mask")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
