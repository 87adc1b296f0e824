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
    """Train the TRM, or go on with an interrupted training of the same configuration."""
    from deeprec.data.sources import load_dataset
    from deeprec.trm.run import load_or_train_trm

    config = options.config()
    dataset = load_dataset(config.data, offline=options.offline)
    _, folder = load_or_train_trm(
        dataset, config, options.runs, again=again, offline=options.offline, progress=options.progress
    )
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
    from rich.markup import escape
    from rich.table import Table

    from deeprec.config import DEFAULT_PREFERENCE_WEIGHT
    from deeprec.retrieval.retriever import Query
    from deeprec.trm.trm import TRM

    weight = options.config().explore.preference_weight
    trm = TRM.load(folder, offline=options.offline)
    history = tuple(map(trm.catalog.find, item or []))
    weight = DEFAULT_PREFERENCE_WEIGHT if weight is None else weight
    hits = trm.retrieve([Query(history, preference, frozenset(history), weight)], k)[0]
    table = Table("rank", "id", "title", "categories", "score")
    for rank, hit in enumerate(hits, start=1):
        texts = (trm.catalog.ids[hit.item], trm.catalog.titles[hit.item], ", ".join(trm.catalog.categories[hit.item]))
        table.add_row(str(rank), *map(escape, texts), f"{hit.score:.3f}")
    options.console.print(table)
