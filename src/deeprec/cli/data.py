"""`deeprec data`: look at interactions and item text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deeprec.cli.options import Options, command

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.config import Exclude
    from deeprec.data.dataset import Dataset

app = typer.Typer(no_args_is_help=True, help="Look at interactions and item text.")


@command(app, "describe")
def describe(options: Options) -> None:
    """Statistics of a data set, sample items, what was dropped, and titles that several items share."""
    config = options.config()
    show_dataset(options.dataset(config), options.console, config.eval.exclude)


def show_dataset(dataset: Dataset, console: Console, exclude: Exclude | None = None) -> None:
    """With how many targets repeat an item of their history, and whether an evaluation excludes it."""
    from deeprec.cli.console import show_table
    from deeprec.data.dataset import excludes_history
    from deeprec.data.report import repeats_note

    said = dataset.describe()
    samples = said.pop("samples")
    show_table(console, (), ((name.replace("_", " "), _text(value)) for name, value in said.items()), dataset.name)
    lines, titles = [_sample(**sample) for sample in samples], dataset.catalog.title_report()
    lines += dataset.report.lines()
    if titles.empty:
        lines.append(f"{titles.empty:,} items without a title, as {'; '.join(titles.empty_examples)}")
    if titles.ambiguous:
        lines.append(f"{titles.ambiguous:,} items whose title names several, as {'; '.join(titles.ambiguous_examples)}")
    excludes = excludes_history(exclude, dataset.exclude_history)
    for split, repeated in said["repeated_targets"].items():
        if note := repeats_note(repeated, len(dataset.targets(split)), split, exclude_history=excludes):
            lines.append(note)
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _sample(title: str, year: int | None, categories: list[str]) -> str:
    """An item on one line, with quotes that show where one category ends and the next begins."""
    return f"for instance {title!r}, year {year or 'unknown'}, categories {', '.join(map(repr, categories)) or 'none'}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
