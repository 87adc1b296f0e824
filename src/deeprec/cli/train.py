"""`deeprec train`: the language model learns to explore."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.options import Options


def train(
    options: Options,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write each step for TensorBoard too.")] = False,
) -> None:
    """Train the policy: SFT, then reinforcement learning in stages; goes on where it was interrupted."""
    from deeprec.data.sources import load_dataset
    from deeprec.training.run import train_policy

    config = options.config()
    dataset = load_dataset(config.data, offline=options.offline)
    folder = train_policy(
        dataset, config, options.runs, tensorboard=tensorboard, offline=options.offline, progress=options.progress
    )
    kind = "adapter" if config.train.lora_rank else "model"
    settings = f"--config {folder.parent / 'config.toml'} --set policy.{kind}={folder}"
    options.say(f"Trained. Use it as it was trained: deeprec eval {settings}")
