"""Rankings of systems of other libraries, from files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.plans import Seed, SetPlan, SystemPlan


def external_file(system: SystemPlan, set_: SetPlan, seed: Seed) -> Path:
    """The file of a set and a seed; if it is absent, a DeepRecError says how it is made."""
    names = {"set": set_.label, "source": set_.source, "seed": str(seed or 0)}

    def filled(text: str) -> str:
        return re.sub(r"{(set|source|seed)}", lambda match: names[match[1]], text)

    path = Path(filled(str(system.file)))
    if not path.is_file():
        hint = f"; this makes it: {filled(system.make)}" if system.make else "."
        raise DeepRecError(f"System {system.name!r}: there is no file {path} with its rankings{hint}")
    return path


def read_external_rankings(path: Path, dataset: Dataset, tasks: Sequence[Task]) -> list[list[ItemIdx]]:
    """The ranking of each task from a file of lines `user<TAB>item<TAB>item...`, by the ids of the data, best first."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeepRecError(f"{path} can't be read as rankings ({error}): check the path of `file`.") from None
    positions = {str(item): ItemIdx(position) for position, item in enumerate(dataset.catalog.ids)}
    found: dict[str, list[ItemIdx]] = {}
    for number, line in enumerate(lines, start=1):
        user, *items = line.split("\t")
        if unknown := [item for item in items if item not in positions]:
            raise DeepRecError(f"{path}, line {number}: {dataset.name} has no item {unknown[0]!r}.")
        if user in found or len(set(items)) < len(items):
            raise DeepRecError(f"{path}, line {number}: user {user!r}, or one of the items, comes twice.")
        found[user] = [positions[item] for item in items]
    for task in tasks:
        if task.user not in found:
            raise DeepRecError(f"{path} has no line for user {task.user!r}: it needs one for each.")
        if seen := [dataset.catalog.ids[item] for item in sorted(task.excluded & {*found[task.user]})]:
            raise DeepRecError(
                f"{path}: user {task.user!r} has item {seen[0]!r} in the history: leave the history out."
            )
    return [found[task.user] for task in tasks]
