"""Supervised learning of the teacher's explorations."""

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
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from deeprec.config import TrainConfig
from deeprec.training.callback import StageCallback
from deeprec.training.demonstrations import Example
from deeprec.training.processes import main_process_first, world_size
from deeprec.training.time_budget import TimeBudget

GRAD_NORM = 1.0
"""Longer gradients are shortened to it."""
_IGNORED = -100  # what the loss of transformers leaves out


def sft(
    model: Any,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    callback: StageCallback,
) -> None:
    """One pass over the examples; the model is changed in place. A folder that holds a checkpoint is gone on from."""
    settings = config.sft
    rows = min(config.micro_batch_size, settings.batch_size)
    trainer = _Imitation(
        model,
        TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            train_sampling_strategy="sequential",  # the tasks' order is random, and one for any number of processes
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=settings.batch_size // rows // world_size(),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,  # of all
            max_grad_norm=GRAD_NORM,
            **common_arguments(config, model),
        ),
        train_dataset=list(examples),
        data_collator=collate,
        callbacks=[callback],
    )
    trainer.time_budget = callback.time_budget
    run_trainer(trainer, folder)


class _Imitation(Trainer):
    """Cross-entropy of the learned tokens; the logits of the others are not computed."""

    time_budget: TimeBudget | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Towards 0 at the end of the steps or of the time, whichever is nearer."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        planned = scheduler.lr_lambdas[0]
        if (time_budget := self.time_budget) is not None:
            scheduler.lr_lambdas = [lambda step: min(planned(step), max(0.0, 1 - time_budget.share))] * len(
                scheduler.base_lrs
            )
        return scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels_BT = inputs["labels"]
        positions_N = (labels_BT[:, 1:] != _IGNORED).any(0).nonzero()[:, 0]
        output = model(input_ids=inputs["input_ids"], logits_to_keep=positions_N, use_cache=False)
        wanted_BN = labels_BT[:, positions_N + 1]
        loss = F.cross_entropy(output.logits.flatten(0, 1).float(), wanted_BN.flatten(), reduction="sum")
        # Counted over all processes, whose gradients are averaged.
        count = (wanted_BN != _IGNORED).sum() if num_items_in_batch is None else num_items_in_batch / world_size()
        return (loss / count, output) if return_outputs else loss / count


def common_arguments(config: TrainConfig, model: Any) -> dict[str, Any]:
    """Arguments that every trainer of the policy gets."""
    return {
        "adam_beta2": 0.95,
        "use_cpu": model.device.type == "cpu",
        "bf16": model.dtype == torch.bfloat16 or (model.device.type == "cuda" and torch.cuda.is_bf16_supported()),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the journal stops there
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }


def run_trainer(trainer: Trainer, folder: Path) -> None:
    """Train, from the last whole checkpoint in the folder where there is one."""
    with main_process_first():
        for path in folder.glob("checkpoint-*"):
            if not _whole(path):
                shutil.rmtree(path)
    trainer.remove_callback(PrinterCallback)  # the journal tells of the steps
    # Autocast takes an adapter's float32 weights to bfloat16; peft would take its inputs to float32, which is slower.
    model: Any = trainer.model
    with disable_input_dtype_casting(model, active=trainer.args.bf16):
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def _whole(checkpoint: Path) -> bool:
    """Whether it was written to its end: its state is the last file."""
    try:
        return "global_step" in json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Rows (B, T) filled up on the right: later places change nothing before them, so no mask is needed."""
    length = max(len(example.tokens) for example in examples)
    tokens_BT = torch.zeros((len(examples), length), dtype=torch.long)
    labels_BT = torch.full_like(tokens_BT, _IGNORED)
    for row, example in enumerate(examples):
        tokens_T = torch.tensor(example.tokens)
        tokens_BT[row, : len(tokens_T)] = tokens_T
        labels_BT[row, : len(tokens_T)] = tokens_T.masked_fill(~torch.tensor(example.learned), _IGNORED)
    return {"input_ids": tokens_BT, "labels": labels_BT}
