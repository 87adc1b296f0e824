"""`deeprec explore` and `deeprec play`: one user's exploration, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    dataset, trm, task = _prepare(options, config, user, item or [])
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.loading import load_policy

    policy = load_policy(config, offline=options.offline)
    explorer = Explorer(policy, trm, dataset.catalog, config.explore)
    show_exploration(explorer, dataset, task, config.eval.split, options.console)


def play(options: Options, user: User = None, item: Items = None) -> None:
    """Be the policy yourself: state preferences, look at what comes back, rank."""
    config = options.config()
    dataset, trm, task = _prepare(options, config, user, item or [])
    from deeprec.config import DEFAULT_PREFERENCE_WEIGHT
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.human import HumanWriter
    from deeprec.policies.scripted import ScriptedPolicy
    from deeprec.policies.text import TextPolicy

    console, limits, split = options.console, config.explore, config.eval.split
    human = HumanWriter(
        console.input, lambda line: console.print(line, markup=False), limits.answer_size, limits.max_calls
    )
    weight = DEFAULT_PREFERENCE_WEIGHT if limits.preference_weight is None else limits.preference_weight
    own = limits.model_copy(update={"preference_weight": weight})  # a person knows what to ask for
    try:
        show_exploration(Explorer(TextPolicy(human), trm, dataset.catalog, own), dataset, task, split, console)
    except EOFError:
        console.print("\nThe input ended: nothing was ranked.")
        return
    console.rule("the scripted explorer on the same user")
    trace = Explorer(ScriptedPolicy(limits.answer_size), trm, dataset.catalog, limits).run([task])[0]
    show_outcome(dataset, trace, split, console)


def pick_task(dataset: Dataset, user: str | None, titles: Sequence[str], split: Split = "test") -> Task:
    """The evaluation task of a user of the data, or one of the titles or ids that a new user names.

    Raises:
        DeepRecError: both are given, or there is no such user or item.
    """
    from deeprec.config import EvalConfig
    from deeprec.data.catalog import UserId
    from deeprec.data.dataset import Task
    from deeprec.evaluation.rankings import evaluation_tasks

    if titles and user is not None:
        raise DeepRecError("--user and --item exclude each other: a user of the data, or a new one's history.")
    if titles:
        return Task("new:you", UserId("you"), tuple(map(dataset.catalog.find, titles)))
    if user is None:
        return evaluation_tasks(dataset, EvalConfig(split=split, users=1))[1][0]
    tasks = dataset.tasks(split)
    if found := next((task for task in tasks if task.user == user), None):
        return found
    examples = ", ".join(task.user for task in tasks[:3])
    raise DeepRecError(f"{dataset.name} has no user {user!r} with a held-out item; users are for instance {examples}.")


def show_exploration(explorer: Explorer, dataset: Dataset, task: Task, split: Split, console: Console) -> None:
    """The conversation as it is written (the policy's words bold, the tool's dim), then the ranking."""
    from rich.markup import escape
    from rich.panel import Panel
    from rich.text import Text

    from deeprec.explore.trace import Author

    opened = False

    def listener(_: Task, author: Author, text: str) -> None:
        nonlocal opened
        if author is Author.ENVIRONMENT and not opened:
            opened = True
            console.print(Panel(Text(text.rstrip()), title=escape(f"prompt for user {task.user}"), style="dim"))
        else:
            style = "dim" if author is Author.ENVIRONMENT else "bold"
            console.print(Text(text, style=style), end="")

    started = time.perf_counter()
    trace = explorer.run([task], listener)[0]
    seconds = time.perf_counter() - started
    console.print()
    show_outcome(dataset, trace, split, console)
    console.print(
        f"{len(trace.turns)} tool calls, {trace.policy_tokens} tokens written, {seconds:.1f} s; "
        f"ended by: {trace.stop.value}"
    )
    if trace.usage is not None:
        console.print(f"The server read {trace.usage.read} tokens and wrote {trace.usage.written}.")


def show_outcome(dataset: Dataset, trace: Trace, split: Split, console: Console) -> None:
    """The ranking with where each item was found, what went wrong, and the held-out item where there is one."""
    from rich.markup import escape
    from rich.table import Table

    catalog = dataset.catalog
    ranking, origin = trace.ranking, trace.origin
    found = trace.first_found()
    table = Table("rank", "title", "found in call", "by the preference", title=f"ranking: {origin.value}")
    for rank, item in enumerate(ranking, start=1):
        call, turn = found.get(item, ("-", None))
        table.add_row(str(rank), escape(catalog.titles[item]), str(call), escape(turn.preference if turn else ""))
    console.print(table)
    if trace.faults:
        console.print(f"[red]faults:[/] {', '.join(fault.value for fault in trace.faults)}")
    if trace.error:
        console.print(f"[red]the policy failed:[/] {escape(trace.error)}")
    target = dataset.targets(split).get(trace.task)
    if target is not None:
        where = f"rank {ranking.index(target) + 1}" if target in ranking else "not in the ranking"
        shown = "retrieved" if target in trace.pool else "never retrieved"
        seen = "which no part of this has seen" if split == "test" else "on which the TRM was stopped"
        console.print(f"held-out item, {seen}: {escape(catalog.titles[target])}: {where}, {shown}")


def _prepare(options: Options, config: Config, user: str | None, titles: Sequence[str]) -> tuple[Dataset, TRM, Task]:
    from deeprec.data.sources import load_dataset
    from deeprec.trm.run import load_or_train_trm

    dataset = load_dataset(config.data, offline=options.offline)
    task = pick_task(dataset, user, titles, config.eval.split)  # before the TRM, whose training takes a while
    trm, _ = load_or_train_trm(dataset, config, options.runs, offline=options.offline, progress=options.progress)
    return dataset, trm, task
