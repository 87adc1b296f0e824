"""The TRM against the sequential recommenders of RecTools and RecBole: same data, same budget, same metric code.

    .venv/bin/python benchmarks/trm_peers/run.py --tune      (once: the best point of every grid, on validation)
    .venv/bin/python benchmarks/trm_peers/run.py             (all runs and their lists, then report.md and report.json)

Finished runs are kept: after an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from export import export, load
from jobs import SEEDLESS, SETTINGS, SYSTEMS, reads_history, run, settings_of
from lists import write_lists
from report import write_report

BUDGET = 1800.0


def main() -> None:
    args = _arguments()
    budgets, histories = _by_set(args.budget), _by_set(args.history)
    for source in args.sets:
        name = Path(source).name
        folder, budget = args.out / name, budgets.get(name, BUDGET)
        data, dataset = folder / "data.npz", load(source)
        if not data.exists():
            folder.mkdir(parents=True, exist_ok=True)
            export(dataset, data)
        common = {"source": source, "data": data, "budget": budget, "patience": args.patience, "threads": args.threads}
        for system in args.systems:
            history = {"history": int(histories[name])} if name in histories and reads_history(system) else {}
            if args.tune:
                _tune(system, args.out, name, history, common)
                continue
            settings = _tuned(args.out).get(args.tuned_on or name, {}).get(system) or settings_of(system)
            for seed in args.seeds[:1] if system in SEEDLESS else args.seeds:
                out = folder / f"{system}-{seed}"
                if run(system, out=out, seed=seed, settings=settings | history, **common) is not None:
                    write_lists(dataset, data, out)
    if not args.tune:
        write_report(args.out, [Path(source).name for source in args.sets], args.systems, args.seeds)
        print(f"report: {args.out / 'report.md'}")


def _by_set(texts: list[str]) -> dict[str, float]:
    return {name: float(value) for name, _, value in (text.partition("=") for text in texts)}


def _tune(system: str, out: Path, name: str, history: dict[str, int], common: dict[str, Any]) -> None:
    """Run the grid with seed 0 and write the point of the best validation NDCG@10 into tuned.toml.

    Its run is the system's run with seed 0 too.
    """
    best, best_ndcg, best_run = None, -1.0, Path()
    for number, point in enumerate(SETTINGS[system].get("grid", [])):
        settings = settings_of(system) | point | history
        folder = out / name / "tune"
        record = run(system, out=folder / f"{system}-{number}", seed=0, settings=settings, **common)
        if record is not None and record["best_ndcg"] > best_ndcg:
            best, best_ndcg, best_run = settings_of(system) | point, record["best_ndcg"], folder / f"{system}-{number}"
    if best is not None:
        tuned = _tuned(out)
        tuned.setdefault(name, {})[system] = best
        (out / "tuned.toml").write_text(tomli_w.dumps(tuned), encoding="utf-8")
        for path in best_run.parent.glob(f"{best_run.name}*"):
            to = out / name / path.name.replace(best_run.name, f"{system}-0")
            _ = shutil.copytree(path, to, dirs_exist_ok=True) if path.is_dir() else shutil.copy2(path, to)
        print(f"{name}: {system} tuned to validation NDCG@10 {best_ndcg:.4f} by {best}", flush=True)


def _tuned(out: Path) -> dict[str, Any]:
    path = out / "tuned.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = ["ml-100k", "../shared/data/ml-1m", "../shared/data/amazon-scientific-2018"]
    parser.add_argument("--sets", nargs="+", default=sets, help="assets or folders")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=list(SETTINGS), metavar="SYSTEM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", nargs="+", default=[], metavar="SET=SECONDS", help=f"processor s a run, {BUDGET:g}")
    parser.add_argument("--history", nargs="+", default=[], metavar="SET=ITEMS", help="default: by settings.toml, 50")
    parser.add_argument("--patience", type=int, default=10, help="validations without a better NDCG@10")
    parser.add_argument("--tune", action="store_true", help="search the grids of settings.toml, with seed 0")
    parser.add_argument("--tuned-on", metavar="SET", help="take the settings that --tune found on this set")
    parser.add_argument("--out", type=Path, default=Path("runs/trm_peers"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
