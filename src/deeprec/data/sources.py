"""From a source to a Dataset: find the files, read their format, check the rows, filter, number users and items."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec import assets
from deeprec.config import Columns, DataConfig, load_config
from deeprec.data.amazon import OWN_COLUMNS as AMAZON
from deeprec.data.amazon import read_amazon2023
from deeprec.data.catalog import Catalog, UserId, build_catalog
from deeprec.data.dataset import Dataset, Split, k_core, starts_of
from deeprec.data.files import Raw
from deeprec.data.finding import find_files
from deeprec.data.ids import match_whole_numbers
from deeprec.data.item_text import clean_items
from deeprec.data.movielens import OWN_COLUMNS as MOVIELENS
from deeprec.data.movielens import read_movielens
from deeprec.data.report import LINE, BadKind, Ledger, LoadReport, position, shorten
from deeprec.data.table import read_recbole, read_table
from deeprec.data.times import read_times
from deeprec.errors import DeepRecError

_T = TypeVar("_T")


def load_dataset(source: DataConfig | str | Path, *, offline: bool = False) -> Dataset:
    """Read interactions and item text into a Dataset.

    A user's interactions are ordered by time or position, equal ones as in the file. Users and items are numbered by
    their ids, shorter ones first, then alphabetically, so that whole numbers count up. Bad rows are dropped and
    reported, up to `max_bad_share` of a file; then come `repeats`, then the cores. Times become seconds.

    `source` is an asset's name ("ml-100k"), a folder, an interaction file, a configuration file (`shop.toml`, whose
    [data] section names the source, the columns and the rest), or that section itself. `offline` downloads no asset.
    DeepRecError if a file is missing, damaged or lacks a column, or too many of its rows are bad.
    """
    return _load(source, offline, _assemble)


def load_items(source: DataConfig | str | Path, *, offline: bool = False) -> Catalog:
    """All items of a source, also those that nobody chose and `load_dataset` leaves out; arguments and errors as there.
    Their order is that of the item file."""

    def assemble(name: str, raw: Raw, config: DataConfig, ledger: Ledger) -> Catalog:
        _, items = match_whole_numbers(raw, ledger)
        items = _check_items(raw, items, ledger)
        ledger.check(config.max_bad_share)
        return _catalog(items, config)

    return _load(source, offline, assemble, every_item=True)


def _load(
    source: DataConfig | str | Path,
    offline: bool,
    assemble: Callable[[str, Raw, DataConfig, Ledger], _T],
    *,
    every_item: bool = False,
) -> _T:
    if isinstance(source, DataConfig):
        config = source
    elif Path(source).suffix == ".toml":
        config = load_config(Path(source).expanduser()).data
    else:
        config = DataConfig(source=str(source))
    path = Path(config.source).expanduser()
    name = path.resolve().name.partition(".")[0]
    try:
        if not path.exists() and path.name == config.source and not path.suffix:
            path = _fetch(config.source, offline)
        ledger = Ledger(None if config.quoting == "auto" else config.quoting, config.header)
        return assemble(name, _read(path, config, ledger, every_item), config, ledger)
    except (OSError, pl.exceptions.PolarsError, UnicodeError, EOFError, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeepRecError(f"{path} could not be read ({reason}): check that its files are whole.") from error


def _fetch(name: str, offline: bool) -> Path:
    try:
        return assets.fetch(name, offline=offline)
    except DeepRecError as error:
        if name in assets.ASSETS:
            raise
        known = ", ".join(assets.ASSETS)
        raise DeepRecError(
            f"There is no file or folder {name} in {Path.cwd()}, and no asset of this name ({known}): "
            "check data.source, and if it was moved, name its place with --set data.source=PATH."
        ) from error


def _read(path: Path, config: DataConfig, ledger: Ledger, every_item: bool) -> Raw:
    found = find_files(path, config)
    ledger.label(*found.interactions, *found.items)
    if found.form == "table":
        return read_table(found, config, ledger)
    if not found.items:
        raise DeepRecError(f"There is no item file beside {found.interactions[0]}: name it with data.items.")
    if len(found.items) > 1 or (found.form == "movielens" and len(found.interactions) > 1):
        names = ", ".join(map(ledger.label, (*found.interactions, *found.items)))
        raise DeepRecError(f"Files read as {found.form} are one of each kind, not {names}: name one of each.")
    if found.form == "recbole":
        return read_recbole(found, config, ledger)
    own = {"movielens": MOVIELENS, "amazon2023": AMAZON}[found.form]
    usual = Columns()
    for role, name in config.columns:
        if name not in (getattr(usual, role), own.get(role)) and role not in ("category_separator", "time_format"):
            raise DeepRecError(
                f"data.columns.{role} = {name!r} is for tables and RecBole files, and {found.interactions[0].name} is "
                f"read as {found.form}: leave it out, or set data.format to 'table'."
            )
    if found.form == "movielens":
        return read_movielens(found, config, ledger)
    return read_amazon2023(found, config, ledger, every_item=every_item)


def _assemble(name: str, raw: Raw, config: DataConfig, ledger: Ledger) -> Dataset:
    interactions, items = match_whole_numbers(raw, ledger)
    items = _check_items(raw, items, ledger)
    # Before the interactions are checked, which would be blamed for items that are missing because of bad item rows.
    ledger.check(config.max_bad_share)
    interactions = _check_interactions(raw, interactions, items, config, ledger)
    ledger.check(config.max_bad_share)
    if interactions.is_empty():
        raise DeepRecError(f"{raw.interactions_file} has no usable row: see that it has interactions.")

    is_split = "part" in interactions.columns
    interactions = interactions.sort(*["part"] * is_split, "order", maintain_order=True)
    pair = pl.struct("user", "item")
    repeats = interactions.height - interactions.select(pair.n_unique()).item()
    if config.repeats != "keep":
        kept = pair.is_first_distinct() if config.repeats == "first" else pair.is_last_distinct()
        interactions = interactions.filter(kept)

    n_users, n_items = interactions["user"].n_unique(), interactions["item"].n_unique()
    core = k_core(interactions, config.user_core, config.item_core)
    if core.is_empty():
        raise DeepRecError(
            f"No interaction of {raw.interactions_file} is left ({interactions.height:,} of {n_users:,} users, "
            f"{n_items:,} items) after data.user_core = {config.user_core} and data.item_core = {config.item_core}: "
            "lower them."
        )
    users, items_in = _number(core["user"]), _number(core["item"])
    coded = core.join(users, on="user", maintain_order="left").join(items_in, on="item", maintain_order="left")
    coded = coded.sort("user_number", maintain_order=True)
    text = items_in.join(items, on="item", how="left", maintain_order="left")
    catalog = _catalog(text, config)
    title_report = catalog.title_report()
    if title_report.empty:
        first = title_report.empty_examples[0]
        ledger.notes.append(f"{title_report.empty:,} items of {raw.items_file} have no title, {first!r} first")
    if is_split and config.time_split is not None:
        raise DeepRecError(f"{raw.interactions_file} belongs to a split of its own: leave out data.time_split.")
    times_N = coded["order"].to_numpy().astype(np.float64) if raw.ordered_by == "time" else None
    dataset = Dataset(
        name=name,
        catalog=catalog,
        users=tuple(map(UserId, users["user"].to_list())),
        items_N=coded["item_number"].to_numpy().astype(np.int32),
        starts_U1=starts_of(np.bincount(coded["user_number"].to_numpy(), minlength=users.height)),
        parts_U2=_parts(coded, users.height, ledger) if is_split else None,
        times_N=times_N,
        cuts=_cuts(times_N, config, raw),
        report=LoadReport(
            dict(ledger.rows),
            ledger.bad,
            repeats,
            config.repeats,
            filtered_users=n_users - users.height,
            filtered_items=n_items - items_in.height,
            filtered_interactions=interactions.height - core.height,
            notes=tuple(ledger.notes),
        ),
    )
    repeated = config.repeats == "keep" and any(map(dataset.repeated_targets, get_args(Split)))
    return replace(dataset, exclude_history=not repeated)


def _catalog(items: pl.DataFrame, config: DataConfig) -> Catalog:
    text = items.select("item", "title", "year", "brand", pl.col("categories").fill_null([]), "description")
    ids, titles, years, brands, categories, descriptions = (column.to_list() for column in text)
    return build_catalog(ids, titles, years, brands, categories, descriptions, config.title_chars)


def _parts(coded: pl.DataFrame, n_users: int, ledger: Ledger) -> NDArray[np.int64]:
    """Where validation and test begin in each user's sequence (U, 2).

    Without a part for validation, the last item of the training part is the validation target.
    """
    counts = [np.bincount(coded.filter(pl.col("part") == part)["user_number"], minlength=n_users) for part in range(3)]
    train_U, validation_U, test_U = counts
    begin_U, said = train_U, f"{validation_U.sum():,}"
    if not validation_U.any():
        begin_U, said = np.maximum(train_U - 1, np.minimum(train_U, 1)), "each user's last item of these"
    ledger.notes.append(
        f"the files' own split is used: {train_U.sum():,} interactions for training, {said} for validation, "
        f"{test_U.sum():,} for testing; a user's first item of a part is its target"
    )
    return np.stack([begin_U, train_U + validation_U], axis=1).astype(np.int64)


def _cuts(times_N: NDArray[np.float64] | None, config: DataConfig, raw: Raw) -> tuple[float, float] | None:
    """The times at which training and validation end."""
    if config.time_split is None:
        return None
    if times_N is None:
        raise DeepRecError(f"{raw.interactions_file} has no times to split by: leave out data.time_split.")
    first, second = np.quantile(times_N, config.time_split, method="higher").tolist()
    if not times_N.min() < first < second:
        few = f"The times of {raw.interactions_file} are too few to split at {list(config.time_split)}"
        raise DeepRecError(f"{few}: leave out data.time_split, or choose other shares.")
    return first, second


def _check_items(raw: Raw, items: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Item rows with an id of their own; years become numbers, from the title where the cell has none."""
    file = raw.items_file
    items = clean_items(raw, items, ledger)
    in_cell = pl.col("year").str.extract(r"^(\d{4})(?:\.0*|-.*)?$")
    in_title = pl.col("title").str.extract(r"\((\d{4})\)$") if raw.dated_titles else pl.lit(None, dtype=pl.String)
    unread = items.filter((pl.col("year") != "") & in_cell.is_null())
    if not unread.is_empty():
        ledger.notes.append(
            f"{unread.height:,} years of {file} cannot be read and are ignored, "
            f"first {shorten(unread['year'][0])} in {position(file, unread[LINE][0])}"
        )
    return items.with_columns(year=pl.coalesce(in_cell, in_title).cast(pl.Int32))


