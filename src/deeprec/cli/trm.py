"""`deeprec trm`: the preference-aware recommender."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.options import Items, Options, command

app = typer.Typer(no_args_is_help=True, help="The preference-aware recommender.")


@command(app, "train")
def train(
    options: Options,
    again: Annotated[bool, typer.Option("--again", help="Train even where a finished run exists.")] = False,
) -> None:
    """Train the TRM, or resume an interrupted training of the same configuration."""
    config = options.config()
    _, folder = options.trm(options.dataset(config), config, again=again)
    options.say(f"The trained TRM lies in {folder / 'trm'}")


@command(app, "recommend")
def recommend(
    options: Options,
    folder: Annotated[Path, typer.Argument(help="Folder of a trained TRM, as `deeprec trm train` names it.")],
    item: Items = None,
    preference: Annotated[str, typer.Option(help='What to look for, as in "Comedy; 1990s".')] = "",
    k: Annotated[int, typer.Option("-k", min=1)] = 10,
) -> None:
    """Recommend for any history, also a new user's, from a saved TRM; no data set is needed."""
    from deeprec.cli.console import show_table
    from deeprec.explore.settings import first_weight
    from deeprec.retrieval.retriever import Query
    from deeprec.trm.trm import TRM

    weight = first_weight(options.config().explore.preference_weight)
    trm = TRM.load(folder, offline=options.offline)
    catalog = trm.catalog
    history = tuple(map(catalog.find, item or []))
    hits = trm.retrieve([Query(history, preference, frozenset(history), weight, requested=True)], k)[0]
    rows = (
        (str(rank), catalog.ids[i], catalog.titles[i], ", ".join(catalog.categories[i]), f"{score:.3f}")
        for rank, (i, score) in enumerate(((hit.item, hit.score) for hit in hits), start=1)
    )
    show_table(options.console, ("rank", "id", "title", "categories", "score"), rows)
