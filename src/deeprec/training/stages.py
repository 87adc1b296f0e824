"""A stage of reinforcement learning: REINFORCE++ with a group baseline, by TRL's GRPOTrainer.

The advantage is the reward minus its group's mean, divided by the batch's standard deviation. The probability ratio is
clipped to [1 - CLIP_LOW, 1 + CLIP_HIGH]. The loss is the mean over the policy's own tokens, without a KL term. With few
explorations, negative advantages are mostly noise: `negative_advantage_weight` scales them down, at 0 to imitating the
better explorations only (as RAFT++, Xiong et al., arXiv 2504.11343).
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

from deeprec.config import StageConfig, TrainConfig
from deeprec.rewards.rubric import Rubric
from deeprec.training.callback import StageCallback
from deeprec.training.processes import world_size
from deeprec.training.rollout import Rollout, reward_functions
from deeprec.training.sft import common_arguments, run_trainer

CLIP_LOW, CLIP_HIGH = 0.2, 0.28


def run_stage(
    model: Any, tokenizer: Any, stage: StageConfig, rollout: Rollout, folder: Path, callback: StageCallback
) -> None:
    """Train the model in place, with a fresh optimiser; continues from a checkpoint in the folder."""
    train = rollout.config.train
    trainer = OwnTokensTrainer(
        model,
        reward_functions(rollout.rubric),
        arguments(stage, rollout.rubric, train, folder, model),
        train_dataset=Table.from_dict({"prompt": order_of([task.id for task in rollout.tasks], stage, train)}),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[callback],
    )
    trainer.negative_advantage_weight = train.negative_advantage_weight
    trainer.warmup = stage.warmup * train.updates_per_step
    run_trainer(trainer, folder)


class OwnTokensTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """Computes the logits of the policy's own tokens alone, and weights negative advantages.

    TRL also computes those of the environment's tokens and, off CUDA, of the prompt: nearly half of the learning time
    on a processor. On CUDA its kernel makes them cheap, and is used.
    """

    _own_BC: Tensor | None = None
    negative_advantage_weight = 1.0
    # Steps in which the learning rate rises. The first of transformers' own has rate 0 and would waste explorations.
    warmup = 0

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: min(1.0, (step + 1) / (self.warmup + 1)))
        return self.lr_scheduler

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        advantages_B = scored["advantages"]
        weighted_B = self.negative_advantage_weight * advantages_B
        scored["advantages"] = torch.where(advantages_B < 0, weighted_B, advantages_B)
        return scored

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs = trimmed(inputs)
        self._own_BC = inputs["completion_mask"] * inputs["tool_mask"]
        if (old_BC := inputs.get("old_per_token_logps")) is not None:  # 0 elsewhere, as the new ones: no ratio there
            inputs = inputs | {"old_per_token_logps": old_BC * self._own_BC}
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._own_BC = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logprobs and entropies (B, C) of the last `logits_to_keep` tokens; 0 where no row is the policy's."""
        if self._own_BC is None or input_ids.is_cuda or self.aux_loss_enabled:
            whole = super()._get_per_token_logps_and_entropies
            return whole(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
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
    """The batch without columns before the first token of any row and after the policy's last.

    TRL pads every pass to the step's longest exploration. A row on its own then needs no mask, and attends faster.
    """
    own_C = (batch["completion_mask"] * batch["tool_mask"]).any(0)
    start = int(batch["prompt_mask"].any(0).int().argmax())
    end = max([0, *own_C.nonzero()[:, 0].tolist()]) + 1
    prompt = {name: batch[name][:, start:] for name in ("prompt_ids", "prompt_mask")}
    wide = {name for name, value in batch.items() if isinstance(value, Tensor) and value.shape[1:] == own_C.shape}
    return batch | {name: batch[name][:, :end] for name in wide} | prompt


def order_of(tasks: Sequence[str], stage: StageConfig, config: TrainConfig) -> list[str]:
    """The tasks of all steps, one after another: every task once, then all again in another order, and so on.

    To the trainer, all steps are one pass: after an interruption it could not repeat how it had shuffled a second.
    """
    rng, wanted = np.random.default_rng(config.seed), stage.steps * config.tasks_per_step
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
        temperature=config.temperature,  # of the trainer's logprobs, as of the explorations
        beta=0.0,
        epsilon=CLIP_LOW,
        epsilon_high=CLIP_HIGH,
        scale_rewards=stage.advantage_normalisation,
        loss_type="dapo",
        reward_weights=list(rubric.weights.values()),
        learning_rate=stage.learning_rate,
        gradient_checkpointing=model.device.type == "cuda",
        shuffle_dataset=False,
        # Checkpoints only between steps: one between a step's updates would explore anew for the others, and report the
        # explorations twice.
        **common_arguments(config, model, config.updates_per_step),
    )
