"""From the rankings of all runs to report.json and report.md, by the project's own metrics and intervals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jobs import SETTINGS
from numpy.typing import NDArray
from peer import CUTOFF

from deeprec.evaluation.intervals import CONFIDENCE, paired_interval
from deeprec.evaluation.metrics import ndcg_at, ranks_of, recall_at
from deeprec.evaluation.tables import markdown_table
from deeprec.runs import environment

sys.path.append(str(Path(__file__).parents[1]))  # where the benchmarks' own modules lie
from ratios import ratio_interval

Floats = NDArray[np.float64]

OURS = "trm"
HEADINGS = [
    *("system", f"NDCG@{CUTOFF}", f"Recall@{CUTOFF}", f"TRM minus it, NDCG@{CUTOFF}", "TRM / it", "training s"),
    *("epochs (best)", "peak MiB", "seeds", "stopped by"),
]


def write_report(out: Path, sets: list[str], systems: list[str], seeds: list[int]) -> None:
    """`report.json` and `report.md` in `out`, over the runs that are there."""
    report = {
        "environment": environment(sys.argv),
        "confidence": CONFIDENCE,
        "sets": {name: _set_report(out / name, systems, seeds) for name in sets},
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(_markdown(report), encoding="utf-8")


def _set_report(folder: Path, systems: list[str], seeds: list[int]) -> dict[str, Any]:
    with np.load(folder / "data.npz") as file:
        targets_T = file["test_targets_T"]
        starts_T1, items_N = file["test_starts_T1"], file["test_items_N"]
        sizes = {"users": len(targets_T), "items": len(file["text_IE"]), "training": len(file["items_N"])}
    histories = [set(row.tolist()) for row in np.split(items_N, starts_T1[1:-1])]
    paths = {system: [folder / f"{system}-{seed}.json" for seed in seeds] for system in systems}
    values = {system: _per_user(paths[system], targets_T, histories) for system in systems}
    found = {system: value for system, value in values.items() if value is not None}
    rows = {}
    for system, (metrics, records) in found.items():
        row: dict[str, Any] = {name: float(value_U.mean()) for name, value_U in metrics.items()}
        row |= {"seeds": [record["seed"] for record in records], "settings": records[0]["settings"]}
        for name in ("train_processor", "train_seconds", "epochs", "best_epoch", "peak_mib"):
            if name in records[0]:
                row[name] = float(np.mean([record[name] for record in records]))
        row["stopped_by"] = [record.get("stopped_by", "") for record in records]
        row["budget"], row["versions"] = records[0]["budget"], records[0]["versions"]
        if OURS in found and system != OURS:
            row["trm_against"] = {name: _compare(found[OURS][0][name], theirs_U) for name, theirs_U in metrics.items()}
        rows[system] = row
    return sizes | {"systems": rows}


def _per_user(
    paths: list[Path], targets_T: NDArray[np.int64], histories: list[set[int]]
) -> tuple[dict[str, Floats], list[dict[str, Any]]] | None:
    """Metrics a user, averaged over the seeds, and the records of the runs; None without a finished run."""
    metrics: dict[str, list[Floats]] = {f"NDCG@{CUTOFF}": [], f"Recall@{CUTOFF}": []}
    records = []
    for path in filter(Path.exists, paths):
        records.append(json.loads(path.read_text(encoding="utf-8")))
        with np.load(path.with_suffix(".npz")) as file:
            rankings = [[item for item in row if item >= 0] for row in file["ranked_TK"].tolist()]
        if any(not history.isdisjoint(ranking) for history, ranking in zip(histories, rankings, strict=True)):
            raise ValueError(f"{path} ranks items of the history")
        ranks_U = ranks_of(rankings, targets_T.tolist())
        metrics[f"NDCG@{CUTOFF}"].append(ndcg_at(ranks_U, CUTOFF))
        metrics[f"Recall@{CUTOFF}"].append(recall_at(ranks_U, CUTOFF))
    if not records:
        return None
    return {name: np.mean(values, axis=0) for name, values in metrics.items()}, records


def _compare(ours_U: Floats, theirs_U: Floats) -> dict[str, list[float]]:
    """Difference and ratio of the means, with percentile bootstrap intervals over users, in pairs."""
    change, ratio = paired_interval(ours_U, theirs_U), ratio_interval(ours_U, theirs_U)
    return {
        "difference": [change.difference, change.low, change.high],
        "ratio": [ratio.mean, ratio.low, ratio.high],
    }


def _markdown(report: dict[str, Any]) -> str:
    lines = ["# The TRM and its peers", ""]
    lines += [f"- {name}: {text}" for name, text in report["environment"].items()]
    for name, part in report["sets"].items():
        lines += ["", f"## {name}: {part['users']:,} users, {part['items']:,} items", ""]
        order = sorted(part["systems"], key=list(SETTINGS).index)
        lines += markdown_table(HEADINGS, [_cells(system, part["systems"][system]) for system in order])
        versions: dict[str, str] = {}
        for row in part["systems"].values():
            versions |= row["versions"]
        lines += ["", "Versions: " + ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))]
    lines += [
        "",
        f"Means over seeds. In brackets {report['confidence']:.0%} intervals of a paired bootstrap over users, each "
        "user's values averaged over the seeds first. Training seconds are the processor's, "
        "with preparation and validations. Peak MiB is the process's whole resident memory. `budget` under `stopped "
        "by` means that the clock ended the training.",
        "",
    ]
    return "\n".join(lines)


def _cells(system: str, row: dict[str, Any]) -> list[str]:
    def number(name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    against = row.get("trm_against", {}).get(f"NDCG@{CUTOFF}")
    difference = ratio = ""
    if against:
        difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*against["difference"])
        ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*against["ratio"])
    epochs = f"{row['epochs']:.1f} ({row['best_epoch']:.1f})" if "epochs" in row else ""
    return [
        system,
        f"{row[f'NDCG@{CUTOFF}']:.4f}",
        f"{row[f'Recall@{CUTOFF}']:.4f}",
        difference,
        ratio,
        number("train_processor", ".0f"),
        epochs,
        number("peak_mib", ",.0f"),
        str(len(row["seeds"])),
        ", ".join(dict.fromkeys(filter(None, row["stopped_by"]))),
    ]
