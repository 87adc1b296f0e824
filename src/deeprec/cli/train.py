"""`deeprec train`: the language model learns to explore."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.options import Options


def train(
    options: Options,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write each step for TensorBoard too.")] = False,
) -> None:
    """Train the policy: SFT, then reinforcement learning in stages; resumes after an interruption."""
    from deeprec.training.run import train_policy

    config = options.config()
    offline, progress = options.offline, options.progress
    dataset = options.dataset(config)
    folder = train_policy(dataset, config, options.runs, tensorboard=tensorboard, offline=offline, progress=progress)
    kind = "adapter" if config.train.lora_rank else "model"
    settings = f"--config {folder.parent / 'config.toml'} --set policy.{kind}={folder}"
    options.say(f"Trained. Use it as it was trained: deeprec eval {settings}")
