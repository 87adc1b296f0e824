"""Supervised fine-tuning (SFT) on demonstrations, and what the trainers of SFT and of the stages share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from deeprec.config import TrainConfig
from deeprec.training.callback import StageCallback
from deeprec.training.demonstrations import Example
from deeprec.training.processes import main_process_first, world_size
from deeprec.training.time_budget import TimeBudget

_IGNORED = -100  # the label that the loss of transformers leaves out


def sft(model: Any, examples: Sequence[Example], config: TrainConfig, folder: Path, callback: StageCallback) -> None:
    """Train the model in place, in one pass over the examples; continues from a checkpoint in the folder."""
    settings = config.sft
    micro = min(config.micro_batch_size, settings.batch_size)
    trainer = _SFTTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            train_sampling_strategy="sequential",  # the examples' order is random, the same for any number of processes
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=settings.batch_size // micro // world_size(),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,  # share of all steps
            **common_arguments(config, model),
        ),
        train_dataset=list(examples),
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.time_budget = callback.time_budget
    run_trainer(trainer, folder)


class _SFTTrainer(Trainer):
    """Cross-entropy of the learned tokens; the logits of the others are not computed."""

    time_budget: TimeBudget

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Falls to 0 at the end of the steps or of the time, whichever is nearer."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        planned = scheduler.lr_lambdas[0]
        within = [lambda step: min(planned(step), max(0.0, 1 - self.time_budget.share))]
        scheduler.lr_lambdas = within * len(scheduler.base_lrs)
        return scheduler

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels_BT = inputs["labels"]
        positions_N = (labels_BT[:, 1:] != _IGNORED).any(0).nonzero()[:, 0]
        output = model(input_ids=inputs["input_ids"], logits_to_keep=positions_N, use_cache=False)
        wanted_BN = labels_BT[:, positions_N + 1]
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), wanted_BN.flatten(), reduction="sum")
        # The count is of all processes, whose gradients are averaged.
        count = (wanted_BN != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch / world_size()
        return (loss / count, output) if return_outputs else loss / count


def common_arguments(config: TrainConfig, model: Any, updates_per_step: int = 1) -> dict[str, Any]:
    """Arguments of every trainer of the policy, which logs and saves once a step."""
    return {
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "use_cpu": model.device.type == "cpu",
        "bf16": model.dtype == torch.bfloat16 or (model.device.type == "cuda" and torch.cuda.is_bf16_supported()),
        "logging_steps": updates_per_step,
        "logging_nan_inf_filter": False,  # the callback stops the training there
        "save_strategy": "steps",
        "save_steps": updates_per_step,
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }


def run_trainer(trainer: Trainer, folder: Path) -> None:
    """Train, from the last complete checkpoint in the folder where there is one."""
    with main_process_first():
        for path in folder.glob("checkpoint-*"):
            try:  # the state is the last file to be written
                complete = "global_step" in json.loads((path / "trainer_state.json").read_bytes())
            except (OSError, ValueError):
                complete = False
            if not complete:
                shutil.rmtree(path)
    trainer.remove_callback(PrinterCallback)  # ours reports the steps
    # Autocast takes an adapter's float32 weights to bfloat16; peft would take its inputs to float32, which is slower.
    model: Any = trainer.model
    with disable_input_dtype_casting(model, active=trainer.args.bf16):
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Rows (B, T), padded on the right. Attention is causal, so padding changes nothing before it: no mask."""
    tokens_BT = pad_sequence([torch.tensor(example.tokens) for example in examples], batch_first=True)
    learned_BT = pad_sequence([torch.tensor(example.learned) for example in examples], batch_first=True)
    return {"input_ids": tokens_BT, "labels": tokens_BT.masked_fill(~learned_BT, _IGNORED)}
