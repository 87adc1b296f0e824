"""Runs `deeprec` in this process or another, on a toy table and with a stand-in for MiniLM."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from stand_ins import HashedWords
from toys import toy_dataset

CONFIG = """\
[data]
source = {table!r}
item_core = 1

[trm]
width = 16
layers = 1
history = 8
epochs = 10
learning_rate = 0.01

[policy]
kind = "scripted"

[explore]
answer_size = 3
items_per_call = 5
guidance = "rules"

[eval]
cutoffs = [1, 3]
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class Site:
    """A folder with a table, a configuration, and a finished training of the TRM."""

    root: Path
    config: Path
    runs: Path
    trained: Path

    def __call__(self, *args, **options):
        """A command with this configuration and these runs."""
        return deeprec(*args, "--config", self.config, "--runs", self.runs, **options)


def deeprec(*args, stdin="", columns=300):
    """Run `deeprec` in this process."""
    from deeprec import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["deeprec", *map(str, args)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        patch.setenv("COLUMNS", str(columns))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def slow_main():
    """`deeprec` in a process of its own, with the stand-in and at least 0.3 s an epoch."""
    import torch

    from deeprec import cli
    from deeprec.trm import training
    from deeprec.trm.text_encoder import TextEncoder

    torch.set_num_threads(1)
    run_epoch = training._run_epoch

    def slowly(*args):
        time.sleep(0.3)
        return run_epoch(*args)

    training._run_epoch = slowly
    TextEncoder.load = lambda **_: HashedWords()
    cli.main()


def write_table(path):
    """The toy data set as a table of interactions."""
    dataset = toy_dataset()
    lines = ["user_id,item_id,timestamp,title,year,genres"]
    for u, user in enumerate(dataset.users):
        for position, item in enumerate(dataset.sequence(u)):
            year = dataset.catalog.years[item]
            lines.append(f"{user},i{item},{position},Film {item},{year},{dataset.catalog.categories[item][0]}")
    path.write_text("\n".join(lines) + "\n")


def manifest(run):
    return json.loads((run / "manifest.json").read_text())


def files(root):
    """When each file and folder was last changed."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}
