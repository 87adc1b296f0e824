"""Training the TRM: every next item at once, with a preference at some places that hints at what comes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError, one_line
from deeprec.trm.batches import Batch, Batches
from deeprec.trm.layers import catalogue_loss, product_dtype
from deeprec.trm.network import PreferenceSASRec
from deeprec.trm.preferences import PhraseTable
from deeprec.trm.text_encoder import TextEncoder

AVERAGED_EPOCHS = 3.0
"""Epochs that the moving average of the weights spans."""
PATIENCE = 5
"""Epochs without a better validation NDCG@10 before training stops."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the training curve."""

    epoch: int
    loss: float
    ndcg: float
    seconds: float
    """of training"""
    validation_seconds: float


def train(
    sequences: Sequences,
    catalog: Catalog,
    encoder: TextEncoder,
    config: TRMConfig,
    validate: Callable[[PreferenceSASRec], float],
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[PreferenceSASRec, list[Epoch]]:
    """Train until the validation stops improving, or epochs or minutes end; returns the best model and the curve.

    Args:
        validate: gives NDCG@10 of a model; called after every epoch.
        checkpoint: a file that is written after every epoch; a training that finds one goes on from it.
    """
    text_ID = torch.from_numpy(encoder.encode(catalog.texts()))
    phrase_table = PhraseTable.of(catalog, encoder)
    torch.manual_seed(config.seed)
    model = PreferenceSASRec(config, text_ID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    batches = Batches(sequences, phrase_table, config)
    # The average is what is validated and kept: it varies less from step to step than the weights do.
    decay = 1 - 1 / max(1.0, AVERAGED_EPOCHS * batches.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.module.text_ID = text_ID  # one for both
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curve: list[Epoch] = []
    if checkpoint is not None and checkpoint.exists():
        best, curve = _restore(checkpoint, model, average, optimizer, config)
    while not _ended(curve, config):
        number = len(curve)
        torch.manual_seed(config.seed * 1_000_003 + number)
        started = time.perf_counter()
        loss = _run_epoch(model, average, optimizer, batches.epoch(number), phrase_table)
        seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            raise DeepRecError(
                f"The TRM's loss became {loss} in epoch {number + 1}: lower trm.learning_rate "
                f"({config.learning_rate}); the last good checkpoint is kept."
            )
        ndcg = validate(cast(PreferenceSASRec, average.module))
        validation_seconds = time.perf_counter() - started - seconds
        if ndcg > max((epoch.ndcg for epoch in curve), default=-1.0):
            best = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
        curve.append(Epoch(number + 1, loss, ndcg, seconds, validation_seconds))
        if checkpoint is not None:
            _save(checkpoint, model, average, optimizer, best, curve, config)
        on_epoch(curve[-1])
    model.load_state_dict(best)
    return model.eval(), curve


def _ended(curve: Sequence[Epoch], config: TRMConfig) -> bool:
    scores = [epoch.ndcg for epoch in curve]
    spent = sum(epoch.seconds + epoch.validation_seconds for epoch in curve)
    return bool(scores) and (
        len(scores) >= config.epochs
        or len(scores) - 1 - int(np.argmax(scores)) >= PATIENCE
        or (config.minutes is not None and spent >= 60 * config.minutes)
    )


def _run_epoch(
    model: PreferenceSASRec,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    phrase_table: PhraseTable,
) -> float:
    model.train()
    dtype = product_dtype()
    total, positions = 0.0, 0
    for batch in batches:
        items_ID = model.items()
        states_ND = model.encode(items_ID, batch.inputs_BT)[batch.real_BT]
        preferences_NE, given_N = phrase_table.vectors(batch.phrases_NL)
        frequent_NE, _ = phrase_table.vectors(batch.frequent_NL)
        users_ND, _ = model.condition(states_ND, preferences_NE, frequent_NE, given_N.float())
        loss = catalogue_loss(users_ND, items_ID, batch.targets_N, dtype)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        total += float(loss.detach()) * users_ND.shape[0]
        positions += users_ND.shape[0]
    return total / max(positions, 1)


def _save(
    path: Path,
    model: PreferenceSASRec,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    curve: Sequence[Epoch],
    config: TRMConfig,
) -> None:
    """One file, put in place at once: a kill leaves the last whole one."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"adam.{key}.{name}": state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    metadata = {"curve": json.dumps([asdict(epoch) for epoch in curve]), "config": config.model_dump_json()}
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
    os.replace(part, path)


def _restore(
    path: Path,
    model: PreferenceSASRec,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    config: TRMConfig,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if json.loads(metadata["config"]) != config.model_dump(mode="json"):
            raise DeepRecError(f"{path} was written with another [trm] configuration: remove it to start anew.")
        model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
        average.load_state_dict({name[8:]: t for name, t in tensors.items() if name.startswith("average.")})
        for name, parameter in model.named_parameters():
            state = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = state
        best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")}
        return best, [Epoch(**epoch) for epoch in json.loads(metadata["curve"])]
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DeepRecError(f"{path} is a damaged checkpoint ({one_line(error)}): remove it to start anew.") from None
