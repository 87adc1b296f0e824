"""`deeprec assets`: weights and data sets that DeepRec fetches."""

from __future__ import annotations

from typing import Annotated

import typer

from deeprec.cli.options import Options, command

app = typer.Typer(no_args_is_help=True, help="Weights and data sets that DeepRec fetches.")


@command(app, "list")
def show_all(options: Options) -> None:
    """Every asset: what it is for, its licence, and whether it is in the cache."""
    from deeprec import assets
    from deeprec.cli.console import show_table

    options.config()
    rows = (
        (each.name, each.kind, each.state, f"{each.size / 1e6:,.0f}", each.licence, each.purpose)
        for each in assets.statuses()
    )
    show_table(options.console, ("name", "kind", "state", "MB", "licence", "used for"), rows)
    options.say(f"Cache: {assets.cache_folder()} (DEEPREC_CACHE moves it)")


@command(app, "get")
def get(
    options: Options,
    names: Annotated[list[str] | None, typer.Argument(help="Default: all.", show_default=False)] = None,
) -> None:
    """Fetch assets into the cache, checked by sha256."""
    from deeprec import assets

    options.config()
    for name in names or assets.ASSETS:
        options.say(f"{name}: {assets.fetch(name, offline=options.offline, read_all=True)}")


@command(app, "path")
def path(options: Options, name: str) -> None:
    """The folder of an asset that is in the cache."""
    from deeprec import assets

    options.config()
    print(assets.fetch(name, offline=True))
