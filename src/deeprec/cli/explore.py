"""`deeprec explore` and `deeprec play`: one user's exploration, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeprec.cli.options import Items, Options, User
from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.config import Config
    from deeprec.data.dataset import Dataset, Split, Task
    from deeprec.explore.explorer import Explorer
    from deeprec.explore.trace import Author, Trace
    from deeprec.trm.trm import TRM


def explore(options: Options, user: User = None, item: Items = None) -> None:
    """Watch one user's whole exploration, live as it is written."""
    config = options.config()
    view, trm, task = _prepare(options, config, user, item)
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.loading import load_policy

    policy = load_policy(config, offline=options.offline)
    view.watch(Explorer(policy, trm, view.dataset.catalog, config.explore), task)


def play(options: Options, user: User = None, item: Items = None) -> None:
    """Be the policy yourself: state preferences, look at what comes back, rank."""
    config = options.config()
    view, trm, task = _prepare(options, config, user, item)
    from deeprec.config import preference_weight_of
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.human import HumanWriter
    from deeprec.policies.scripted import ScriptedPolicy
    from deeprec.policies.text import TextPolicy

    console, limits, catalog = options.console, config.explore, view.dataset.catalog
    human = HumanWriter(
        console.input, lambda line: console.print(line, markup=False), limits.answer_size, limits.max_calls
    )
    # A person knows what to ask for.
    own = limits.model_copy(update={"preference_weight": preference_weight_of(limits)})
    try:
        view.watch(Explorer(TextPolicy(human), trm, catalog, own), task)
    except EOFError:
        console.print("\nThe input ended: nothing was ranked.")
        return
    console.rule("the scripted explorer on the same user")
    view.show(Explorer(ScriptedPolicy(limits.answer_size), trm, catalog, limits).run([task])[0])


def _prepare(options: Options, config: Config, user: str | None, titles: list[str] | None) -> tuple[View, TRM, Task]:
    view = View(options.dataset(config), config.eval.split, options.console)
    task = view.pick_task(user, titles or ())  # before the TRM, whose training takes a while
    return view, options.trm(view.dataset, config)[0], task


@dataclass(frozen=True)
class View:
    """Shows explorations of a data set's users on a terminal."""

    dataset: Dataset
    split: Split
    console: Console

    def pick_task(self, user: str | None = None, titles: Sequence[str] = ()) -> Task:
        """The evaluation task of a user of the data, or one of the titles or ids that a new user names.

        Raises:
            DeepRecError: both are given, or there is no such user or item.
        """
        from deeprec.config import EvalConfig
        from deeprec.data.catalog import UserId
        from deeprec.data.dataset import Task
        from deeprec.evaluation.rankings import evaluation_tasks

        dataset = self.dataset
        if titles and user is not None:
            raise DeepRecError("--user and --item exclude each other: a user of the data, or a new one's history.")
        if titles:
            return Task("new:you", UserId("you"), tuple(map(dataset.catalog.find, titles)))
        if user is None:
            return evaluation_tasks(dataset, EvalConfig(split=self.split, users=1))[1][0]
        tasks = dataset.tasks(self.split)
        if found := next((task for task in tasks if task.user == user), None):
            return found
        known = ", ".join(task.user for task in tasks[:3])
        raise DeepRecError(f"{dataset.name} has no user {user!r} with a held-out item; users are for instance {known}.")

    def watch(self, explorer: Explorer, task: Task) -> None:
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
        trace = explorer.run([task], listener)[0]
        seconds = time.perf_counter() - started
        console.print()
        self.show(trace)
        written = f"{len(trace.turns)} tool calls, {trace.policy_tokens} tokens written, {seconds:.1f} s"
        console.print(f"{written}; ended by: {trace.stop.value}")
        if trace.usage is not None:
            console.print(f"The server read {trace.usage.read} tokens and wrote {trace.usage.written}.")

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
        target = self.dataset.targets(self.split).get(trace.task)
        if target is not None:
            where = f"rank {trace.ranking.index(target) + 1}" if target in trace.ranking else "not in the ranking"
            shown = "retrieved" if target in trace.pool else "never retrieved"
            seen = "which no part of this has seen" if self.split == "test" else "on which the TRM was stopped"
            console.print(f"held-out item, {seen}: {escape(titles[target])}: {where}, {shown}")
