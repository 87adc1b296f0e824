"""Which files of a folder are interactions, which are items, and which parts a ready-made split has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeprec.config import DataConfig
from deeprec.data.compression import EXCEL, plain_name, with_compressed
from deeprec.data.files import read_header
from deeprec.errors import DeepRecError

LAYOUTS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv", "rating.csv": "movie.csv"}
"""MovieLens' interaction file to its item file."""

JSON_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv", ".parquet", *JSON_LINES)
_ITEM_STEMS = ("items", "item", "movies", "products", "catalog", "catalogue")
_INTERACTION_STEMS = ("interactions", "ratings", "events")
_PARTS = {
    "train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2, "testing": 2,
}  # fmt: skip
_PART_OF = re.compile(
    rf"(?:(?P<rest>.+)[./_-])?(?P<part>{'|'.join(_PARTS)})|(?P<first>{'|'.join(_PARTS)})[._-](?P<last>.+)"
)
# 'train-00000-of-00002' of Hugging Face, 'part-00000-…' of Spark, '0000', 'items_000000000012'.
_SHARD = re.compile(r"part-\d{5}.*|\d{4}|(?P<stem>.*?)[-_.]?\d{5,}(?:-of-(?P<total>\d{5,}))?")


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a data set. `parts` has for each of `interactions` 0 (training), 1 (validation) or 2 (test), and
    is empty without a ready-made split; `items` is empty where the interactions hold the titles."""

    form: str
    interactions: tuple[Path, ...]
    parts: tuple[int, ...]
    items: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """One table in one file, in shards, or in the parts of a split."""

    stem: str
    ending: str
    paths: tuple[Path, ...]
    parts: tuple[int, ...] = ()

    def __str__(self) -> str:
        names = [path.name for path in self.paths]
        return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"


def find_files(path: Path, config: DataConfig) -> Found:
    """The files of a source, a folder or an interaction file; DeepRecError if there are none, or several choices."""
    if path.is_file():
        interactions = _Table(*_split_name(path), (path,))
    elif path.is_dir():
        interactions = _choose_interactions(path)
    else:
        where = path if path.is_absolute() else f"{path} in {Path.cwd()}"
        moved = "if it was moved, name its place with --set data.source=PATH"
        raise DeepRecError(f"There is no file or folder {where}: check data.source, and {moved}.")
    form = _format_of(interactions.paths[0], config) if config.format == "auto" else config.format
    return Found(form, interactions.paths, interactions.parts, _find_items(interactions, form, config))


def _choose_interactions(folder: Path) -> _Table:
    tables = [table for table in _tables(folder) if not _holds_items(table)]
    layouts = [
        table for table in tables if LAYOUTS.get(name := table.paths[0].name) and (folder / LAYOUTS[name]).exists()
    ]
    plain = [table for table in tables if table.ending in _TABLES]
    named = [table for table in plain if table.stem in _INTERACTION_STEMS]
    split = [table for table in plain if table.parts]
    json_lines = [table for table in plain if table.ending in JSON_LINES]
    others = [table for table in plain if table.ending not in JSON_LINES]
    for found in ([table for table in tables if table.ending == ".inter"], layouts, named, split, others, json_lines):
        own = [table for table in found if table.stem == folder.resolve().name.casefold()] or found
        if len(own) > 1:
            names = "; ".join(map(str, own)) if any(len(table.paths) > 1 for table in own) else ", ".join(map(str, own))
            raise DeepRecError(f"{folder} holds several interaction files ({names}): name one in data.source.")
        if own and own[0].parts and 2 not in own[0].parts:
            raise DeepRecError(
                f"{folder} holds a split without a test file ({own[0]}): add it, or name one in data.source."
            )
        if own:
            return own[0]
    if books := [file.name for file in sorted(folder.iterdir()) if file.name.endswith(EXCEL)]:
        raise DeepRecError(f"{folder} holds no interaction file but {books[0]}, a workbook: save its sheets as CSV.")
    names = ", ".join(sorted(file.name for file in folder.iterdir()))
    raise DeepRecError(
        f"{folder} holds no interaction file (it has: {names or 'nothing'}): "
        "give a folder with .inter, u.data, ratings.dat, .csv, .tsv, .jsonl or .parquet, or a file, as data.source."
    )


def _format_of(path: Path, config: DataConfig) -> str:
    _, ending = _split_name(path)
    if ending == ".inter":
        return "recbole"
    if path.name in ("u.data", "ratings.dat"):
        return "movielens"
    header = "" if ending == ".parquet" else read_header(path)
    if LAYOUTS.get(path.name) and "movieId" in header and path.with_name(LAYOUTS[path.name]).exists():
        return "movielens"
    if "parent_asin" in header:
        # Reviews have titles of their own, which are no items' titles.
        named = Path(config.items).name.startswith("meta_") if config.items else bool(_meta_files(path))
        if named or (config.items is None and '"user_id"' in header and ending in JSON_LINES):
            return "amazon2023"
    return "table"


def _find_items(interactions: _Table, form: str, config: DataConfig) -> tuple[Path, ...]:
    path = interactions.paths[0]
    if config.items is not None:
        return _named_items(Path(config.items).expanduser())
    if form == "table":
        near = [table for folder in (path.parent, *_root(path)) for table in _tables(folder) if _is_near(table, folder)]
        tables = [table for table in near if table.stem in _ITEM_STEMS and table.ending in _TABLES]
        tables = [table for table in tables if path not in table.paths]
        tables.sort(key=lambda table: (_ITEM_STEMS.index(table.stem), _TABLES.index(table.ending)))
        return tables[0].paths if tables else ()
    if form == "recbole":
        stems = (interactions.stem, _part_of(interactions.stem)[0])
        names = [stem + ending for stem in stems for ending in with_compressed(".item")]
        files = {file.name.casefold(): file for file in path.parent.iterdir()}
        return next(((files[name],) for name in names if name in files), ())
    files_ = _meta_files(path) if form == "amazon2023" else [path.with_name(LAYOUTS.get(path.name, "movies.csv"))]
    return tuple(file for file in files_[:1] if file.is_file() and file != path)


def _named_items(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    tables = _tables(path) if path.is_dir() else []
    if len(tables) == 1:
        return tables[0].paths
    if tables:
        raise DeepRecError(
            f"{path} holds several item files ({', '.join(map(str, tables))}): name one with data.items."
        )
    raise DeepRecError(f"There is no item file {path}: check data.items.")


def _tables(folder: Path) -> list[_Table]:
    """The tables and atomic files of a folder, in order of their names, with shards and parts of splits together."""
    shards: dict[tuple[str, str], list[Path]] = {}
    for file, stem, ending in _named_files(folder):
        shards.setdefault((stem, ending), []).append(file)
    splits: dict[tuple[str, str], dict[int, _Table]] = {}
    tables = []
    for (stem, ending), paths in shards.items():
        _check_complete(paths)
        rest, part = _part_of(stem)
        table = _Table(stem, ending, tuple(paths))
        if part is None or part in splits.setdefault((rest, ending), {}):
            tables.append(table)
        else:
            splits[rest, ending][part] = table
    for (rest, ending), parts in splits.items():
        if 0 in parts and len(parts) > 1:
            several = sorted(parts.items())
            paths_ = tuple(path for _, table in several for path in table.paths)
            numbers = tuple(part for part, table in several for _ in table.paths)
            tables.append(_Table(rest, ending, paths_, numbers))
        else:
            tables += [_Table(rest or table.stem, ending, table.paths) for table in parts.values()]
    return sorted(tables, key=lambda table: table.paths)


def _named_files(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Files with their stems (those of shards without their number) and endings; of folders such as `data`, `train`
    and `items.parquet` too."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path, *_split_name(path)
        elif path.is_dir():
            name = path.name.casefold().partition(".")[0]
            if name in ("data", "default", *_PARTS, *_INTERACTION_STEMS, *_ITEM_STEMS):
                above = () if name in ("data", "default") else (name,)
                for file in sorted(file for file in path.iterdir() if file.is_file()):
                    stem, ending = _split_name(file)
                    if ending in _TABLES:
                        yield file, "/".join(filter(None, (*above, stem))), ending


def _split_name(path: Path) -> tuple[str, str]:
    """'ml-1m' and '.inter' of 'ml-1m.inter.gz'; in lower case, and the number of a shard left out."""
    name = plain_name(path).casefold()
    stem, dot, ending = name.rpartition(".")
    if not stem:
        return name, ""
    shard = _SHARD.fullmatch(stem)
    return (shard["stem"] or "") if shard and dot + ending in _TABLES else stem, dot + ending


def _part_of(stem: str) -> tuple[str, int | None]:
    """'bench' and 2 of 'bench.test', '' and 0 of 'train'; the stem and None of one without a part's name."""
    match = _PART_OF.fullmatch(stem)
    if match is None:
        return stem, None
    return match["rest"] or match["last"] or "", _PARTS[match["part"] or match["first"]]


