"""The policy's training from end to end: warm start, then each stage from the weights before it."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
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
from deeprec.policies.tokenizer import brief
from deeprec.policies.transformers import TransformersPolicy
from deeprec.rewards.rubric import Rubric
from deeprec.runs import explaining_full_disk
from deeprec.training.callback import StageCallback
from deeprec.training.demonstrations import DemonstrationPolicy, Example
from deeprec.training.processes import main_process_first, require_equal_shares
from deeprec.training.sampling import Sampler, in_process
from deeprec.training.schedule import SFT, active, shares
from deeprec.training.sft import sft
from deeprec.training.stages import run_stage
from deeprec.training.task_sets import TaskSets, require_free_answers
from deeprec.training.time_budget import TimeBudget

_OF_STAGES = (
    *("tasks_per_step", "group_size", "updates_per_step", "temperature"),
    "negative_advantage_weight",
)
"""Keys that the warm start does not read."""

OnStep = Callable[[str, int, int, Mapping[str, float]], None]
"""Told the stage, the step's number from 1, the stage's steps (within a time, how many are expected), and the step's
numbers."""


def train(
    policy: TransformersPolicy,
    task_sets: TaskSets,
    config: Config,
    folder: Path,
    on_step: OnStep,
    sampler: Sampler = in_process,
    extra_datasets: Sequence[TaskSets] = (),
) -> Path:
    """Train the policy's model; returns the folder of the last stage's weights. `sampler` explores in the stages, and
    the warm start's lessons are shared among `rehearsal` and those `beside` it.

    Each finished stage leaves `<folder>/<stage>`, an adapter or a whole model. What is there already is not trained
    again, and an unfinished stage goes on from its last checkpoint: the same call after an interruption goes on.
    Within `train.minutes` each part ends when its time is up, and one for which none is left changes nothing.

    Raises:
        DeepRecError: a stage has too few tasks, or diverged; answers are not free; or the disk is full.
    """
    names = active(config.train)
    if not names:
        raise DeepRecError("There is nothing to train: train.sft.demonstrations and all stages' steps are 0.")
    require_equal_shares(config.train)
    require_free_answers(config.explore)
    task_sets, *extra_datasets = (_with_room(each, policy, config) for each in (task_sets, *extra_datasets))
    stages = {stage.name: stage for stage in config.train.stages if stage.name in names}
    rubrics = rubrics_of(stages, task_sets, config)
    for name in stages:
        if len(task_sets.tasks[name]) < config.train.tasks_per_step:
            raise DeepRecError(
                f"Stage {name!r} has {len(task_sets.tasks[name])} tasks, and a step takes "
                f"{config.train.tasks_per_step}: raise its share, or lower train.tasks_per_step."
            )
    time_budget = TimeBudget(folder, planned([task_sets, *extra_datasets], config.train), config.train.minutes)
    torch.manual_seed(config.train.seed)
    model = adapted(policy.model, config.train.lora_rank)
    if config.train.adapter is not None:
        _go_on_from(model, config)
    for name in names:
        done = folder / name
        if done.is_dir():
            load_weights(model, done)
            continue
        checkpoints = folder / "checkpoints" / name
        with explaining_full_disk(folder):
            if name == SFT:
                _sft(model, policy, [task_sets, *extra_datasets], config, checkpoints, on_step, time_budget)
            else:
                rubric = rubrics[name]
                _stage(
                    stages[name], model, policy, task_sets, rubric, config, checkpoints, on_step, sampler, time_budget
                )
            with main_process_first() as first:
                if first:
                    _save(model, policy, config, done)
                    shutil.rmtree(checkpoints, ignore_errors=True)
    return folder / names[-1]


def first_parts(config: TrainConfig, other: TrainConfig) -> list[str]:
    """The parts that come out alike in both trainings: those before the first difference, if the users are shared
    out alike and all that the parts have in common is the same. None do within a time."""

    def with_others(*names: str) -> TrainConfig:
        return config.model_copy(update={name: getattr(other, name) for name in names})

    if config.minutes is not None or shares(config) != shares(other) or with_others("stages", *_OF_STAGES) != other:
        return []
    names = [SFT]
    if with_others("stages") == other:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(config.stages, other.stages, strict=False))
        names += [stage.name for stage, _ in alike]
    return [name for name in names if name in active(config)]


def planned(all_task_sets: Sequence[TaskSets], config: TrainConfig) -> dict[str, int]:
    """Explorations of each part: lessons of the warm start, samples of the stages."""
    found = {stage.name: stage.steps * config.tasks_per_step * config.group_size for stage in config.stages}
    share = config.sft.demonstrations // len(all_task_sets)
    found[SFT] = max(1, sum(min(share, len(each.tasks[SFT])) for each in all_task_sets))
    return {name: found[name] for name in active(config)}


def _go_on_from(model: Any, config: Config) -> None:
    named = repr(config.train.adapter)
    folder = adapter_folder(config.policy.model_copy(update={"adapter": config.train.adapter}))
    if folder is None and config.train.adapter == "shipped":
        return
    if folder is None or not isinstance(model, PeftModel):
        raise DeepRecError(f"train.adapter={named} needs a train.lora_rank, and an adapter of {config.policy.model}.")
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("r") != config.train.lora_rank:
        raise DeepRecError(f"train.adapter={named} has rank {settings.get('r')}: set train.lora_rank to it.")
    try:
        # peft takes what has a place and passes over the rest.
        if set(load_file(folder / "adapter_model.safetensors")) != set(get_peft_model_state_dict(model)):
            raise ValueError("it is of other layers")
        if settings.get("lora_alpha") != 2 * config.train.lora_rank:
            raise ValueError(f"its lora_alpha is not twice its rank but {settings.get('lora_alpha')}")
        load_weights(model, folder)
    except Exception as error:  # noqa: BLE001 (whatever foreign or damaged files make the loaders raise)
        raise DeepRecError(f"train.adapter={named} does not fit {config.policy.model}: {brief(error)}") from None


def _save(model: Any, policy: TransformersPolicy, config: Config, done: Path) -> None:
    """In one step. What peft notes of where the base model lies on this machine gives way to its name."""
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


def _with_room(task_sets: TaskSets, policy: TransformersPolicy, config: Config) -> TaskSets:
    """Without the tasks whose prompt leaves no room for a segment."""
    explore = resolve_defaults(config.explore, policy.prompt_defaults, task_sets.retriever, task_sets.catalog)

    def fits(task: Task) -> bool:
        prompt = Environment(task, task_sets.catalog, explore).prompt()
        return len(policy.encode(prompt, first=True)) + explore.segment_tokens <= explore.context_tokens

    return replace(task_sets, tasks={name: list(filter(fits, tasks)) for name, tasks in task_sets.tasks.items()})


def rubrics_of(stages: Mapping[str, StageConfig], task_sets: TaskSets, config: Config) -> dict[str, Rubric]:
    trm = task_sets.retriever
    texts_ID = trm.encoder.encode(task_sets.catalog.texts())
    return {
        name: Rubric.build(stage.rewards, trm.encoder.encode, texts_ID, trm.index.vectors_ID)
        for name, stage in stages.items()
    }


def _sft(
    model: Any,
    policy: TransformersPolicy,
    all_task_sets: Sequence[TaskSets],
    config: Config,
    folder: Path,
    on_step: OnStep,
    time_budget: TimeBudget,
) -> None:
    settings = config.train.sft
    time_budget.begin(SFT, -(-time_budget.planned[SFT] // settings.batch_size))
    examples = [
        example for each in all_task_sets for example in _demonstrations(each, policy, config, len(all_task_sets))
    ]
    if len(all_task_sets) > 1:
        random.Random(config.train.seed).shuffle(examples)
    steps = -(-len(examples) // settings.batch_size)
    callback = _callback(SFT, steps, on_step, time_budget)
    sft(model, examples, config.train, folder, callback)


def _demonstrations(task_sets: TaskSets, policy: TransformersPolicy, config: Config, sets: int) -> list[Example]:
    """One set's share of the lessons."""
    demonstrator = DemonstrationPolicy(
        task_sets.catalog,
        task_sets.tasks[SFT][: config.train.sft.demonstrations // sets],
        task_sets.followed,
        policy,
        config.explore,
        seed=config.train.seed,
    )
    examples = [example for _, example in demonstrator.examples(task_sets.retriever)]
    if not examples:
        fault = next((fault for fault, _ in demonstrator.faults.most_common(1)), "no task")
        raise DeepRecError(
            f"No exploration of the warm start is well-formed (commonest: {fault}). Look at explore.context_tokens and "
            "segment_tokens, and at sft.share."
        )
    return examples


def _stage(
    stage: StageConfig,
    model: Any,
    policy: TransformersPolicy,
    task_sets: TaskSets,
    rubric: Rubric,
    config: Config,
    folder: Path,
    on_step: OnStep,
    sampler: Sampler,
    time_budget: TimeBudget,
) -> None:
    if not time_budget.begin(stage.name, stage.steps):
        return
    callback = _callback(stage.name, stage.steps, on_step, time_budget)
    run_stage(
        model, policy.tokenizer, task_sets, stage, rubric, config.explore, config.train, folder, callback, sampler
    )


def _callback(part: str, steps: int, on_step: OnStep, time_budget: TimeBudget) -> StageCallback:
    return StageCallback(
        part, lambda step, numbers: on_step(part, step, time_budget.reachable(step, steps), numbers), time_budget
    )


def adapted(model: Any, rank: int) -> Any:
    """The model with a LoRA adapter on all linear layers, or all of it in float32, for bfloat16 loses small steps."""
    if rank == 0:
        return model.float().requires_grad_(True)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def load_weights(model: Any, folder: Path) -> None:
    """What `save_pretrained` left of an adapter or of a whole model."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())
