"""The committed curves of trainings, and the report on them.

    python benchmarks/training_report.py [RUN NAME]

With the folder of a `deeprec train` and a name, the script first copies the run's configuration and metrics to
docs/results/training/NAME, without weights, and plots its curves. Check that the configuration names no path of the
machine. It then writes the report anew from everything in docs/results/training; a test fails where the report differs
from the logs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from deeprec.config import StageConfig
from deeprec.evaluation.tables import markdown_table
from deeprec.runs import Run
from deeprec.training.curves import COLUMNS, plot_curves, read_curves, rows
from deeprec.training.time_budget import time_spent

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "training"
REPORT = RESULTS / "report.md"
PREFACE = """# Trainings

The numbers of every step (`metrics.jsonl`) and the configuration of each training are in this
folder. `deeprec runs curves docs/results/training/NAME` shows the curves of one, and
`deeprec train --config docs/results/training/NAME/config.toml` trains again; these ran in two
processes, by torchrun. An adapter `runs/trained/NAME` is a copy of the weights in the run folder of
training NAME.

The tables give the means of the first and the last fifth of the steps, Kendall's tau of the number
with the step, and its one-sided p for rising, not corrected for the number of tests.
[Results](../index.md#reinforcement-learning) says what they mean. `reward/rank_gain` was a metric
of a [reward that is gone](../../research-log/2026-11-28-reinforcement-learning.md).
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
    weight_text = "calibrated preference weight" if weight is None else f"preference weight {weight}"
    lines = [
        f"## {folder.name}",
        "",
        f"{settings.data.source}, {config.tasks_per_step} tasks of {config.group_size} explorations a step, "
        f"`updates_per_step = {config.updates_per_step}`, temperature {config.temperature}, "
        f"`negative_advantage_weight = {config.negative_advantage_weight}`, seed {config.seed}, {weight_text}, "
        f"from the adapter {config.adapter}.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {manifest['created'][:10]}, commit {manifest['commit'][:7]}: "
        f"{time_spent(folder)}.",
        "",
    ]
    lines += [_stage(stage) for stage in config.stages] + [""]
    lines += markdown_table(COLUMNS, list(rows(read_curves(folder))))
    return [*lines, "", f"![Curves of {folder.name}]({folder.name}.svg)", ""]


def _stage(stage: StageConfig) -> str:
    paid = ", ".join(name if weight == 1 else f"{weight} {name}" for name, weight in stage.rewards.items() if weight)
    return (
        f"- {stage.name}: {stage.steps} steps, learning rate {stage.learning_rate}, paid for {paid}, "
        f'`advantage_normalisation = "{stage.advantage_normalisation}"`'
    )


if __name__ == "__main__":
    main()
