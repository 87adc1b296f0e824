"""`deeprec explore` and `deeprec play`: one user's exploration, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.cli.filters import FilterOptions
from deeprec.cli.options import Items, Options, SavedTRM, User
from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.config import Config, EvalConfig, ExploreConfig
    from deeprec.data.catalog import ItemIdx
    from deeprec.data.dataset import Dataset, Task
    from deeprec.explore.explorer import Explorer
    from deeprec.explore.policy import Policy
    from deeprec.explore.trace import Author, Trace
    from deeprec.trm.trm import TRM


def explore(
    options: Options, filters: FilterOptions, user: User = None, item: Items = None, trm: SavedTRM = None
) -> None:
    """Watch one user's whole exploration, live as it is written."""
    view, task = _prepare(options, user, item, trm, filters)
    from deeprec.policies.loading import load_policy

    trace = view.watch(load_policy(view.config, offline=options.offline), task)
    if trace.error:
        raise DeepRecError(f"The policy failed, and the ranking is not its own: {trace.error}")


def play(options: Options, filters: FilterOptions, user: User = None, item: Items = None, trm: SavedTRM = None) -> None:
    """Be the policy yourself: state preferences, look at what comes back, rank."""
    view, task = _prepare(options, user, item, trm, filters)
    from deeprec.policies.human import HumanWriter
    from deeprec.policies.scripted import ScriptedPolicy
    from deeprec.policies.text import TextPolicy

    console, limits = options.console, view.config.explore
    show = partial(console.print, markup=False)
    human = HumanWriter(console.input, show, limits.answer_size, limits.max_calls)
    policy = TextPolicy(human)
    policy.by_person = True  # who knows what to ask for
    try:
        view.watch(policy, task)
    except EOFError:
        console.print("\nThe input ended: nothing was ranked.")
        return
    console.rule("the scripted explorer on the same user")
    view.show(view.explorer(ScriptedPolicy(limits.answer_size)).run([task])[0])


def _prepare(
    options: Options, user: str | None, titles: list[str] | None, saved: Path | None, filters: FilterOptions
) -> tuple[View, Task]:
    config = options.config()
    dataset = options.dataset(config)
    trm = options.trm(dataset, config, saved)[0] if saved else None
    catalog = trm.catalog if trm else dataset.catalog  # a saved TRM may have more items
    # The task comes before a TRM is trained, which takes a while.
    task = pick_task(dataset, config.eval, user, catalog.history(titles or ()))
    task = replace(task, include=filters.allowed(catalog))
    return View(dataset, trm or options.trm(dataset, config)[0], config, options.console), task


def pick_task(dataset: Dataset, config: EvalConfig, user: str | None = None, history: Sequence[ItemIdx] = ()) -> Task:
    """The evaluation task of a user of the data, or that of a new user with a history."""
    from deeprec.data.dataset import Task, excludes_history
    from deeprec.evaluation.rankings import evaluation_tasks

    if history and user is not None:
        raise DeepRecError("--user and --item exclude each other: a user of the data, or a new one's history.")
    if history:
        return Task.new(history, excludes_history(config.exclude, dataset.exclude_history))
    if user is None:
        return evaluation_tasks(dataset, config.model_copy(update={"users": 1}))[1][0]
    tasks: dict[str, Task] = {task.user: task for task in dataset.tasks(config.split, config.exclude)}
    if user not in tasks:
        known = ", ".join(list(tasks)[:3])
        raise DeepRecError(f"{dataset.name} has no user {user!r} with a held-out item; users are for instance {known}.")
    return tasks[user]


@dataclass(frozen=True)
class View:
    """Explorations on a terminal, of one configuration's data and TRM."""

    dataset: Dataset
    trm: TRM
    config: Config
    console: Console

    def explorer(self, policy: Policy, limits: ExploreConfig | None = None) -> Explorer:
        from deeprec.explore.explorer import Explorer

        return Explorer(policy, self.trm, config=limits or self.config.explore)

    def watch(self, policy: Policy, task: Task, limits: ExploreConfig | None = None) -> Trace:
        """The conversation as it is written (the policy's words bold, the tool's dim), then the ranking."""
        from rich.markup import escape
        from rich.panel import Panel
        from rich.text import Text

        console, opened = self.console, False

        def listener(_: Task, author: Author, text: str) -> None:
            nonlocal opened
            if opened:
                console.print(Text(text, style="bold" if author == "policy" else "dim"), end="")
            else:  # the prompt comes first
                opened = True
                console.print(Panel(Text(text.rstrip()), title=escape(f"prompt for user {task.user}"), style="dim"))

        started = time.perf_counter()
        (trace,) = self.explorer(policy, limits).run([task], listener)
        spent = f"{trace.policy_tokens} tokens written, {time.perf_counter() - started:.1f} s"
        console.print()
        self.show(trace)
        console.print(f"{len(trace.turns)} tool calls, {spent}; ended by: {trace.stop.value}")
        if trace.usage is not None:
            console.print(f"The server read {trace.usage.read} tokens and wrote {trace.usage.written}.")
        return trace

    def show(self, trace: Trace) -> None:
        """The ranking with where each item was found, what went wrong, and the held-out item where there is one."""
        from rich.markup import escape

        from deeprec.cli.console import show_table

        console, titles, found = self.console, self.trm.catalog.titles, trace.first_found()
        rows = []
        for rank, item in enumerate(trace.ranking, start=1):
            call, turn = found.get(item, ("-", None))
            rows.append((str(rank), titles[item], str(call), turn.preference if turn else ""))
        columns = ("rank", "title", "found in call", "by the preference")
        show_table(console, columns, rows, f"ranking: {trace.origin.value}")
        if trace.faults:
            console.print(f"[red]faults:[/] {', '.join(trace.faults)}")
        if trace.error:
            console.print(f"[red]the policy failed:[/] {escape(trace.error)}")
        target = self.dataset.targets(self.config.eval.split).get(trace.task)
        if target is not None:
            where = f"rank {trace.ranking.index(target) + 1}" if target in trace.ranking else "not in the ranking"
            shown = "retrieved" if target in trace.pool else "never retrieved"
            test = self.config.eval.split == "test"
            seen = "which no part of this has seen" if test else "on which the TRM was stopped"
            console.print(f"held-out item, {seen}: {escape(titles[target])}: {where}, {shown}")