def _check_complete(shards: Sequence[Path]) -> None:
    totals = [int(found[1]) for path in shards if (found := re.search(r"-\d{5,}-of-(\d{5,})\.", path.name))]
    if totals and len(totals) < totals[0]:
        have = f"{len(totals)} of {totals[0]} files"
        raise DeepRecError(f"{shards[0].parent} holds {have} of the table of {shards[0].name}: fetch the others.")


def _holds_items(table: _Table) -> bool:
    is_meta = table.ending in JSON_LINES and table.stem.startswith("meta_")
    return table.stem in _ITEM_STEMS or is_meta


def _meta_files(path: Path) -> list[Path]:
    """Metadata beside an Amazon table: of the same domain, else the only one there."""
    metas = [file for file in sorted(path.parent.glob("meta_*")) if _split_name(file)[1] in JSON_LINES]
    domain = _part_of(_split_name(path)[0])[0]
    own = [file for file in metas if _split_name(file)[0] == f"meta_{domain}"]
    return own or (metas if len(metas) == 1 else [])


def _is_near(table: _Table, folder: Path) -> bool:
    """Whether a table lies in the folder itself, or in one named for items."""
    parent = table.paths[0].parent
    return parent == folder or parent.name.casefold().partition(".")[0] in _ITEM_STEMS


def _root(path: Path) -> tuple[Path, ...]:
    """The folder of the data set, where the file lies in a folder such as `data` or `train` of it."""
    name = path.parent.name.casefold().partition(".")[0]
    return (path.parent.parent,) if name in ("data", "default", *_PARTS, *_INTERACTION_STEMS) else ()
