"""The policy's training from end to end: SFT, then each stage from the weights before it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from deeprec.config import Config, StageConfig, TrainConfig
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore.environment import Environment
from deeprec.explore.settings import resolve_defaults
from deeprec.policies.adapters import adapter_folder, write_prompt_defaults
from deeprec.policies.tokenizer import explain_errors
from deeprec.policies.transformers import TransformersPolicy
from deeprec.rewards.rubric import Rubric
from deeprec.runs import explaining_full_disk
from deeprec.training.callback import OnStep, StageCallback
from deeprec.training.demonstrations import Example, demonstrations_of
from deeprec.training.processes import main_process_first, require_equal_shares
from deeprec.training.rollout import Rollout
from deeprec.training.sampling import Sampler, in_process
from deeprec.training.schedule import SFT, active
from deeprec.training.sft import sft
from deeprec.training.stages import run_stage
from deeprec.training.task_sets import TaskSets
from deeprec.training.time_budget import TimeBudget


def train(
    policy: TransformersPolicy,
    task_sets: TaskSets,
    config: Config,
    folder: Path,
    on_step: OnStep,
    sampler: Sampler = in_process,
    extra_datasets: Sequence[TaskSets] = (),
) -> Path:
    """Train the policy's model; returns the folder of the last part's weights.

    Each finished part leaves `<folder>/<part>`, an adapter or a whole model. Parts that are there already are not
    trained again, and an unfinished one continues from its last checkpoint: after an interruption, call this again.
    Within `train.minutes` each part ends when its time is up; one that has no time left changes nothing.

    The sampler explores in the stages. The `extra_datasets` share the demonstrations of SFT equally with `task_sets`.
    DeepRecError if a part has too few tasks, or diverged, or the disk is full.
    """
    names = active(config.train)
    if not names:
        raise DeepRecError("There is nothing to train: train.sft.demonstrations and all stages' steps are 0.")
    require_equal_shares(config.train)
    all_task_sets = [_fitting(each, policy, config) for each in (task_sets, *extra_datasets)]
    task_sets = all_task_sets[0]
    stages = {stage.name: stage for stage in config.train.stages if stage.name in names}
    rubrics = rubrics_of(stages, task_sets, config)
    for name in stages:
        if (found := len(task_sets.tasks[name])) < (needed := config.train.tasks_per_step):
            fault = f"Stage {name!r} has {found} tasks, and a step takes {needed}"
            raise DeepRecError(f"{fault}: raise its share, or lower train.tasks_per_step.")
    planned = _planned_explorations(all_task_sets, config.train)
    time_budget = TimeBudget(folder, planned, config.train.minutes)
    torch.manual_seed(config.train.seed)
    model = adapted(policy.model, config.train.lora_rank)
    if config.train.adapter is not None:
        _continue_from_adapter(model, config)
    for name in names:
        if (done := folder / name).is_dir():
            load_weights(model, done)
            continue
        checkpoints, callback = folder / "checkpoints" / name, StageCallback(name, on_step, time_budget)
        with explaining_full_disk(folder):
            if name == SFT:
                time_budget.begin(SFT, -(-planned[SFT] // config.train.sft.batch_size))
                examples = _examples(all_task_sets, policy, config)
                sft(model, examples, config.train, checkpoints, callback)
            elif time_budget.begin(name, stages[name].steps):
                tasks = task_sets.tasks[name]
                rollout = Rollout(task_sets, tasks, rubrics[name], config, callback.on_rollout, sampler)
                run_stage(model, policy.tokenizer, stages[name], rollout, checkpoints, callback)
            with main_process_first() as main:
                if main:
                    _save(model, policy, config, done)
                    shutil.rmtree(checkpoints, ignore_errors=True)
    return folder / names[-1]


def _planned_explorations(all_task_sets: Sequence[TaskSets], config: TrainConfig) -> dict[str, int]:
    planned = {stage.name: stage.steps * config.tasks_per_step * config.group_size for stage in config.stages}
    share = config.sft.demonstrations // len(all_task_sets)
    planned[SFT] = max(1, sum(min(share, len(each.tasks[SFT])) for each in all_task_sets))
    return {name: planned[name] for name in active(config)}


def rubrics_of(stages: Mapping[str, StageConfig], task_sets: TaskSets, config: Config) -> dict[str, Rubric]:
    encode, vectors_ID = task_sets.retriever.encoder.encode, task_sets.retriever.index.vectors_ID
    texts_ID = encode(task_sets.catalog.texts())
    return {name: Rubric.build(stage.rewards, encode, texts_ID, vectors_ID) for name, stage in stages.items()}


def adapted(model: Any, rank: int) -> Any:
    """The model with a LoRA adapter on all linear layers; for rank 0 all of it is trained."""
    if rank == 0:
        return model.float().requires_grad_(True)  # bfloat16 loses small steps
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def load_weights(model: Any, folder: Path) -> None:
    """Load what `save_pretrained` wrote of an adapter or of a whole model."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())


def _fitting(task_sets: TaskSets, policy: TransformersPolicy, config: Config) -> TaskSets:
    """Without the tasks whose prompt leaves no room for a segment."""
    explore = resolve_defaults(config.explore, policy.prompt_defaults, task_sets.retriever, task_sets.catalog)

    def fits(task: Task) -> bool:
        prompt = Environment(task, task_sets.catalog, explore).prompt()
        return len(policy.encode(prompt, first=True)) + explore.segment_tokens <= explore.context_tokens

    return replace(task_sets, tasks={name: list(filter(fits, tasks)) for name, tasks in task_sets.tasks.items()})


def _examples(all_task_sets: Sequence[TaskSets], policy: TransformersPolicy, config: Config) -> list[Example]:
    """Demonstrations in equal shares from all task sets, mixed."""
    share = config.train.sft.demonstrations // len(all_task_sets)
    examples = [example for each in all_task_sets for example in demonstrations_of(each, policy, config, share)]
    if len(all_task_sets) > 1:
        random.Random(config.train.seed).shuffle(examples)
    return examples


def _continue_from_adapter(model: Any, config: Config) -> None:
    named, rank = f"train.adapter={config.train.adapter!r}", config.train.lora_rank
    folder = adapter_folder(config.policy.model_copy(update={"adapter": config.train.adapter}))
    if folder is None and config.train.adapter == "shipped":
        return
    if folder is None or not isinstance(model, PeftModel):
        raise DeepRecError(f"{named} needs a train.lora_rank, and an adapter of {config.policy.model}.")
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("r") != rank:
        raise DeepRecError(f"{named} has rank {settings.get('r')}: set train.lora_rank to it.")
    with explain_errors(f"{named} does not fit {config.policy.model}"):
        # peft loads the weights that fit and ignores the rest.
        if set(load_file(folder / "adapter_model.safetensors")) != set(get_peft_model_state_dict(model)):
            raise ValueError("it is of other layers")
        if settings.get("lora_alpha") != 2 * rank:
            raise ValueError(f"its lora_alpha is not twice its rank but {settings.get('lora_alpha')}")
        load_weights(model, folder)


def _save(model: Any, policy: TransformersPolicy, config: Config, done: Path) -> None:
    """Save the weights atomically. The base model's name replaces its path on this machine, which peft writes."""
    part = done.with_name(f"{done.name}.part")
    model.save_pretrained(part)
    if isinstance(model, PeftModel):
        (part / "README.md").unlink(missing_ok=True)
        write_prompt_defaults(part, config.explore)
        path = part / "adapter_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": config.policy.model}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    else:
        policy.tokenizer.save_pretrained(part)
    os.replace(part, done)
