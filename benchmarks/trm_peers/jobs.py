"""Which systems there are, their environments, and one process for each run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from deeprec.config import load_config

BUDGETED = ("seed", "epochs", "minutes")  # of the TRM: given by the budget, not by its settings
HERE = Path(__file__).resolve().parent
SETTINGS: dict[str, dict[str, Any]] = tomllib.loads((HERE / "settings.toml").read_text(encoding="utf-8"))
SYSTEMS = [name for name in SETTINGS if name != "rectools-popularity"]  # that one checks ours
SEEDLESS = ("popularity", "rectools-popularity", "rectools-ease", "rectools-itemknn")


def settings_of(system: str) -> dict[str, Any]:
    return {name: value for name, value in SETTINGS[system].items() if name != "grid"}


def reads_history(system: str) -> bool:
    """Whether `history` is one of its settings: the TRM's and the peers' encoders."""
    return system == "trm" or "history" in SETTINGS[system]


def environment_of(system: str) -> str:
    """ "rectools", "recbole" or "deeprec"."""
    library = system.partition("-")[0]
    return library if library in ("rectools", "recbole") else "deeprec"


def python_of(environment: str) -> Path:
    """The environment's interpreter; a peer's environment is made, or made anew where its pins changed."""
    if environment == "deeprec":
        return Path(sys.executable)
    folder = HERE / "envs" / environment
    python = folder / "bin" / "python"
    pins = (HERE / f"{environment}.txt").read_text(encoding="utf-8")
    done = folder / ".installed"
    if not done.exists() or done.read_text(encoding="utf-8") != pins:
        print(f"installing {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
        subprocess.run([*pip, torch], check=True)  # alone first, so that a local CPU build is taken
        subprocess.run([*pip, "--requirement", HERE / f"{environment}.txt"], check=True)
        done.write_text(pins, encoding="utf-8")
    return python


def run(
    system: str,
    *,
    source: str,
    data: Path,
    out: Path,
    seed: int,
    budget: float,
    patience: int,
    threads: int,
    settings: dict[str, Any],
    last: int | None = None,
) -> dict[str, Any] | None:
    """The record of a run: from `<out>.json` where the same job is done, else of a new process; None if it failed."""
    if system == "trm":  # what the defaults are today decides whether a finished run still counts
        settings = load_config().trm.model_dump(exclude=set(BUDGETED), exclude_none=True) | settings
    asked = {"seed": seed, "budget": budget, "patience": patience, "threads": threads, "settings": settings}
    record = Path(f"{out}.json")
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        if all(found[name] == value for name, value in asked.items()):
            return found
        record.unlink()
    environment = environment_of(system)
    script = HERE / f"peer_{'trm' if environment == 'deeprec' else environment}.py"
    options = {"system": system, "source": source, "data": data, "out": out, **asked, "settings": json.dumps(settings)}
    if last is not None:
        options["last"] = last
    command = [python_of(environment), script]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    count = str(threads)
    limits = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count}
    log = Path(f"{out}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{out.parent.name}: {system}, seed {seed}, budget {budget:g} s", flush=True)
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **limits})
    if done.returncode:
        print(f"failed with status {done.returncode}, see {log}", flush=True)
        return None
    return json.loads(record.read_text(encoding="utf-8"))
