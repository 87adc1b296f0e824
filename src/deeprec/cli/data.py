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
    from deeprec.data.sources import load_dataset

    config = options.config()
    show_dataset(load_dataset(config.data, offline=options.offline), options.console)


def show_dataset(dataset: Dataset, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(dataset.name), show_header=False)
    for name, value in dataset.describe().items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(part)}" for key, part in value.items())
        table.add_row(name.replace("_", " "), escape(_number(value)))
    console.print(table)
    for line in dataset.report.lines():
        console.print(line, markup=False, highlight=False)
    titles = dataset.catalog.title_report()
    for count, what, examples in (
        (titles.empty, "items without a title", titles.empty_examples),
        (titles.ambiguous, "items whose title names several", titles.ambiguous_examples),
    ):
        if count:
            console.print(f"{count:,} {what}, as {'; '.join(examples)}", markup=False, highlight=False)


def _number(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
