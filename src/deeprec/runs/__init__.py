"""Run folders: configuration, manifest, metrics and checkpoints of everything that was trained or measured."""

from deeprec.runs.environment import commit as commit
from deeprec.runs.environment import cores as cores
from deeprec.runs.environment import environment as environment
from deeprec.runs.environment import hardware as hardware
from deeprec.runs.environment import versions as versions
from deeprec.runs.run import JsonLines as JsonLines
from deeprec.runs.run import Run as Run
from deeprec.runs.run import RunSummary as RunSummary
from deeprec.runs.run import Status as Status
from deeprec.runs.run import explaining_full_disk as explaining_full_disk
from deeprec.runs.run import list_runs as list_runs
from deeprec.runs.run import lock as lock
from deeprec.runs.run import matching_runs as matching_runs
