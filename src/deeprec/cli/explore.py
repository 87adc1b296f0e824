"""`deeprec explore` and `deeprec play`: one user's exploration, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from deeprec.cli.options import Items, Options, User
from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.config import Config, ExploreConfig
    from deeprec.data.dataset import Dataset, Split, Task
    from deeprec.explore.explorer import Explorer
    from deeprec.explore.policy import Policy
    from deeprec.explore.trace import Author, Trace
    from deeprec.trm.trm import TRM


def explore(options: Options, user: User = None, item: Items = None) -> None:
    """Watch one user's whole exploration, live as it is written."""
    view, task = _prepare(options, user, item)
    from deeprec.policies.loading import load_policy

    trace = view.watch(load_policy(view.config, offline=options.offline), task)
    if trace.error:
        raise DeepRecError(f"The policy failed, and the ranking is not its own: {trace.error}")


def play(options: Options, user: User = None, item: Items = None) -> None:
    """Be the policy yourself: state preferences, look at what comes back, rank."""
    view, task = _prepare(options, user, item)
    from deeprec.explore.settings import first_weight
    from deeprec.policies.human import HumanWriter
    from deeprec.policies.scripted import ScriptedPolicy
    from deeprec.policies.text import TextPolicy

    console, limits = options.console, view.config.explore
    show = partial(console.print, markup=False)
    human = HumanWriter(console.input, show, limits.answer_size, limits.max_calls)
    weight = first_weight(limits.preference_weight)  # a person knows what to ask for
    try:
        view.watch(TextPolicy(human), task, limits.model_copy(update={"preference_weight": weight}))
    except EOFError:
        console.print("\nThe input ended: nothing was ranked.")
        return
    console.rule("the scripted explorer on the same user")
    view.show(view.explorer(ScriptedPolicy(limits.answer_size)).run([task])[0])


def _prepare(options: Options, user: str | None, titles: list[str] | None) -> tuple[View, Task]:
    config = options.config()
    dataset = options.dataset(config)
    task = pick_task(dataset, config.eval.split, user, titles or ())  # before the TRM, whose training takes a while
    trm, _ = options.trm(dataset, config)
    return View(dataset, trm, config, options.console), task


def pick_task(dataset: Dataset, split: Split, user: str | None = None, titles: Sequence[str] = ()) -> Task:
    """The evaluation task of a user of the data, or one of the titles or ids that a new user names."""
    from deeprec.config import EvalConfig
    from deeprec.data.dataset import Task
    from deeprec.evaluation.rankings import evaluation_tasks

    if titles and user is not None:
        raise DeepRecError("--user and --item exclude each other: a user of the data, or a new one's history.")
    if titles:
        return Task.new(dataset.catalog.history(titles))
    if user is None:
        return evaluation_tasks(dataset, EvalConfig(split=split, users=1))[1][0]
    tasks: dict[str, Task] = {task.user: task for task in dataset.tasks(split)}
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

        return Explorer(policy, self.trm, self.dataset.catalog, limits or self.config.explore)

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

        console, titles, found = self.console, self.dataset.catalog.titles, trace.first_found()
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
