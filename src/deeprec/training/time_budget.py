"""The time limit of a training: shared among its parts, and kept in its folder across interruptions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from deeprec.training.processes import broadcast

_FILE = "time_budget.json"


class TimeBudget:
    """Decides when a part of a training has used up its time. All processes follow the main one's clock.

    A part's time limit is the remaining time × its share of the remaining planned explorations. Time that a part leaves
    over, or takes beyond its limit to end its last step, changes what later parts get.

    Seconds and steps are kept in the training's folder, so time spent before an interruption counts. `planned` has the
    explorations of each part, in order: demonstrations of SFT, explorations of a stage. None minutes are no limit.
    """

    def __init__(self, folder: Path, planned: Mapping[str, int], minutes: float | None) -> None:
        self.folder, self.planned = folder, planned
        self.seconds = math.inf if minutes is None else 60 * minutes
        self.parts = _read(folder)
        self.share = 0.0  # of the current part's time that has passed; 0 without a limit

    def begin(self, part: str, steps: int) -> bool:
        """Begin or continue a part of so many steps; False where no time is left for it."""
        self.part, self._since = part, monotonic()
        names = list(self.planned)
        first = names.index(part)
        left = self.seconds - sum(map(self._spent, names[:first]))
        left, self._before = broadcast((left, self._spent(part)))
        if left <= 0:
            self._keep(0, steps)
            return False
        self.limit = left * self.planned[part] / sum(self.planned[name] for name in names[first:])
        self.share = self._before / self.limit
        return True

    def end_step(self, step: int, steps: int) -> bool:
        """Record that so many steps of the part are done; True if its time is up."""
        self._keep(step, steps)
        self.share = broadcast(self._spent(self.part) / self.limit)
        return self.share >= 1

    def expected_steps(self, step: int, steps: int) -> int:
        """How many of the steps fit into the time limit, at the pace of those that are done."""
        return min(steps, max(step, math.ceil(step / self.share))) if self.share else steps

    def _spent(self, part: str) -> float:
        return self.parts[part]["seconds"] if part in self.parts else 0.0

    def _keep(self, step: int, steps: int) -> None:
        seconds = self._before + monotonic() - self._since
        self.parts[self.part] = {"seconds": round(seconds, 3), "steps": step, "of": steps}
        if os.environ.get("RANK", "0") == "0":  # in the main process, or the only one
            scratch = self.folder / "time_budget.part"
            scratch.write_text(json.dumps(self.parts, indent=2) + "\n", encoding="utf-8")
            os.replace(scratch, self.folder / _FILE)


def time_spent(folder: Path) -> str:
    """Steps of each part of a folder's training and minutes in all, in words; empty where nothing was kept."""
    parts = _read(folder)
    minutes = sum(part["seconds"] for part in parts.values()) / 60
    steps = [f"{name} {part['steps']} of {part['of']} steps" for name, part in parts.items()]
    return f"{', '.join(steps)}; {minutes:.1f} minutes" if parts else ""


def _read(folder: Path) -> dict[str, Any]:
    file = folder / _FILE
    return dict(json.loads(file.read_bytes())) if file.is_file() else {}
