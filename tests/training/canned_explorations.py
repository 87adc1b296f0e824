"""Two steps of a stage on canned explorations, as one of several processes; writes advantages, losses and weights."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Table

from deeprec.config import StageConfig, TrainConfig
from deeprec.rewards.rubric import Rubric
from deeprec.training.sft import run_trainer
from deeprec.training.stages import OwnTokensTrainer, arguments
from deeprec.training.trainer import adapted
from tiny_models import bytes_tokenizer, tiny


class RecordingTrainer(OwnTokensTrainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.advantages: list[list[float]] = []

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        self.advantages.append(batch["advantages"].tolist())
        return batch


def explorations(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """The n-th exploration of a prompt is always the same."""
    found: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": [], "pay": []}
    for position, prompt in enumerate(prompts):
        text = f"{prompt}, sample {position % 2}: " + "x" * (7 * int(prompt) + position % 2)
        tokens = bytes_tokenizer().encode(text)
        found["prompt_ids"].append(bytes_tokenizer().encode(f"User {prompt}"))
        found["completion_ids"].append(tokens)
        found["logprobs"].append([-1.0] * len(tokens))
        found["env_mask"].append([int(n % 3 > 0) for n in range(len(tokens))])
        found["pay"].append(((3 * int(prompt) + position % 2) ** 2) % 7)
    return found


def pay(pay: list[float], **_: Any) -> list[float]:
    return pay


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(tasks_per_step=2, group_size=2, micro_batch_size=1, lora_rank=4)
    stage = StageConfig(name="one", share=0.2, steps=2, learning_rate=1e-2, rewards={"pay": 1.0})
    torch.manual_seed(0)
    model = adapted(copy.deepcopy(tiny(bytes_tokenizer())), config.lora_rank)
    trainer = RecordingTrainer(
        model,
        [pay],
        arguments(stage, Rubric({"pay": lambda trace, _: 0.0}, {"pay": 1.0}), config, folder / "checkpoints", model),
        train_dataset=Table.from_dict({"prompt": ["1", "2", "3", "4"]}),
        processing_class=bytes_tokenizer(),
        rollout_func=explorations,
    )
    run_trainer(trainer, folder / "checkpoints")
    results = {
        "advantages": trainer.advantages,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "weights": [float(weight.sum()) for weight in model.parameters() if weight.requires_grad],
    }
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
