"""README, getting started and guides: their commands and code run, their types hold, their tables are the reports'."""

from __future__ import annotations

import glob
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import processes
from command_line import CONFIG, deeprec, write_table

ROOT = Path(__file__).parents[1]
SET_UP = {"make install", "source .venv/bin/activate"}
"""Commands of getting started that CI has run before any test."""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, stand_in: None) -> Iterator[Path]:
    """A folder with a small table that holds the films of the pages, and its configuration; the working directory."""
    folder = tmp_path_factory.mktemp("films")
    table = folder / "interactions.csv"
    write_table(table)
    text = table.read_text()
    for number, title, year in ((0, "Toy Story", 1995), (1, "Star Wars", 1977), (2, "Fargo", 1996)):
        text = re.sub(rf",Film {number},\d+,", f",{title},{year},", text)
    table.write_text(re.sub(r"^u(\d)", r"\1", text, flags=re.MULTILINE))
    (folder / "shop.toml").write_text(CONFIG.format(table=str(table)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def adapted(code: str, policy: str = "scripted") -> str:
    """On the small table, with a policy that needs no model."""
    return code.replace('"ml-100k"', '"interactions.csv"').replace('"smollm2-135m-instruct"', f'"{policy}"')


def test_the_snippet_of_the_readme_runs(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(adapted(code), names)
    assert len(names["trace"].titles) == 10
    assert names["trace"].well_formed
    assert names["table"].columns[:2] == ["user", "item"]
    assert names["table"].height == 10 * 60
    out = capsys.readouterr().out
    assert "Toy Story (1995)" not in names["trace"].titles
    assert "TRM" in out
    assert "NDCG@10" in out


@pytest.mark.llm
def test_the_snippet_of_the_readme_runs_with_the_real_model(films: Path) -> None:
    from deeprec import assets

    if {status.name: status.state for status in assets.statuses()}["smollm2-135m-instruct"] != "ready":
        pytest.skip("SmolLM2 is not in the asset cache")
    (code,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(adapted(code, "smollm2-135m-instruct").replace("users=20", "users=2"), names)
    assert len(names["trace"].titles) == 10


def test_the_snippet_of_the_readme_is_typed(tmp_path: Path) -> None:
    (code,) = blocks("README.md", "python")
    (tmp_path / "snippet.py").write_text(code)
    # With the settings of `make check`, whose cache makes this seconds; they are strict.
    mypy = [sys.executable, "-m", "mypy", str(tmp_path / "snippet.py")]
    done = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "snippet.py").write_text(code.replace("k=10", 'k="ten"'))
    done = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, "mypy sees no types"
    assert "snippet.py" in done.stdout


@pytest.mark.parametrize("pages", [("data",), ("retrieval", "policies", "evaluation")], ids="-".join)
def test_the_code_of_the_guides_runs(films: Path, pages: tuple[str, ...]) -> None:
    names: dict[str, Any] = {}
    for page in pages:
        for code in blocks(f"docs/guides/{page}.md", "python"):
            # Of classes that are not there, or of an environment of its own.
            if not any(part in code for part in ("PolicyContract", "trm.add_items(new)", "from rectools")):
                exec(adapted(code), names)
    if "NewestFirst" in names:
        traces = names["explorer"].run(names["dataset"].tasks("test")[:5])
        assert [trace.faults for trace in traces] == [()] * 5


def test_the_commands_of_getting_started_run(films: Path) -> None:
    lines = [line for block in blocks("docs/getting-started.md", "sh") for line in block.splitlines()]
    commands = [line for line in lines if line not in SET_UP]
    assert len(commands) >= 8
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "deeprec", line
        words = [found for word in words for found in (glob.glob(word) or [word])]
        if "--config" not in words:
            words += ["--config", "shop.toml"]
        if words[0] == "serve":
            serve(words)
            continue
        result = deeprec(*words)
        assert result.code == 0, f"{line}: {result.err}"


def serve(words: list[str]) -> None:
    """The server comes up, and ends by Ctrl-C."""
    command = [*processes.DEEPREC, *words, "--set", "serve.port=0"]
    with subprocess.Popen(command, env=processes.environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert any("Serving on http://127.0.0.1" in line for line in server.stdout)
        finally:
            server.send_signal(signal.SIGINT)
