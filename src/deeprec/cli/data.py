"""`deeprec data`: look at interactions and item text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deeprec.cli.options import Options, command

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.data.dataset import Dataset

app = typer.Typer(no_args_is_help=True, help="Look at interactions and item text.")


@command(app, "describe")
def describe(options: Options) -> None:
    """Statistics of a data set, sample items, what was dropped, and titles that several items share."""
    show_dataset(options.dataset(options.config()), options.console)


def show_dataset(dataset: Dataset, console: Console) -> None:
    from deeprec.cli.console import show_table

    said = dataset.describe()
    samples = said.pop("samples")
    show_table(console, (), ((name.replace("_", " "), _text(value)) for name, value in said.items()), dataset.name)
    lines, titles = [_sample(**sample) for sample in samples], dataset.catalog.title_report()
    lines += dataset.report.lines()
    if titles.empty:
        lines.append(f"{titles.empty:,} items without a title, as {'; '.join(titles.empty_examples)}")
    if titles.ambiguous:
        lines.append(f"{titles.ambiguous:,} items whose title names several, as {'; '.join(titles.ambiguous_examples)}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _sample(title: str, year: int | None, categories: list[str]) -> str:
    """An item on one line, with quotes that show where one category ends and the next begins."""
    return f"for instance {title!r}, year {year or 'unknown'}, categories {', '.join(map(repr, categories)) or 'none'}"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
