"""MovieLens as GroupLens ships it: the layouts of 100K, 1M, 10M, and of 20M, 25M, 32M and latest."""

from __future__ import annotations

import polars as pl

from deeprec.config import DataConfig
from deeprec.data.files import Raw, read_fields, take
from deeprec.data.finding import LAYOUTS, Found
from deeprec.data.report import LINE, Ledger
from deeprec.errors import DeepRecError

# The flags of u.item in their order (u.genre beside it says the same).
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_RATING = ("user", "item", "rating", "order")

OWN_COLUMNS = {"user": "userId", "item": "movieId", "time": "timestamp", "title": "title", "categories": "genres"}
"""The columns of the CSV layouts by what they hold."""


def read_movielens(found: Found, config: DataConfig, ledger: Ledger) -> Raw:
    """Ratings of any value are interactions. 'Toy Story (1995)' is split into title and year; anything after the year,
    as in '(1995) (V)', is dropped. Where names are not UTF-8 they are latin-1, as in 100K and 1M."""
    (path,), (items,) = found.interactions, found.items
    separator = config.columns.category_separator or "|"
    if path.name == "u.data":
        interactions = read_fields(path, "\t", ledger, _RATING)
        names = ("item", "title", "released", "released_video", "url", *_GENRES_100K)
        movies = read_fields(items, "|", ledger, names, encoding="latin-1")
        flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
        genres = pl.concat_list(flags).list.drop_nulls()
    elif path.name == "ratings.dat":
        interactions = read_fields(path, "::", ledger, _RATING)
        movies = read_fields(items, "::", ledger, ("item", "title", "genres"), encoding="latin-1")
        genres = pl.col("genres").str.split(separator)
    elif path.name in LAYOUTS:
        mend = "give the file as GroupLens ships it, or set data.format to 'table'"
        ratings = read_fields(path, ",", ledger, quoted=True)
        interactions = take(ratings, ledger.label(path), mend, user="userId", item="movieId", order="timestamp")
        movies = read_fields(items, ",", ledger, quoted=True)
        movies = take(movies, ledger.label(items), mend, item="movieId", title="title", genres="genres")
        genres = pl.col("genres").str.split(separator)
    else:
        known = ", ".join(LAYOUTS)
        raise DeepRecError(f"{path.name} is not a MovieLens file: give one of {known}, or set data.format.")
    dated = pl.col("title").str.extract_groups(r"^(?<title>.*?)\s*\((?<year>\d{4})\)\s*(?:\(.*\))?$")
    return Raw(
        ledger.label(path),
        ledger.label(items),
        interactions.select(LINE, "user", "item", "order"),
        movies.select(
            LINE,
            "item",
            title=pl.coalesce(dated.struct.field("title"), "title"),
            year=dated.struct.field("year").fill_null(""),
            brand=pl.lit(""),
            description=pl.lit(""),
            categories=genres,
        ),
    )