def _check_interactions(
    raw: Raw, rows: pl.DataFrame, items: pl.DataFrame, config: DataConfig, ledger: Ledger
) -> pl.DataFrame:
    """user, item (strings), order (finite floats), and part if there is one, of the good rows, as in the files."""
    file = raw.interactions_file
    timed = raw.ordered_by == "time"
    lost = ledger.lost(raw.items_file).join(items, on="item", how="anti")
    rows = rows.join(lost, on="item", how="left", maintain_order="left") if len(lost) else rows
    form = config.columns.time_format
    rows = rows.with_columns(number=read_times(rows, file, form, ledger) if timed else _numbers(rows["order"]))
    parts = [name for name in ("part",) if name in rows.columns]
    bad_rows: dict[BadKind, pl.Expr | None] = {
        BadKind.USER: pl.col("user") == "",
        BadKind.ITEM: pl.col("item") == "",
        BadKind.TIME if timed else BadKind.POSITION: pl.col("number").is_null(),
        BadKind.DUPLICATE: ~pl.struct("user", "item", "number", *parts).is_first_distinct(),
        BadKind.LOST_ITEM: pl.col("item").is_in(lost["item"].implode()) if len(lost) else None,
        BadKind.UNKNOWN_ITEM: ~pl.col("item").is_in(items["item"].implode()),
    }
    words = {"ordered_by": raw.ordered_by, "items_file": raw.items_file}
    for kind, is_bad in bad_rows.items():
        rows = rows if is_bad is None else ledger.drop(rows, is_bad, kind, file, **words)
    return rows.select("user", "item", *parts, order="number")


def _numbers(cells: pl.Series) -> pl.Series:
    """Finite floats, null for what is none."""
    numbers = cells.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _number(ids: pl.Series) -> pl.DataFrame:
    """The distinct ids with their numbers 0..n-1: shorter ids first, then alphabetically."""
    frame = ids.unique().to_frame()
    return frame.sort(pl.col(ids.name).str.len_chars(), ids.name).with_row_index(f"{ids.name}_number")
