"""Training the TRM to predict every next item at once, at most positions with a preference that hints at it."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import TypeAdapter
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

AVERAGED_EPOCHS = 3.0  # epochs that the moving average of the weights spans
PATIENCE = 5  # epochs without a better validation NDCG@10 before training stops


@dataclass(frozen=True, slots=True)
class Epoch:
    """A point of the training curve."""

    epoch: int  # counted from 1
    loss: float  # mean cross-entropy of the next items, in nats; nan before training
    ndcg: float  # validation NDCG@10
    seconds: float  # of training alone
    validation_seconds: float


_CURVE = TypeAdapter(list[Epoch])


@dataclass
class _State:
    """All that a checkpoint holds."""

    model: PreferenceSASRec
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    curve: list[Epoch] = field(default_factory=list)

    def save(self, path: Path, config: TRMConfig) -> None:
        """One file, put in place at once: a kill leaves the last whole one."""
        parts = {"model": self.model.state_dict(), "average": self.average.state_dict(), "best": self.best}
        tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"adam.{key}.{name}": tensor for key, tensor in self.optimizer.state[parameter].items()}
        metadata = {"curve": _CURVE.dump_json(self.curve).decode(), "config": config.model_dump_json()}
        part = path.with_suffix(".part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
        os.replace(part, path)

    def restore(self, path: Path, config: TRMConfig) -> None:
        """Raises DeepRecError if the file is damaged or of another configuration."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if json.loads(metadata["config"]) != config.model_dump(mode="json"):
                raise DeepRecError(f"{path} was written with another [trm] configuration: remove it to start anew.")
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}, "adam": {}}
            for name, tensor in tensors.items():
                part, _, key = name.partition(".")
                parts[part][key] = tensor
            self.model.load_state_dict(parts["model"])
            self.average.load_state_dict(parts["average"])
            for name, parameter in self.model.named_parameters():
                adam = {key: parts["adam"][f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = adam
            self.best, self.curve = parts["best"], _CURVE.validate_json(metadata["curve"])
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            fault = f"{path} is a damaged checkpoint ({one_line(error)}): remove it to start anew."
            raise DeepRecError(fault) from None


def train(
    sequences: Sequences,
    catalog: Catalog,
    encoder: TextEncoder,
    config: TRMConfig,
    validate: Callable[[PreferenceSASRec], float],
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    start: Mapping[str, Tensor] | None = None,
) -> tuple[PreferenceSASRec, list[Epoch]]:
    """Train until validation stops improving, or epochs or minutes end; returns the best model and the curve.

    `validate` gives the NDCG@10 of a model, after every epoch. `checkpoint` is a file that is written then; a training
    that finds it resumes. `start` has weights to go on from, which are kept if no epoch is better; the curve then
    begins with them, as epoch 0. DeepRecError if there is nothing to train on, the loss diverged, or the checkpoint
    does not fit.
    """
    text_ID = torch.from_numpy(encoder.encode(catalog.texts()))
    phrase_table = PhraseTable.build(catalog, encoder)
    torch.manual_seed(config.seed)
    model = PreferenceSASRec(config, text_ID)
    before: list[Epoch] = []
    if start is not None:
        model.load_state_dict(start)
        before.append(Epoch(0, np.nan, validate(model), 0.0, 0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    batches = Batches(sequences, phrase_table, config)
    # The average is validated and kept: it varies less from step to step than the weights.
    decay = 1 - 1 / max(1.0, AVERAGED_EPOCHS * batches.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.module.text_ID = text_ID  # shared, not copied
    state = _State(model, average, optimizer, copy.deepcopy(model.state_dict()))
    if checkpoint is not None and checkpoint.exists():
        state.restore(checkpoint, config)
    while not _ended(state.curve, config):
        number = len(state.curve)
        torch.manual_seed(config.seed * 1_000_003 + number)
        started = time.perf_counter()
        loss = _run_epoch(state, batches.epoch(number), phrase_table)
        seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            change = f"lower trm.learning_rate ({config.learning_rate}); the last good checkpoint is kept."
            raise DeepRecError(f"The TRM's loss became {loss} in epoch {number + 1}: {change}")
        ndcg = validate(cast(PreferenceSASRec, average.module))
        validation_seconds = time.perf_counter() - started - seconds
        if ndcg > max((epoch.ndcg for epoch in before + state.curve), default=-1.0):
            state.best = copy.deepcopy(average.module.state_dict())
        state.curve.append(Epoch(number + 1, loss, ndcg, seconds, validation_seconds))
        if checkpoint is not None:
            state.save(checkpoint, config)
        on_epoch(state.curve[-1])
    model.load_state_dict(state.best)
    return model.eval(), before + state.curve


def _ended(curve: Sequence[Epoch], config: TRMConfig) -> bool:
    scores = [epoch.ndcg for epoch in curve]
    spent = sum(epoch.seconds + epoch.validation_seconds for epoch in curve)
    return bool(scores) and (
        len(scores) >= config.epochs
        or len(scores) - 1 - int(np.argmax(scores)) >= PATIENCE
        or (config.minutes is not None and spent >= 60 * config.minutes)
    )


def _run_epoch(state: _State, batches: Iterator[Batch], phrase_table: PhraseTable) -> float:
    """The mean loss over all training positions."""
    model, dtype = state.model.train(), product_dtype()
    total, positions = 0.0, 0
    for batch in batches:
        items_ID = model.items()
        states_ND = model.encode(items_ID, batch.inputs_BT)[batch.real_BT]
        preferences_NE, given_N = phrase_table.vectors(batch.phrases_NL)
        frequent_NE, _ = phrase_table.vectors(batch.frequent_NL)
        users_ND, _ = model.condition(states_ND, preferences_NE, frequent_NE, given_N.float())
        loss = catalogue_loss(users_ND, items_ID, batch.targets_N, dtype)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        state.average.update_parameters(model)
        total += float(loss.detach()) * users_ND.shape[0]
        positions += users_ND.shape[0]
    return total / max(positions, 1)
