"""Run folders: configuration, manifest, metrics and checkpoints of everything that was trained or measured."""

from deeprec.runs.environment import commit, cores, environment, hardware, versions
from deeprec.runs.run import JsonLines, Run, RunSummary, Status, explaining_full_disk, list_runs, lock, matching_runs

__all__ = [
    "JsonLines",
    "Run",
    "RunSummary",
    "Status",
    "commit",
    "cores",
    "environment",
    "explaining_full_disk",
    "hardware",
    "list_runs",
    "lock",
    "matching_runs",
    "versions",
]
