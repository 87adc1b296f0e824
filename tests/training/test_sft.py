"""SFT: only learned tokens count, all equally, however examples are batched."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import SFTConfig, TrainConfig
from deeprec.training.callback import StageCallback
from deeprec.training.demonstrations import Example
from deeprec.training.sft import collate, sft
from deeprec.training.time_budget import TimeBudget
from tiny_models import bytes_tokenizer, tiny


def examples(n: int = 4) -> list[Example]:
    rng = torch.Generator().manual_seed(0)
    lengths = [9, 14, 6, 11][:n]
    return [
        Example(
            tuple(torch.randint(0, 200, (length,), generator=rng).tolist()),
            (False, *(torch.rand(length - 1, generator=rng) < 0.5).tolist()),
        )
        for length in lengths
    ]


def config_of(micro_batch_size: int, **more: Any) -> TrainConfig:
    return TrainConfig(micro_batch_size=micro_batch_size, sft=SFTConfig(batch_size=4, learning_rate=1e-3, **more))


def first_loss(micro_batch_size: int, folder: Path) -> tuple[float, Any]:
    losses: list[float] = []
    model = copy.deepcopy(tiny(bytes_tokenizer())).requires_grad_(True)
    time_budget = TimeBudget(folder.parent, {"sft": 1}, None)
    time_budget.begin("sft", 1)
    callback = StageCallback("sft", lambda part, step, steps, metrics: losses.append(metrics["loss"]), time_budget)
    sft(model, examples(), config_of(micro_batch_size), folder, callback)
    return losses[0], model


def test_the_loss_is_the_mean_over_the_learned_tokens(tmp_path: Path) -> None:
    model, total, count = tiny(bytes_tokenizer()), 0.0, 0
    for example in examples():
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([example.tokens])).logits[0].log_softmax(-1)
        for position in range(1, len(example.tokens)):
            if example.learned[position]:
                total -= float(logprobs_TV[position - 1, example.tokens[position]])
                count += 1
    assert first_loss(4, tmp_path)[0] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_the_micro_batch_size_changes_nothing(tmp_path: Path, micro_batch_size: int) -> None:
    (loss, model), (expected, whole) = first_loss(micro_batch_size, tmp_path / "a"), first_loss(4, tmp_path / "b")
    assert loss == pytest.approx(expected, rel=1e-4)
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-3)


def test_padding_is_not_learned() -> None:
    batch = collate(examples())
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 14)
    for row, example in enumerate(examples()):
        length = len(example.tokens)
        assert batch["input_ids"][row, :length].tolist() == list(example.tokens)
        labels = [token if own else -100 for token, own in zip(example.tokens, example.learned, strict=True)]
        assert batch["labels"][row].tolist() == labels + [-100] * (14 - length)
