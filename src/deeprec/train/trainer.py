"""The policy's training from end to end: warm start, then each stage from the weights before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from deeprec.config import Config
from deeprec.errors import DeepRecError
from deeprec.policies.transformers import TransformersPolicy
from deeprec.rewards.rubric import Rubric
from deeprec.train.journal import Journal
from deeprec.train.rehearsal import WARM_START, Rehearsal
from deeprec.train.stages import run_stage
from deeprec.train.teacher import Teacher
from deeprec.train.warm_start import warm_start

OnStep = Callable[[str, int, int, Mapping[str, float]], None]
"""Told the stage, the step's number from 1, the stage's steps, and the step's numbers."""


def train(policy: TransformersPolicy, rehearsal: Rehearsal, config: Config, folder: Path, on_step: OnStep) -> Path:
    """Train the policy's model; returns the folder of the last stage's weights.

    Each finished stage leaves `<folder>/<stage>`, an adapter or a whole model. What is there already is not trained
    again, and an unfinished stage goes on from its last checkpoint: the same call after an interruption goes on.

    Raises:
        DeepRecError: a stage has too few tasks, or diverged.
    """
    torch.manual_seed(config.train.seed)
    model = adapted(policy.model, config.train.lora_rank, config.policy.model)
    names = [WARM_START] * (config.train.warm_start.tasks > 0)
    names += [stage.name for stage in config.train.stages if stage.steps > 0]
    if not names:
        raise DeepRecError("There is nothing to train: train.warm_start.tasks and all stages' steps are 0.")
    for name in names:
        done = folder / name
        if done.is_dir():
            load_weights(model, done)
            continue
        if name == WARM_START:
            _warm_start(model, policy, rehearsal, config, folder / "checkpoints" / name, on_step)
        else:
            _stage(name, model, policy, rehearsal, config, folder / "checkpoints" / name, on_step)
        part = done.with_name(f"{name}.part")
        model.save_pretrained(part)
        os.replace(part, done)
    return folder / names[-1]


def _warm_start(
    model: Any, policy: TransformersPolicy, rehearsal: Rehearsal, config: Config, folder: Path, on_step: OnStep
) -> None:
    settings = config.train.warm_start
    teacher = Teacher(
        rehearsal.catalog,
        rehearsal.tasks[WARM_START][: settings.tasks],
        rehearsal.followed,
        policy,
        answer_size=config.explore.answer_size,
        calls=min(settings.calls, config.explore.max_calls),
        seed=config.train.seed,
    )
    examples = [example for _, example in teacher.examples(rehearsal.retriever, config.explore)]
    if not examples:
        raise DeepRecError(
            "No exploration of the warm start is well-formed: explore.segment_tokens or explore.context_tokens may be "
            "too small for an answer."
        )
    steps = -(-len(examples) // settings.batch_size)
    journal = Journal(WARM_START, lambda step, numbers: on_step(WARM_START, step, steps, numbers))
    warm_start(model, examples, config.train, folder, [journal])


def _stage(
    name: str,
    model: Any,
    policy: TransformersPolicy,
    rehearsal: Rehearsal,
    config: Config,
    folder: Path,
    on_step: OnStep,
) -> None:
    stage = next(stage for stage in config.train.stages if stage.name == name)
    trm = rehearsal.retriever
    texts_ID = trm.encoder.encode(rehearsal.catalog.texts())
    rubric = Rubric.build(config.rewards, stage.rewards, trm.encoder.encode, texts_ID, trm.index.vectors_ID)
    journal = Journal(name, lambda step, numbers: on_step(name, step, stage.steps * config.train.updates, numbers))
    run_stage(
        model,
        policy.tokenizer,
        rehearsal,
        stage,
        rubric,
        config.explore,
        config.train,
        folder,
        journal.hear,
        [journal],
    )


def adapted(model: Any, rank: int, name: str) -> Any:
    """The model as it is, or with a fresh LoRA adapter on all linear layers, which calls its base by `name`."""
    if rank == 0:
        return model.requires_grad_(True)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.peft_config["default"].base_model_name_or_path = name  # not where it lies on this machine
    return model


def load_weights(model: Any, folder: Path) -> None:
    """What `save_pretrained` left of an adapter or of a whole model."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())
