"""Rankings of other libraries, from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.evaluation.external_rankings import read_external_rankings
from toys import toy_dataset


def test_rankings_are_read_with_care(site, tmp_path):
    dataset = load_dataset(load_config(site.config).data)
    path = tmp_path / "mine.tsv"
    task = dataset.tasks("test")[0]
    new, old = (
        dataset.catalog.ids[next(i for i in range(40) if (i in task.history) == seen)] for seen in (False, True)
    )
    for text, told in (
        (f"{task.user}\ti1\tnothing", "line 1: .* no item 'nothing'"),
        (f"{task.user}\ti1\n{task.user}\ti2", f"line 2: user '{task.user}'"),
        (f"{task.user}\ti1\ti1", "comes twice"),
        (f"{task.user}\t{old}", f"has item '{old}' in the history"),
        (f"other\t{new}", f"no line for user '{task.user}'"),
    ):
        path.write_text(text)
        with pytest.raises(DeepRecError, match=told):
            read_external_rankings(path, dataset, [task])
    path.write_text(f"{task.user}\t{new}")
    assert read_external_rankings(path, dataset, [task]) == [[dataset.catalog.index(new)]]
    path.write_text(f"{task.user}\t{old}\t{new}")
    seen = [dataset.catalog.index(item) for item in (old, new)]
    assert read_external_rankings(path, dataset, [replace(task, exclude_history=False)]) == [seen]
    with pytest.raises(DeepRecError, match="check the path"):
        read_external_rankings(Path("absent.tsv"), dataset, [task])


def test_the_peers_write_such_files(tmp_path, monkeypatch):
    """The benchmark's file of rankings, -1 where there is nothing more, by the ids of the data."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "trm_peers"))
    from lists import write_lists

    dataset = toy_dataset(n_users=3)
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    others = [[item for item in range(40) if item not in task.history] for task in tasks]
    rankings = [others[0][::-1][:4], [*others[1][:2], -1, -1], [-1] * 4]
    np.savez(tmp_path / "data.npz", test_targets_T=[targets[task.id] for task in tasks])
    np.savez(tmp_path / "theirs-0.npz", ranked_TK=rankings)
    write_lists(dataset, tmp_path / "data.npz", tmp_path / "theirs-0")
    last = others[0][-1]
    assert (tmp_path / "theirs-0.tsv").read_text().startswith(f"u0\t{dataset.catalog.ids[last]}\t")
    assert read_external_rankings(tmp_path / "theirs-0.tsv", dataset, tasks) == [rankings[0], others[1][:2], []]
    np.savez(tmp_path / "data.npz", test_targets_T=[0, 0, 0])
    with pytest.raises(SystemExit, match="is of other data than toy"):
        write_lists(dataset, tmp_path / "data.npz", tmp_path / "theirs-0")
