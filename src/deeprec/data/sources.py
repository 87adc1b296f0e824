"""From a source to a Dataset: find the files, read their format, check the rows, filter, number users and items."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec import assets
from deeprec.config import DataConfig, load_config
from deeprec.data.amazon import read_amazon2023
from deeprec.data.catalog import UserId, build_catalog
from deeprec.data.compression import EXCEL, plain_name, with_compressed
from deeprec.data.dataset import Dataset, k_core, starts_of
from deeprec.data.files import Raw, read_header
from deeprec.data.item_text import clean_items
from deeprec.data.movielens import LAYOUTS, read_movielens
from deeprec.data.report import LINE, BadKind, Ledger, LoadReport, position, shorten
from deeprec.data.table import read_recbole, read_table
from deeprec.errors import DeepRecError

_ATOMIC = with_compressed(".inter")
_TABLES = with_compressed(".csv", ".tsv", ".parquet")
_META = with_compressed(".jsonl")
_ITEM_STEMS = ("items", "item", "movies", "products", "catalog", "catalogue")
_INTERACTION_STEMS = ("interactions", "ratings", "events")


def load_dataset(source: DataConfig | str | Path, *, offline: bool = False) -> Dataset:
    """Read interactions and item text into a Dataset.

    A user's interactions are ordered by time or position, equal ones as in the file. Users and items are numbered by
    their ids, shorter ones first, then alphabetically, so that whole numbers count up. Bad rows are dropped and
    reported, up to `max_bad_share` of a file; then come `repeats`, then the cores. Times in milli-, micro- or
    nanoseconds become seconds.

    `source` is an asset's name ("ml-100k"), a folder, an interaction file, a configuration file (`shop.toml`, whose
    [data] section names the source, the columns and the rest), or that section itself. `offline` downloads no asset.
    DeepRecError if a file is missing, damaged or lacks a column, or too many of its rows are bad.
    """
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
            path = assets.fetch(config.source, offline=offline)
        ledger = Ledger(None if config.quoting == "auto" else config.quoting, config.header)
        return _assemble(name, _read(path, config, ledger), config, ledger)
    except (OSError, pl.exceptions.PolarsError, UnicodeError, EOFError, zlib.error) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeepRecError(f"{path} could not be read ({reason}): check that its files are whole.") from error


def _read(path: Path, config: DataConfig, ledger: Ledger) -> Raw:
    interactions = _find_interactions(path)
    form = _format_of(interactions) if config.format == "auto" else config.format
    items = _find_items(interactions, form, config)
    ledger.label(*filter(None, (interactions, items)))
    if form == "table":
        return read_table(interactions, items, config, ledger)
    if items is None:
        raise DeepRecError(f"There is no item file beside {interactions}: name it with data.items.")
    read = {"recbole": read_recbole, "movielens": read_movielens, "amazon2023": read_amazon2023}[form]
    return read(interactions, items, ledger)


def _find_interactions(path: Path) -> Path:
    """The interaction file in a folder, or the path itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DeepRecError(f"There is no file or folder {path}: check data.source.")
    files = sorted(file for file in path.iterdir() if file.is_file())
    atomic = [file for file in files if file.name.endswith(_ATOMIC)]
    layouts = [file for file in files if file.name in LAYOUTS and (path / LAYOUTS[file.name]).exists()]
    tables = [file for file in files if file.name.endswith(_TABLES) and _stem(file) not in _ITEM_STEMS]
    named = [file for file in tables if _stem(file) in _INTERACTION_STEMS]
    for found in (atomic, layouts, named or tables):
        own = [file for file in found if _stem(file) == path.resolve().name] or found
        if len(own) == 1:
            return own[0]
        if own:
            names = ", ".join(file.name for file in own)
            raise DeepRecError(f"{path} holds several interaction files ({names}): name one in data.source.")
    if books := [file.name for file in files if file.name.endswith(EXCEL)]:
        raise DeepRecError(f"{path} holds no interaction file but {books[0]}, a workbook: save its sheets as CSV.")
    raise DeepRecError(
        f"{path} holds no interaction file (it has: {', '.join(file.name for file in files) or 'nothing'}): "
        "give a folder with .inter, u.data, ratings.dat, .csv, .tsv or .parquet, or a file, as data.source."
    )


def _format_of(path: Path) -> str:
    if path.name.endswith(_ATOMIC):
        return "recbole"
    if path.name in ("u.data", "ratings.dat"):
        return "movielens"
    header = "" if plain_name(path).endswith(".parquet") else read_header(path)
    if path.name == "ratings.csv" and "movieId" in header and (path.parent / "movies.csv").exists():
        return "movielens"
    return "amazon2023" if "parent_asin" in header and _meta_files(path) else "table"


def _find_items(path: Path, form: str, config: DataConfig) -> Path | None:
    if config.items is not None:
        items = Path(config.items).expanduser()
        if not items.is_file():
            raise DeepRecError(f"There is no item file {items}: check data.items.")
        return items
    if form == "amazon2023":
        names = [file.name for file in _meta_files(path)]
    elif form == "recbole":
        names = [_stem(path) + ending for ending in with_compressed(".item")]
    elif form == "movielens":
        names = [LAYOUTS.get(path.name, "movies.csv")]
    else:
        names = [stem + ending for stem in _ITEM_STEMS for ending in _TABLES]
    return next((file for file in map(path.with_name, names) if file.is_file() and file != path), None)


