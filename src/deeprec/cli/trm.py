"""`deeprec trm`: the preference-aware recommender."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.filters import FilterOptions
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


@command(app, "update")
def update(
    options: Options,
    folder: Annotated[Path, typer.Argument(help="Folder of a trained TRM, as `deeprec trm train` names it.")],
    data: Annotated[
        str | None, typer.Option("--data", help="The data as they are now, as data.source; all interactions.")
    ] = None,
) -> None:
    """Add new items to a saved TRM and go on training on new interactions; the saved one stays as it is."""
    config = options.config([] if data is None else [f"data.source={json.dumps(data)}"])
    from deeprec.cli.console import show_table
    from deeprec.data.sources import load_items
    from deeprec.trm.run import load_or_update_trm

    dataset, items = options.dataset(config), load_items(config.data, offline=options.offline)
    _, changes, run = load_or_update_trm(
        folder, dataset, items, config, options.runs, offline=options.offline, progress=options.progress
    )
    rows = (
        ("items known before, in the data", f"{changes.known:,}"),
        ("items known before, not in the data; kept", f"{changes.kept:,}"),
        ("new items with interactions", f"{changes.learned:,}"),
        ("new items with none or too few, by their text", f"{changes.by_text:,}"),
        ("interactions of the data", f"{len(dataset.items_N):,}"),
        ("validation NDCG@10, before and after", f"{changes.ndcg_before:.4f}, {changes.ndcg_after:.4f}"),
    )
    show_table(options.console, (), rows, "update")
    options.say(f"The updated TRM lies in {run / 'trm'}: recommend from it, or serve it with --trm {run / 'trm'}")


@command(app, "recommend")
def recommend(
    options: Options,
    filters: FilterOptions,
    folder: Annotated[Path, typer.Argument(help="Folder of a trained TRM, as `deeprec trm train` names it.")],
    item: Items = None,
    preference: Annotated[str, typer.Option(help='What to look for, as in "Comedy; 1990s".')] = "",
    k: Annotated[int, typer.Option("-k", min=1)] = 10,
) -> None:
    """Recommend for any history, also a new user's, from a saved TRM; no data set is needed."""
    from deeprec.cli.console import show_table
    from deeprec.data.dataset import Task, excludes_history
    from deeprec.explore.settings import first_weight
    from deeprec.retrieval.retriever import Query
    from deeprec.trm.trm import TRM

    config = options.config()
    weight = first_weight(config.explore.preference_weight)
    trm = TRM.load(folder, offline=options.offline)
    catalog = trm.catalog
    excludes = excludes_history(config.serve.exclude, trm.exclude_history)
    task = Task.new(catalog.history(item or []), excludes, filters.allowed(catalog))
    query = Query(task.history, preference, task.excluded, weight, task.include, requested=True)
    hits = trm.retrieve([query], k)[0]
    rows = (
        (str(rank), catalog.ids[i], catalog.titles[i], ", ".join(catalog.categories[i]), f"{score:.3f}")
        for rank, (i, score) in enumerate(((hit.item, hit.score) for hit in hits), start=1)
    )
    show_table(options.console, ("rank", "id", "title", "categories", "score"), rows)
