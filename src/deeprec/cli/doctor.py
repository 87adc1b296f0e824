"""`deeprec doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

from deeprec.cli.options import Options


def doctor(options: Options) -> None:
    """Versions, processor, GPU, assets, and what is missing."""
    from rich.markup import escape
    from rich.table import Table

    from deeprec.cli.examination import examine

    options.config()
    table = Table("what", "found", "", "hint")
    colours = {"ok": "green", "warn": "yellow", "missing": "red"}
    for finding in examine():
        mark = f"[{colours[finding.level]}]{finding.level}[/]"
        table.add_row(finding.name, escape(finding.value), mark, escape(finding.hint))
    options.console.print(table)
