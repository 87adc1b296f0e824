"""The README and the report on trainings say what the committed reports and logs do, and the README's code runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deeprec.config import Config
from deeprec.explore.explorer import Explorer
from deeprec.policies.text import TextPolicy
from toys import toy_dataset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return script("readme_table")


def test_the_main_table_is_that_of_the_report(table: ModuleType) -> None:
    _, shown, after = table.parts(table.README.read_text(encoding="utf-8"))
    assert after, "the README has lost a mark of its table"
    cut = table.cut(table.REPORT.read_text(encoding="utf-8"))
    assert shown == cut, "run python benchmarks/readme_table.py"
    assert "| TRM alone |" in cut


def test_what_is_cut(table: ModuleType) -> None:
    def row(name: str, change: str) -> str:
        return f"| {name} | 9 | 1 | 0.1000 [0.0, 0.2] | 0.2000 [0.1, 0.3] | 0.3 | {change} |\n"

    changes = dict.fromkeys(table.SYSTEMS, "+0.01 [+0.00, +0.02] (+1.0 % [+0.0, +2.0])") | {"TRM alone": "baseline"}
    rows = "".join(row(name, change) for name, change in ({"other": "-"} | changes).items())
    report = (
        "# main\n\nabout\n\n- machines: one\n- dates: 2030-01-02 03:04 UTC to b\n\n## ml-100k\n\n3 test users.\n\n"
        f"| system | users | seeds | NDCG@10 | Recall@10 | MRR@10 | x |\n| --- |\n{rows}\n- No one is better.\n\n"
        f"## other\n\n| system |\n| --- |\n{row('TRM alone', 'of another set')}\n"
    )
    cut = table.cut(report)
    assert cut.startswith("| ml-100k | users | NDCG@10 | Recall@10 | % to TRM alone |\n| --- |")
    assert "| TRM alone | 9 | 0.1000 | 0.2000 | baseline |\n" in cut
    assert "| SmolLM2-135M, trained | 9 | 0.1000 | 0.2000 | +1.0 [+0.0, +2.0] |\n" in cut
    assert "other" not in cut
    assert "; one; 2030-01-02;\n[report](docs/results/main/report.md).\n" in cut


def test_the_report_on_trainings_is_that_of_their_logs() -> None:
    trainings = script("training_report")
    report = trainings.report()
    assert trainings.REPORT.read_text(encoding="utf-8") == report, "run python benchmarks/training_report.py"
    assert "| cold-start | reward |" in report


def test_its_own_retriever_and_policy_explore_without_a_fault(table: ModuleType) -> None:
    _, code = re.findall(r"```python\n(.*?)```", table.README.read_text(encoding="utf-8"), re.DOTALL)
    dataset = toy_dataset()
    names: dict[str, Any] = {"Explorer": Explorer, "TextPolicy": TextPolicy, "dataset": dataset, "config": Config()}
    exec(code, names)
    traces = names["explorer"].run(dataset.tasks("test")[:5])
    assert [trace.faults for trace in traces] == [()] * 5
    assert all(trace.well_formed and len(trace.turns) == 2 for trace in traces)