def _meta_files(path: Path) -> list[Path]:
    """Metadata beside an Amazon rating table: of the same domain, else the only one there."""
    metas = sorted(file for file in path.parent.glob("meta_*") if file.name.endswith(_META))
    own = [file for file in metas if _stem(file) == f"meta_{_stem(path)}"]
    return own or (metas if len(metas) == 1 else [])


def _stem(path: Path) -> str:
    """A file's name without its format's endings: 'ml-1m' of 'ml-1m.inter.gz'."""
    name = plain_name(path)
    return name.rpartition(".")[0] or name


def _assemble(name: str, raw: Raw, config: DataConfig, ledger: Ledger) -> Dataset:
    items = _check_items(raw, ledger)
    # Before the interactions are checked, which would be blamed for items that are missing because of bad item rows.
    ledger.check(config.max_bad_share)
    interactions = _check_interactions(raw, items, ledger)
    ledger.check(config.max_bad_share)
    if interactions.is_empty():
        raise DeepRecError(f"{raw.interactions_file} has no usable row: see that it has interactions.")

    if raw.ordered_by == "time":
        interactions = _to_seconds(interactions, ledger)
    interactions = interactions.sort("order", maintain_order=True)
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
    text = text.select("item", "title", "year", "brand", pl.col("categories").fill_null([]), "description")
    ids, titles, years, brands, categories, descriptions = (column.to_list() for column in text)
    catalog = build_catalog(ids, titles, years, brands, categories, descriptions, config.title_chars)
    title_report = catalog.title_report()
    if title_report.empty:
        first = title_report.empty_examples[0]
        ledger.notes.append(f"{title_report.empty:,} items of {raw.items_file} have no title, {first!r} first")
    times_N = coded["order"].to_numpy().astype(np.float64) if raw.ordered_by == "time" else None
    return Dataset(
        name=name,
        catalog=catalog,
        users=tuple(map(UserId, users["user"].to_list())),
        items_N=coded["item_number"].to_numpy().astype(np.int32),
        starts_U1=starts_of(np.bincount(coded["user_number"].to_numpy(), minlength=users.height)),
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


def _check_items(raw: Raw, ledger: Ledger) -> pl.DataFrame:
    """Item rows with an id of their own; years become numbers, from the title where the cell has none."""
    file = raw.items_file
    items = clean_items(raw, ledger)
    in_cell = pl.col("year").str.extract(r"^(\d{4})(?:\.0*|-.*)?$")
    in_title = pl.col("title").str.extract(r"\((\d{4})\)$") if raw.dated_titles else pl.lit(None, dtype=pl.String)
    unread = items.filter((pl.col("year") != "") & in_cell.is_null())
    if not unread.is_empty():
        ledger.notes.append(
            f"{unread.height:,} years of {file} cannot be read and are ignored, "
            f"first {shorten(unread['year'][0])} in {position(file, unread[LINE][0])}"
        )
    return items.with_columns(year=pl.coalesce(in_cell, in_title).cast(pl.Int32))


def _check_interactions(raw: Raw, items: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """user, item (strings) and order (finite floats) of the good rows, in the order of the file."""
    timed = raw.ordered_by == "time"
    rows = raw.interactions.with_columns(number=_numbers(raw.interactions["order"], dates=timed))
    lost = ledger.lost(raw.items_file).join(items, on="item", how="anti")
    rows = rows.join(lost, on="item", how="left", maintain_order="left") if len(lost) else rows
    bad_rows: dict[BadKind, pl.Expr | None] = {
        BadKind.USER: pl.col("user") == "",
        BadKind.ITEM: pl.col("item") == "",
        BadKind.TIME if timed else BadKind.POSITION: pl.col("number").is_null(),
        BadKind.DUPLICATE: ~pl.struct("user", "item", "number").is_first_distinct(),
        BadKind.LOST_ITEM: pl.col("item").is_in(lost["item"].implode()) if len(lost) else None,
        BadKind.UNKNOWN_ITEM: ~pl.col("item").is_in(items["item"].implode()),
    }
    words = {"ordered_by": raw.ordered_by, "items_file": raw.items_file}
    for kind, is_bad in bad_rows.items():
        rows = rows if is_bad is None else ledger.drop(rows, is_bad, kind, raw.interactions_file, **words)
    return rows.select("user", "item", order="number")


def _numbers(cells: pl.Series, dates: bool) -> pl.Series:
    """Finite floats, seconds since 1970 for ISO dates, null for what is neither."""
    numbers = cells.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    rest = numbers.is_null()
    if not dates or not rest.any():
        return numbers
    text = pl.col("text").str.replace("[Tt]", " ").str.replace("[Zz]$", "")
    formats = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z")
    moments = [text.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us") for form in formats]
    seconds = pl.DataFrame({"text": cells.filter(rest)}).select(pl.coalesce(*moments) / 1e6)
    return numbers.scatter(rest.arg_true(), seconds.to_series())


def _to_seconds(interactions: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Times as seconds since 1970: numbers too large for that are milli-, micro- or nanoseconds."""
    median = interactions["order"].abs().median()
    assert isinstance(median, float)
    for unit, scale in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
        if 1e8 * scale <= median < 1e11 * scale:
            ledger.notes.append(f"times are {unit} and were divided by {scale:g}")
            return interactions.with_columns(pl.col("order") / scale)
    return interactions


def _number(ids: pl.Series) -> pl.DataFrame:
    """The distinct ids with their numbers 0..n-1: shorter ids first, then alphabetically."""
    frame = ids.unique().to_frame()
    return frame.sort(pl.col(ids.name).str.len_chars(), ids.name).with_row_index(f"{ids.name}_number")
