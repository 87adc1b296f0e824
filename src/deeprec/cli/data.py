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
    """Statistics of a data set, what was dropped from it, and titles that several items share."""
    show_dataset(options.dataset(options.config()), options.console)


def show_dataset(dataset: Dataset, console: Console) -> None:
    from deeprec.cli.console import show_table

    rows = ((name.replace("_", " "), _text(value)) for name, value in dataset.describe().items())
    show_table(console, (), rows, dataset.name)
    lines, titles = dataset.report.lines(), dataset.catalog.title_report()
    if titles.empty:
        lines.append(f"{titles.empty:,} items without a title, as {'; '.join(titles.empty_examples)}")
    if titles.ambiguous:
        lines.append(f"{titles.ambiguous:,} items whose title names several, as {'; '.join(titles.ambiguous_examples)}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
