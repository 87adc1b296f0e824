"""Training the TRM: every next item at once, with a preference at some places that hints at what comes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Sequences
from deeprec.errors import DeepRecError
from deeprec.trm.model import PreferenceSASRec
from deeprec.trm.text_encoder import TextEncoder

_VARIANTS = 4
"""Preference texts that are made of each item."""
_RECENT = 10
"""A history's own preference is made of one of its last items."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of the training curve."""

    epoch: int
    loss: float
    ndcg: float
    seconds: float


def preference_texts(catalog: Catalog, seed: int) -> list[list[str]]:
    """For each item `_VARIANTS` preferences that fit it: random choices of up to three of its phrases.

    They come from the item's text alone. An item without phrases gets its title.
    """
    rng = np.random.default_rng([seed, 1])
    texts = []
    for place in range(len(catalog)):
        phrases = catalog.phrases(ItemIdx(place)) or (catalog.titles[place],)
        variants = []
        for _ in range(_VARIANTS):
            count = int(rng.integers(1, min(3, len(phrases)) + 1))
            variants.append("; ".join(phrases[i] for i in rng.permutation(len(phrases))[:count]))
        texts.append(variants)
    return texts


class Batches:
    """Windows of training sequences, with what each place is to predict and the preference it may read.

    The sequences are cut into windows at borders that move from epoch to epoch. Everything of an epoch follows from
    the seed and its number, so that a resumed training sees what an unbroken one would.
    """

    def __init__(self, sequences: Sequences, n_items: int, config: TRMConfig) -> None:
        self.items_N = sequences.items_N.astype(np.int64)
        self.starts_U1 = sequences.starts_U1
        self.n_items = n_items
        self.config = config

    def epoch(self, number: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Batches of (inputs (B, T), targets (B, T), preferences (B, T), given (B, T)).

        Inputs and targets are padded with `n_items`; a preference is a row of the (I * variants, E) table.
        """
        rng = np.random.default_rng([self.config.seed, 2, number])
        T = self.config.history
        begins, ends = self._windows(rng)
        order = rng.permutation(begins.size)
        # Long and short windows apart, so that little is padding; the order of the batches stays random.
        order = order[np.argsort(-(ends - begins)[order] // 8, kind="stable")]
        groups = [order[i : i + self.config.batch_size] for i in range(0, order.size, self.config.batch_size)]
        batches = []
        for group in rng.permutation(len(groups)):
            rows = groups[group]
            length = int(min(T, (ends - begins)[rows].max() - 1))
            places_BT = begins[rows, None] + np.arange(length)
            inside_BT = places_BT < ends[rows, None] - 1
            places_BT = np.minimum(places_BT, self.items_N.size - 2)
            inputs_BT = np.where(inside_BT, self.items_N[places_BT], self.n_items)
            targets_BT = np.where(inside_BT, self.items_N[places_BT + 1], self.n_items)
            users_B = np.searchsorted(self.starts_U1, begins[rows], side="right") - 1
            preferences_BT = self._preferences(rng, places_BT, users_B)
            given_BT = rng.random(places_BT.shape) >= self.config.preference_dropout
            batches.append(
                (
                    torch.from_numpy(inputs_BT),
                    torch.from_numpy(targets_BT),
                    torch.from_numpy(preferences_BT),
                    torch.from_numpy(given_BT),
                )
            )
        return batches

    def _windows(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin and end (exclusive) of windows of T inputs and their targets."""
        T = self.config.history
        begins, ends = [], []
        for start, stop in zip(self.starts_U1[:-1], self.starts_U1[1:], strict=True):
            if stop - start < 2:
                continue
            first = start - int(rng.integers(0, T)) if stop - start > T + 1 else start
            cuts = np.arange(first, stop - 1, T, dtype=np.int64)
            begins.append(np.maximum(cuts, start))
            ends.append(np.minimum(cuts + T + 1, stop))
        if not begins:
            raise DeepRecError("The TRM has nothing to train on: no user has two training interactions.")
        return np.concatenate(begins), np.concatenate(ends)

    def _preferences(
        self, rng: np.random.Generator, places_BT: NDArray[np.int64], users_B: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Mostly a text of one of the next items of the user, else of one of the last: rows of the table."""
        shape = places_BT.shape
        ahead_BT = places_BT + rng.integers(1, self.config.preference_window + 1, shape)
        ahead_BT = np.minimum(ahead_BT, self.starts_U1[users_B + 1][:, None] - 1)
        back_BT = np.maximum(places_BT - rng.integers(0, _RECENT, shape), self.starts_U1[users_B][:, None])
        back = rng.random(shape) < self.config.history_preference
        items_BT = self.items_N[np.where(back, back_BT, ahead_BT)]
        return items_BT * _VARIANTS + rng.integers(0, _VARIANTS, shape)


def train(
    sequences: Sequences,
    catalog: Catalog,
    encoder: TextEncoder,
    config: TRMConfig,
    validate: Callable[[PreferenceSASRec], float],
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[PreferenceSASRec, list[Epoch]]:
    """Train until the validation stops improving; returns the best model and the curve.

    Args:
        validate: gives NDCG@10 of a model; called after every epoch.
        checkpoint: a file that is written after every epoch; a training that finds one goes on from it.
    """
    text_ID = torch.from_numpy(encoder.encode([catalog.text(ItemIdx(i)) for i in range(len(catalog))]))
    texts = [text for variants in preference_texts(catalog, config.seed) for text in variants]
    preferences_PE = torch.from_numpy(encoder.encode(texts))
    torch.manual_seed(config.seed)
    model = PreferenceSASRec(config, text_ID)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    # The average is what is validated and kept: it varies less from step to step than the weights do.
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
    best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curve: list[Epoch] = []
    if checkpoint is not None and checkpoint.exists():
        best, curve = _restore(checkpoint, model, average, optimizer, config)
    batches = Batches(sequences, len(catalog), config)
    while len(curve) < config.epochs and not _stale(curve, config.patience):
        started = time.perf_counter()
        number = len(curve)
        torch.manual_seed(config.seed * 1_000_003 + number)
        loss = _run_epoch(model, average, optimizer, batches.epoch(number), preferences_PE)
        if not np.isfinite(loss):
            raise DeepRecError(
                f"The TRM's loss became {loss} in epoch {number + 1}: lower trm.learning_rate "
                f"({config.learning_rate}); the last good checkpoint is kept."
            )
        ndcg = validate(cast(PreferenceSASRec, average.module))
        if ndcg > max((epoch.ndcg for epoch in curve), default=-1.0):
            best = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
        curve.append(Epoch(number + 1, loss, ndcg, time.perf_counter() - started))
        if checkpoint is not None:
            _save(checkpoint, model, average, optimizer, best, curve, config)
        on_epoch(curve[-1])
    model.load_state_dict(best)
    return model.eval(), curve


def _stale(curve: Sequence[Epoch], patience: int) -> bool:
    scores = [epoch.ndcg for epoch in curve]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _run_epoch(
    model: PreferenceSASRec,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    preferences_PE: Tensor,
) -> float:
    model.train()
    total, places = 0.0, 0
    for inputs_BT, targets_BT, wanted_BT, given_BT in batches:
        items_ID = model.items()
        states_BTD = model.encode(items_ID, inputs_BT)
        real_BT = targets_BT < items_ID.shape[0]  # only real places reach the softmax over the catalogue
        users_ND = model.listen(
            states_BTD[real_BT], preferences_PE[wanted_BT[real_BT]], given_BT[real_BT].to(states_BTD.dtype)
        )
        loss = F.cross_entropy(users_ND @ items_ID.T, targets_BT[real_BT])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        total += float(loss.detach()) * users_ND.shape[0]
        places += users_ND.shape[0]
    return total / max(places, 1)


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
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DeepRecError(f"{path} is a damaged checkpoint ({error}): remove it to start anew.") from None
    model.load_state_dict({name[6:]: t for name, t in tensors.items() if name.startswith("model.")})
    average.load_state_dict({name[8:]: t for name, t in tensors.items() if name.startswith("average.")})
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")}
    return best, [Epoch(**epoch) for epoch in json.loads(metadata["curve"])]
