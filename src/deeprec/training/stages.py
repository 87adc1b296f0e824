"""A stage of reinforcement learning: REINFORCE++ with a group baseline, by TRL's GRPOTrainer.

The advantage is the reward less the mean of its group, divided by the deviation of the batch; the ratio of
probabilities is clipped to [1 - CLIP_LOW, 1 + CLIP_HIGH]; the loss is the mean over the policy's own tokens; no KL.
Of few explorations, what is pushed away is mostly noise: `negative` makes less of it, down to imitating the better ones
alone (as RAFT++, Xiong et al., arXiv 2504.11343).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Table
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from trl import GRPOConfig, GRPOTrainer

from deeprec.config import ExploreConfig, StageConfig, TrainConfig
from deeprec.rewards.rubric import Rubric
from deeprec.training.callback import StageCallback
from deeprec.training.processes import world_size
from deeprec.training.rollout import Rollout, reward_functions
from deeprec.training.sampling import Sampler
from deeprec.training.sft import GRAD_NORM, common_arguments, run_trainer
from deeprec.training.task_sets import TaskSets

CLIP_LOW, CLIP_HIGH = 0.2, 0.28


def run_stage(
    model: Any,
    tokenizer: Any,
    task_sets: TaskSets,
    stage: StageConfig,
    rubric: Rubric,
    explore: ExploreConfig,
    config: TrainConfig,
    folder: Path,
    callback: StageCallback,
    sampler: Sampler,
) -> None:
    """Train the model in place, with a fresh optimiser; a folder that holds a checkpoint is gone on from."""
    tasks = task_sets.tasks[stage.name]
    trainer = OwnTokensTrainer(
        model,
        reward_functions(rubric),
        arguments(stage, rubric, config, folder, model),
        train_dataset=Table.from_dict({"prompt": order_of([task.id for task in tasks], stage, config)}),
        processing_class=tokenizer,
        rollout_func=Rollout(task_sets, tasks, rubric, explore, config, callback.hear, sampler),
        callbacks=[callback],
    )
    trainer.negative_advantage_weight, trainer.warmup = (
        config.negative_advantage_weight,
        stage.warmup * config.updates_per_step,
    )
    run_trainer(trainer, folder)


class OwnTokensTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """Computes the logits of the policy's own tokens alone, and weighs what was worse than its group's mean.

    TRL computes those of the completion with what the environment wrote in it and, off CUDA, of the prompt too: nearly
    half of the time of learning on a processor. On CUDA its kernel makes light of it, and is used.
    """

    _own_BC: Tensor | None = None
    negative_advantage_weight = 1.0
    """Weight of negative advantages."""
    warmup = 0
    """Optimiser steps in which the learning rate rises. Those of transformers begin at 0: explorations for nothing."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: min(1.0, (step + 1) / (self.warmup + 1)))
        return self.lr_scheduler

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        advantages_B = scored["advantages"]
        scored["advantages"] = torch.where(
            advantages_B < 0, self.negative_advantage_weight * advantages_B, advantages_B
        )
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs = trimmed(inputs)
        self._own_BC = inputs["completion_mask"] * inputs["tool_mask"]
        if (old_BC := inputs.get("old_per_token_logps")) is not None:  # no ratio where nothing is scored anew
            inputs = inputs | {"old_per_token_logps": old_BC * self._own_BC}
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._own_BC = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of the last `logits_to_keep` (C) tokens, both (B, C); zero where no row is the policy's."""
        if self._own_BC is None or input_ids.is_cuda or self.aux_loss_enabled:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        positions_N = self._own_BC.any(0).nonzero()[:, 0]
        wanted_N = positions_N + input_ids.shape[1] - logits_to_keep
        with self.accelerator.autocast():
            output = model(input_ids, attention_mask=attention_mask, logits_to_keep=wanted_N - 1, use_cache=False)
        logprobs_BNV = (output.logits.float() / self.temperature).log_softmax(-1)
        picked_BN = logprobs_BNV.gather(-1, input_ids[:, wanted_N, None])[..., 0]
        with torch.no_grad():
            entropies_BN = -(logprobs_BNV.exp() * logprobs_BNV).sum(-1)
        zeros_BC = picked_BN.new_zeros(self._own_BC.shape)
        logps_BC, entropies_BC = (zeros_BC.index_copy(1, positions_N, each) for each in (picked_BN, entropies_BN))
        return logps_BC, entropies_BC, None


def trimmed(batch: dict[str, Any]) -> dict[str, Any]:
    """Without the columns before the first token of any row and after the last of the policy's own.

    TRL pads all passes to the longest exploration of the step. A single row then needs no mask, and attends faster.
    """
    own_C = (batch["completion_mask"] * batch["tool_mask"]).any(0)
    start = int(batch["prompt_mask"].any(0).int().argmax())
    end = max([0, *own_C.nonzero()[:, 0].tolist()]) + 1
    width = len(own_C)

    def cut(name: str, value: Any) -> Any:
        if name in ("prompt_ids", "prompt_mask"):
            return value[:, start:]
        return value[:, :end] if isinstance(value, Tensor) and value.shape[1:] == (width,) else value

    return {name: cut(name, value) for name, value in batch.items()}


def order_of(tasks: Sequence[str], stage: StageConfig, config: TrainConfig) -> list[str]:
    """The tasks of all steps, one after another: every task once, then all again in another order, and so on.

    All steps are one pass for the trainer, which would not know after an interruption how it had shuffled a second.
    """
    rng = np.random.default_rng(config.seed)
    wanted = stage.steps * config.tasks_per_step
    passes = -(-wanted // len(tasks))
    return [tasks[position] for _ in range(passes) for position in rng.permutation(len(tasks))][:wanted]


def arguments(stage: StageConfig, rubric: Rubric, config: TrainConfig, folder: Path, model: Any) -> GRPOConfig:
    """The stage as TRL's configuration."""
    explorations = config.tasks_per_step * config.group_size
    passes = explorations // config.micro_batch_size // world_size()
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=stage.steps * config.updates_per_step,
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=passes // config.updates_per_step,
        steps_per_generation=passes,
        num_generations=config.group_size,
        temperature=config.temperature,  # of the trainer's logprobs, as of the samples
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        scale_rewards=stage.advantage_normalisation,
        loss_type="dapo",
        reward_weights=list(rubric.weights.values()),
        learning_rate=stage.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=GRAD_NORM,
        gradient_checkpointing=model.device.type == "cuda",
        shuffle_dataset=False,
        # Only between steps: a checkpoint between the updates of one step would explore anew for the rest of it, and
        # its explorations would be told of twice.
        **common_arguments(config, model)
        | {"save_steps": config.updates_per_step, "logging_steps": config.updates_per_step},
    )
