"""`deeprec demo`: the main job from end to end."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.options import Options


def demo(
    options: Options,
    users: Annotated[int, typer.Option(min=1, help="Test users that the language model explores for.")] = 50,
) -> None:
    """The main job from end to end: data, TRM, one live exploration, and an evaluation with its report."""
    config = options.config([f"eval.users={users}"])
    from deeprec.cli.data import show_dataset
    from deeprec.cli.evaluation import run_evaluation
    from deeprec.cli.explore import View, pick_task
    from deeprec.policies.scripted import ScriptedPolicy

    console, progress, models = options.console, options.progress, options.models
    console.rule("1 of 4: data")
    dataset = models.dataset(config)
    show_dataset(dataset, console, config.eval.exclude)
    console.rule("2 of 4: the preference-aware recommender (TRM)")
    view = View(dataset, models.trm(config), config, console)
    console.rule(f"3 of 4: one user explored by {config.policy.model}, live")
    policy, task = models.policy(config), pick_task(dataset, config.eval)
    with progress.phase("one live exploration"):
        view.watch(policy, task)
    console.rule("the same user by the scripted explorer")
    view.watch(ScriptedPolicy(config.explore.answer_size), task)
    console.rule("4 of 4: evaluation")
    run_evaluation(options, config, "demo")
    for part, seconds in progress.seconds.items():
        console.print(f"{seconds:7.1f} s  {part}")
    console.print("Next: deeprec serve (explore on a page, or over HTTP)")
