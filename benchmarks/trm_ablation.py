"""An ablation of the TRM: one part changed or left out at a time, on validation.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/trm_ablation.py ml-100k ../shared/data/amazon-scientific-2018 \
        [--variants default "no text"] [--seeds 0 1 2]

It is on validation because variants are chosen by it. Brackets hold 95 % intervals of a paired bootstrap over users,
each user's values averaged over the seeds first. Finished trainings stay in --out, so an interrupted command resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, TRMConfig, load_config
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.evaluation.tables import markdown_table
from deeprec.runs import environment
from deeprec.trm.layers import Block
from deeprec.trm.network import DROPOUT, HEADS, PreferenceSASRec
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import TRM
from preference_sensitivity import preferences, sensitivity
from ratios import ratio_interval

KINDS = ("oracle", "frequent phrases", "wrong")

Conditioned = tuple[Tensor, Tensor]
"""User vectors, and the weight with which each preference was applied."""


class IdsOnly(PreferenceSASRec):
    def items(self) -> Tensor:
        return self.ids.weight + 0.0


class TextOnly(PreferenceSASRec):
    def items(self) -> Tensor:
        return self.text(self.text_ID)


class TextByMLP(PreferenceSASRec):
    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__(config, text_ID)
        inner, outer = nn.Linear(text_ID.shape[1], 2 * config.width), nn.Linear(2 * config.width, config.width)
        self.text = nn.Sequential(inner, nn.GELU(), outer)  # type: ignore[assignment]


class Experts(nn.Module):
    """Eight linear experts, softly chosen by the text (the adaptor of the paper's code, without its noise)."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.experts, self.choice = nn.Linear(text_width, 8 * width, bias=False), nn.Linear(text_width, 8)

    def forward(self, text_IE: Tensor) -> Tensor:
        answers_IXD = self.experts(text_IE).view(len(text_IE), 8, -1)
        return (torch.softmax(self.choice(text_IE), -1)[:, :, None] * answers_IXD).sum(1)


class TextByExperts(PreferenceSASRec):
    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__(config, text_ID)
        self.text = Experts(text_ID.shape[1], config.width)  # type: ignore[assignment]


class SpectralFusion(PreferenceSASRec):
    """A learned filter over the frequencies of the sequence before the blocks (after the paper's code, which reads its
    sequence in both directions; the filter here is causal, as every position is trained)."""

    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__(config, text_ID)
        self.filter = nn.Parameter(0.02 * torch.randn(config.history, config.width))

    def encode(self, items_ID: Tensor, rows_BT: Tensor) -> Tensor:
        T = rows_BT.shape[1]
        x_BTD = F.embedding(rows_BT, F.pad(items_ID, (0, 0, 0, 1)))
        # Twice the length: a product of spectra is then the causal convolution, without its wrapped part.
        spectrum = torch.fft.rfft(x_BTD, n=2 * T, dim=1) * torch.fft.rfft(self.filter[:T], n=2 * T, dim=0)
        x_BTD = x_BTD + torch.fft.irfft(spectrum, n=2 * T, dim=1)[:, :T]
        x_BTD = self.dropout(x_BTD + self.positions.weight[:T])
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class LiGRBlock(Block):
    """SwiGLU, and both residual branches gated by the block's input (LiGR, Borisyuk et al., 2024)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        inner = 8 * width // 3
        self.inner = SwiGLU(width, inner)  # type: ignore[assignment]
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x_BTD: Tensor) -> Tensor:
        attended_BTD = self.attend(x_BTD) * torch.sigmoid(self.gates[0](x_BTD))
        x_BTD = x_BTD + self.dropout(attended_BTD)
        inner_BTD = self.inner(self.norm_inner(x_BTD)) * torch.sigmoid(self.gates[1](x_BTD))
        return x_BTD + self.dropout(inner_BTD)


class LiGR(PreferenceSASRec):
    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__(config, text_ID)
        self.blocks = nn.ModuleList(LiGRBlock(config.width, HEADS, DROPOUT) for _ in range(config.layers))


class Cosine(PreferenceSASRec):
    """Items of unit length; the norm's weight takes the part of the temperature."""

    def items(self) -> Tensor:
        return F.normalize(super().items(), dim=-1)


class SumInsideNorm(PreferenceSASRec):
    """The paper's: state and preference are added and normalised together."""

    def condition(
        self, states_ND: Tensor, preferences_NE: Tensor, frequent_NE: Tensor, preference_weight_N: Tensor
    ) -> Conditioned:
        moved_ND = states_ND + preference_weight_N[:, None] * self.preference(8 * preferences_NE)
        return self.norm(moved_ND), preference_weight_N


class PlainSum(PreferenceSASRec):
    def condition(
        self, states_ND: Tensor, preferences_NE: Tensor, frequent_NE: Tensor, preference_weight_N: Tensor
    ) -> Conditioned:
        moves_ND = preference_weight_N[:, None] * self.preference(8 * preferences_NE)
        return self.norm(states_ND) + moves_ND, preference_weight_N


class NoComparison(PreferenceSASRec):
    """The novelty gate compares every preference with an empty history's frequent phrases, which are zeros."""

    def condition(
        self, states_ND: Tensor, preferences_NE: Tensor, frequent_NE: Tensor, preference_weight_N: Tensor
    ) -> Conditioned:
        return super().condition(states_ND, preferences_NE, torch.zeros_like(frequent_NE), preference_weight_N)


VARIANTS: dict[str, tuple[dict[str, Any], Callable[..., PreferenceSASRec]]] = {
    "default": ({}, PreferenceSASRec),
    "no text": ({}, IdsOnly),
    "no ids": ({}, TextOnly),
    "text by a perceptron": ({}, TextByMLP),
    "text by 8 experts (paper)": ({}, TextByExperts),
    "filter over frequencies (paper)": ({}, SpectralFusion),
    "LiGR blocks with SwiGLU": ({}, LiGR),
    "cosine scores": ({}, Cosine),
    "preference inside the norm (paper)": ({}, SumInsideNorm),
    "preference without gate": ({}, PlainSum),
    "preference not compared with frequent phrases": ({}, NoComparison),
    "no preferences in training": ({"preferences": False}, PreferenceSASRec),
    "preferences of the next item only": ({"preferences.EXACT_SHARE": 1.0}, PreferenceSASRec),
    "no exact preferences": ({"preferences.EXACT_SHARE": 0.0}, PreferenceSASRec),
    "no frequent phrases in training": ({"preferences.FREQUENT_SHARE": 0.0}, PreferenceSASRec),
    "no co-occurrence": ({"cooccurrence": 0.0}, PreferenceSASRec),
    "no average of weights": ({"training.AVERAGED_EPOCHS": 0.0}, PreferenceSASRec),
    "no id dropout": ({"network.ID_DROPOUT": 0.0}, PreferenceSASRec),
}
"""By name: keys of [trm], or constants of the modules of `deeprec.trm` (with a dot), and the network."""


def main() -> None:
    args = _arguments()
    encoder = TextEncoder.load()
    report: dict[str, Any] = {
        "environment": environment(sys.argv),
        "preference_weight": DEFAULT_PREFERENCE_WEIGHT,
        "sets": {},
    }
    for source in args.sources:
        dataset = load_dataset(load_config(None, [f'data.source="{source}"']).data)
        folder = args.out / dataset.name
        folder.mkdir(parents=True, exist_ok=True)
        rows: dict[str, Any] = {}
        for name in dict.fromkeys(["default", *args.variants]):
            runs = [_run(name, dataset, encoder, seed, folder) for seed in args.seeds]
            rows[name] = {kind: np.mean([run[kind] for run in runs], axis=0) for kind in runs[0]}
        report["sets"][dataset.name] = {name: _row(row, rows["default"]) for name, row in rows.items()}
        (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (args.out / "report.md").write_text(_markdown(report, len(args.seeds)), encoding="utf-8")
    print(_markdown(report, len(args.seeds)))


def _run(name: str, dataset: Dataset, encoder: TextEncoder, seed: int, folder: Path) -> dict[str, Any]:
    """NDCG@10 (U,) by kind of preference, seconds of training and epochs."""
    path = folder / f"{name.replace(' ', '-')}-{seed}.npz"
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    settings, network = VARIANTS[name]
    config = TRMConfig(seed=seed, **{key: value for key, value in settings.items() if "." not in key})
    constants = {key: value for key, value in settings.items() if "." in key}
    with ExitStack() as patches:
        for key, value in ({"training.PreferenceSASRec": network} | constants).items():
            patches.enter_context(patch(f"deeprec.trm.{key}", value))
        trm = TRM.fit(dataset, config, encoder)
    tasks, targets = dataset.tasks("validation"), dataset.targets("validation")
    texts = preferences(dataset.catalog, tasks, targets)
    of_kinds = sensitivity(trm, tasks, targets, texts, [DEFAULT_PREFERENCE_WEIGHT])
    found: dict[str, Any] = {one.kind: one.ndcg_U for one in of_kinds}
    found |= {"seconds": sum(epoch.seconds for epoch in trm.curve), "epochs": len(trm.curve)}
    print(f"{dataset.name}, {name}, seed {seed}: NDCG@10 {found['none'].mean():.4f}", flush=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **found)
    part.replace(path)
    return found


def _row(row: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = ratio_interval(row["none"], default["none"])
    blank = float(row["none"].mean())
    ratios = {kind: float(row[kind].mean()) / blank for kind in KINDS}
    return {
        "blank": blank,
        "against_default": [found.mean, found.low, found.high],
        **ratios,
        "seconds": float(row["seconds"]),
        "epochs": float(row["epochs"]),
    }


def _markdown(report: dict[str, Any], seeds: int) -> str:
    lines = [f"- {key}: {text}" for key, text in report["environment"].items()]
    for name, rows in report["sets"].items():
        lines += ["", f"## {name}, validation, {seeds} seeds", ""]
        kinds = [f"{KINDS[0]} / blank (weight {DEFAULT_PREFERENCE_WEIGHT})", *KINDS[1:]]
        headings = ["variant", "NDCG@10", "against default", *kinds, "training s", "epochs"]
        table = []
        for variant, row in rows.items():
            against = "{:.3f} [{:.3f}, {:.3f}]".format(*row["against_default"])
            cells = [variant, f"{row['blank']:.4f}", against, *(f"{row[kind]:.3f}" for kind in KINDS)]
            table.append([*cells, f"{row['seconds']:.0f}", f"{row['epochs']:.0f}"])
        lines += markdown_table(headings, table)
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/trm_ablation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
