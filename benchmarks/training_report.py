"""The committed curves of trainings, and the report on them.

    python benchmarks/training_report.py [RUN NAME]

With the folder of a `deeprec train` and a name, its configuration and its numbers of every step are first copied to
docs/results/training/NAME, without weights, and its curves drawn. See that the configuration names no path of the
machine. The report is then written anew from all that lies there; a test fails where it differs from the logs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from deeprec.config import StageConfig, TrainConfig
from deeprec.evaluation.tables import markdown_table
from deeprec.runs import Run
from deeprec.training.curves import COLUMNS, plot_curves, read_curves, rows
from deeprec.training.time_budget import time_spent

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "training"
REPORT = RESULTS / "report.md"
PREFACE = """# Trainings

Numbers of every step (`metrics.jsonl`) lie beside this page with the configuration of each:
`deeprec train --config docs/results/training/NAME/config.toml` makes another of its kind (these ran in two processes,
by torchrun), `deeprec runs curves docs/results/training/NAME` shows this one. The adapter `runs/trained/NAME` that one
goes on from is a copy of the weights that training NAME left in its run's folder. Means of the first and the last fifth
of the steps; Kendall's tau of the number with the step, and its p for rising (one-sided, not corrected for their
number). What they mean stands in [Training](../../training.md#what-reinforcement-learning-did-on-two-cores).
"""


def main() -> None:
    if len(sys.argv) == 3:
        keep(Path(sys.argv[1]), sys.argv[2])
    REPORT.write_text(report(), encoding="utf-8")


def keep(run: Path, name: str) -> None:
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.toml", "metrics.jsonl", "time_budget.json"):
        shutil.copyfile(run / file, folder / file)
    manifest = Run.open(run).manifest
    manifest["command"] = ["deeprec", "train", "--config", f"docs/results/training/{name}/config.toml"]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    plot_curves(read_curves(folder), RESULTS / f"{name}.svg")


def folders() -> list[Path]:
    return sorted(path.parent for path in RESULTS.glob("*/manifest.json"))


def report() -> str:
    return "\n".join([PREFACE, *(line for folder in folders() for line in about(folder))])


def about(folder: Path) -> list[str]:
    run = Run.open(folder)
    manifest, settings = run.manifest, run.config
    machine, config, weight = manifest["hardware"], settings.train, settings.explore.preference_weight
    lines = [
        f"## {folder.name}",
        "",
        f"{settings.data.source}, {config.tasks_per_step} tasks of {config.group_size} explorations a step, "
        f"`updates = {config.updates_per_step}`, temperature {config.temperature}, top-p {config.top_p}, "
        f"`negative = {config.negative_advantage_weight}`, seed {config.seed}, preferences believed "
        f"{'as the TRM has calibrated' if weight is None else f'with weight {weight}'}, from the adapter {config.adapter}.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {manifest['created'][:10]}, commit {manifest['commit'][:7]}: "
        f"{time_spent(folder)}.",
        "",
    ]
    lines += [_stage(stage, config) for stage in config.stages] + [""]
    lines += markdown_table(COLUMNS, list(rows(read_curves(folder))))
    return [*lines, "", f"![Curves of {folder.name}]({folder.name}.svg)", ""]


def _stage(stage: StageConfig, config: TrainConfig) -> str:
    paid = ", ".join(name if weight == 1 else f"{weight} {name}" for name, weight in stage.rewards.items() if weight)
    return (
        f"- {stage.name}: {stage.steps} steps, learning rate {stage.learning_rate}, paid for {paid}, `whitening = "
        f'"{stage.advantage_normalisation or config.advantage_normalisation}"`'
    )


if __name__ == "__main__":
    main()
