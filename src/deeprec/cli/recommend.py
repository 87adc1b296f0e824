"""`deeprec recommend`: lists for all users, in a file."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deeprec.cli.filters import FilterOptions
from deeprec.cli.options import Options, SavedTRM


class By(StrEnum):
    TRM = "trm"
    POLICY = "policy"


def recommend(
    options: Options,
    filters: FilterOptions,
    out: Annotated[
        Path, typer.Option(help="File to write, which ends in .parquet, .csv or .jsonl; one that is there is kept.")
    ],
    users: Annotated[
        str, typer.Option(metavar="all|FILE", help="All users of the data, or a file with one user id a line.")
    ] = "all",
    by: Annotated[
        By, typer.Option(help="The TRM without a preference, or explorations of the configuration's policy.")
    ] = By.TRM,
    k: Annotated[
        int | None, typer.Option("--k", "-k", min=1, help="Items for each user; default: explore.answer_size.")
    ] = None,
    trm: SavedTRM = None,
) -> None:
    """Recommend what comes next for every user, and write it to a file.

    A user's history is the whole sequence, held-out items included; its items are not recommended, unless
    serve.exclude or repeats in the data say so. The same command goes on after an interruption: until the end, finished
    parts lie in the folder OUT.parts.
    """
    config = options.config([] if k is None else [f"explore.answer_size={k}"])
    from deeprec.batch.parts import check_file
    from deeprec.batch.recommendations import numbers_of, write_recommendations
    from deeprec.data.dataset import excludes_history
    from deeprec.explore.explorer import Explorer
    from deeprec.policies.adapters import identity_of
    from deeprec.policies.loading import load_policy

    check_file(out)  # before the TRM, whose training takes a while; so are users and filters
    dataset = options.dataset(config)
    chosen = None if users == "all" else _read_users(Path(users))
    count = len(numbers_of(dataset, chosen))
    if trm is None:
        filters.allowed(dataset.catalog)
    found, _ = options.trm(dataset, config, trm)
    write = partial(
        write_recommendations,
        k=config.explore.answer_size,
        users=chosen,
        filter=filters.wanted(found.catalog),
        exclude_history=excludes_history(config.serve.exclude, dataset.exclude_history),
        progress=options.progress,
    )
    if by is By.TRM:
        write(found, dataset, out)
    else:
        explorer = Explorer(load_policy(config, offline=options.offline), found, config=config.explore)
        write(explorer, dataset, out, key=identity_of(config.policy))
    options.say(f"Recommendations for {count:,} users: {out}")


def _read_users(file: Path) -> list[str]:
    from deeprec.data.files import read_bytes
    from deeprec.errors import DeepRecError

    try:
        lines = read_bytes(file).decode("utf-8-sig").replace("\r", "\n").split("\n")
    except UnicodeDecodeError:
        raise DeepRecError(f"{file} is no UTF-8 text: save it as UTF-8, with one user id a line.") from None
    return [user for line in lines if (user := line.strip())]
