"""The generated pages of the documentation say what the code does."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
import typer

from deeprec.config import Config, subsection

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "cli.md", "api.md"])
def test_no_page_is_stale(generate: ModuleType, name: str) -> None:
    assert set(generate.PAGES) == {"configuration.md", "cli.md", "api.md"}
    assert (FOLDER / name).read_text(encoding="utf-8") == generate.PAGES[name](), (
        "run `python docs/reference/generate.py`"
    )


def test_one_call_writes_all_pages(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"a.md": lambda: "A", "b.md": lambda: "B"})
    generate.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.md": "A", "b.md": "B"}


def test_every_key_has_a_row(generate: ModuleType) -> None:
    page = generate.configuration()
    for section in (Config().trm, Config().data, Config().data.columns, Config().train.sft, Config().train.stages[0]):
        for name, field in type(section).model_fields.items():
            assert (f"\n| `{name}` | " in page) == (subsection(field.annotation) is None)
    assert "| `cutoffs` | `[1, 5, 10]` | rising whole numbers" in page
    assert "| `minutes` | none | start no epoch" in page
    assert "(`auto`, `exact`, `hnsw`, `ivfpq`) |" in page
    assert page.index("## data\n") < page.index("## data.columns") < page.index("## trm")
    assert '[[train.stages]]\nname = "cold-start"' in page


def toy_app() -> typer.Typer:
    app = typer.Typer(help="What it is for.")
    group = typer.Typer(help="A group.")
    app.add_typer(group, name="group")

    @app.command()
    def greet(
        name: Annotated[str, typer.Argument(help="Whom.")],
        files: Annotated[list[Path] | None, typer.Argument()] = None,
        k: Annotated[int, typer.Option("-k", min=1, help="How often.")] = 3,
        config: Annotated[Path | None, typer.Option("--config", "-c", help="A | file.")] = None,
        loud: bool = False,
        tone: Literal["high", "low"] = "high",
        minutes: Annotated[float | None, typer.Option("--train", metavar="MINUTES")] = None,
        secret: Annotated[str, typer.Option(hidden=True)] = "",
    ) -> None:
        """Say hello.

        More of it.
        """

    @app.callback(invoke_without_command=True)
    def root(version: Annotated[bool, typer.Option("--version", help="Say which.")] = False) -> None: ...

    @group.command("run-it")
    def run(loud: bool = False) -> None:
        """Run."""

    @app.command(hidden=True)
    def unseen() -> None:
        """Hidden."""

    return app


def test_the_page_of_commands(generate: ModuleType) -> None:
    page = generate.cli(toy_app())
    assert "# Commands\n\nWhat it is for." in page
    assert "## deeprec greet\n\nSay hello.\n\nMore of it.\n" in page
    assert "\ndeeprec greet [OPTIONS] NAME [FILES...]\n" in page
    for row in (
        "| `NAME` | Whom. |",
        "| `[FILES...]` |  |",
        "| `-k INTEGER` | How often. Default: `3`. |",
        "| `--config, -c PATH` | A \\| file. |",
        "| `--tone TEXT` | One of `high`, `low`. Default: `high`. |",
        "| `--train MINUTES` |  |",
    ):
        assert row in page, row
    assert "secret" not in page
    assert "unseen" not in page
    assert page.endswith("## deeprec group run-it\n\nRun.\n\n```\ndeeprec group run-it [OPTIONS]\n```\n")
    assert "What it is for.\n\n| option | meaning |\n| --- | --- |\n| `--version` | Say which. |\n" in page
    assert "## Options of every command\n\n| option | meaning |\n| --- | --- |\n| `--loud` |  |\n" in page
    assert page.count("`--loud`") == 1


@dataclass
class Toy:
    """A toy.

    Attributes:
        width: of it,
            in metres.
    """

    width: float = 1.0

    def scale(self, *, factor: float = 2.0, reason: str | None = None, a_long_name: int = 0, other: int = 1) -> Toy:
        """A larger one.

        Args:
            factor: how much.

        Raises:
            ValueError: it is negative, which is a sentence that goes on for so long that it does not fit into one line.
        """
        return Toy(self.width * factor)

    @cached_property
    def area(self) -> float:
        """Square metres."""
        return self.width**2

    @classmethod
    def make(cls) -> Toy:
        return cls()

    def _hidden(self) -> None:
        """No one sees it."""


def test_the_page_of_python(generate: ModuleType) -> None:
    page = generate.api({"Toy": Toy, "toy_app": toy_app})
    assert "## Toy\n\n```python\nToy(width: float = 1.0)\n```\n\nA toy.\n\n" in page
    assert "**Attributes**\n\n- `width`: of it, in metres." in page
    assert "scale(\n    *,\n    factor: float = 2.0,\n    reason: str | None = None,\n" in page
    assert "\n) -> Toy\n" in page
    assert "- `ValueError`: it is negative, which is a sentence" in page
    assert "### Toy.area\n\n```python\narea: float\n```\n\nSquare metres." in page
    assert "make() -> Toy" in page
    assert "hidden" not in page
    assert "## toy_app\n\n```python\ntoy_app() -> typer.Typer\n```" in page
    prose = [line for line in page.split("\n") if not line.startswith("|")]
    assert max(map(len, prose)) <= 100
