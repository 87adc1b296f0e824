"""Damaged input: one clear sentence that names the file, the line and what to do; never a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprec.config import DataConfig
from deeprec.data.dataset import Dataset
from deeprec.data.report import BadKind
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError

HEADER = "user_id,item_id,time\n"
GOOD = HEADER + "".join(f"u{n % 4},{n % 5},{n}\n" for n in range(20))
ITEMS = "item_id,title\n" + "".join(f"{n},Title {n}\n" for n in range(5))
RECBOLE = GOOD.replace("user_id,item_id,time", "user_id:token\titem_id:token\ttimestamp:float").replace(",", "\t")
RECBOLE_ITEMS = ITEMS.replace("item_id,title", "item_id:token\ttitle:token_seq").replace(",", "\t")
META = "".join(f'{{"parent_asin": "{n}", "title": "T{n}"}}\n' for n in range(5))
AMAZON = GOOD.replace("item_id,time", "parent_asin,timestamp")
POSITION = GOOD.replace("time", "position")
INTERACTIONS = "interactions.csv"


def put(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(source: Path, **options: object) -> Dataset:
    options = {"user_core": 1, "item_core": 1, "source": str(source), **options}
    return load_dataset(DataConfig.model_validate(options))


def csv(interactions: str | bytes, items: str | bytes = ITEMS) -> dict[str, str | bytes]:
    return {INTERACTIONS: interactions, "items.csv": items}


def zipped(name: str, text: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, text)
    return packed.getvalue()


def parquet(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    pl.DataFrame({"user_id": ["u"], "item_id": ["1"], "time": [1], "title": ["T"]}).write_parquet(path)
    content = path.read_bytes()
    path.unlink()
    return content


# name: files, and what the sentence must say (file, line, what is wrong, what to do)
REFUSED: dict[str, tuple[dict[str, str | bytes], tuple[str, ...]]] = {
    # the whole file
    "no folder content": ({"notes.txt": "x"}, ("notes.txt", "no interaction file", "give a folder with")),
    "empty file": (csv(""), (INTERACTIONS, "is empty", "give a file with rows")),
    "header only": (csv(HEADER), (INTERACTIONS, "header but no rows", "give a file with rows")),
    "not a gzip": ({"s.inter.gz": RECBOLE, "s.item": RECBOLE_ITEMS}, ("s.inter.gz", "gzip", "take .gz off")),
    "truncated gzip": (
        {"s.inter.gz": gzip.compress(RECBOLE.encode())[:-20], "s.item": RECBOLE_ITEMS},
        ("s.inter.gz", "not a whole gzip", "fetch it again"),
    ),
    "zip archive": (csv(zipped("a.csv", GOOD)), (INTERACTIONS, "zip archive", "unpack it")),
    "workbook": (csv(zipped("xl/workbook.xml", "<x/>")), (INTERACTIONS, "Excel", "save its sheet as CSV")),
    "workbook alone": ({"shop.xlsx": zipped("xl/workbook.xml", "<x/>")}, ("shop.xlsx", "workbook", "as CSV")),
    "old workbook": (csv(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)), (INTERACTIONS, "Excel", "as CSV")),
    "tar in gzip": (
        {"interactions.csv.gz": gzip.compress(bytes(257) + b"ustar" + bytes(300)), "items.csv": ITEMS},
        ("interactions.csv.gz", "tar archive", "unpack it"),
    ),
    "parquet as csv": (csv(b"PAR1" + bytes(90)), (INTERACTIONS, "Parquet", ".parquet")),
    "truncated utf-16": (csv(GOOD.encode("utf-16")[:-1]), (INTERACTIONS, "UTF-16", "save it as UTF-8")),
    "nul bytes": (csv(GOOD.replace("u3,3,3\n", "u3\0,3,3\n")), ("interactions.csv line 5", "NUL", "UTF-8")),
    "header of no encoding": (
        csv(GOOD.replace("time", "a\x81o").encode("latin-1")),
        ("header of interactions.csv", "not utf-8", "save the file as UTF-8"),
    ),
    "truncated parquet": (
        {"shop.parquet": b""},
        ("shop.parquet", "not a whole Parquet file", "write it again"),
    ),
    "text as parquet": (
        {"shop.parquet": GOOD},
        ("shop.parquet", "not a whole Parquet file", "write it again"),
    ),
    "missing user column": (
        csv(GOOD.replace("user_id", "userId")),
        (
            INTERACTIONS,
            "no user column 'user_id'",
            "userId, item_id, time",
            "'userId' is meant",
            "data.columns.user",
        ),
    ),
    "no time": (csv(GOOD.replace("time", "when")), (INTERACTIONS, "neither a time nor", "data.columns.time")),
    "missing title column": (
        csv(GOOD, ITEMS.replace("title", "titel")),
        ("items.csv", "no title column 'title'", "'titel' is meant", "data.columns.title"),
    ),
    "no titles": ({INTERACTIONS: GOOD}, (INTERACTIONS, "no item titles", "data.columns.title", "data.items")),
    "no item file": ({"s.inter": RECBOLE}, ("s.inter", "no item file", "data.items")),
    "column twice": (csv(GOOD.replace("time", "user_id")), (INTERACTIONS, "'user_id' twice", "rename one")),
    "untyped atomic header": (
        {"s.inter": RECBOLE.replace(":token", "").replace(":float", ""), "s.item": RECBOLE_ITEMS},
        ("s.inter", "no types", "data.format"),
    ),
    "several files": ({"a.inter": RECBOLE, "b.inter": RECBOLE}, ("a.inter, b.inter", "data.source")),
    "truncated meta": (
        {"T.csv": AMAZON, "meta_T.jsonl.gz": gzip.compress(META.encode())[:-9]},
        ("meta_T.jsonl.gz", "past line", "fetch it again"),
    ),
    # rows
    "latin-1 row in UTF-8": (
        csv(GOOD, ITEMS.replace("Title 1", "Zoë").encode().replace(b"Title 2", b"Caf\xe9")),
        ("items.csv line 4", "not utf-8", "save the file as UTF-8"),
    ),
    "missing field": (
        csv(GOOD.replace("u2,2,2\n", "u2,2\n")),
        ("interactions.csv line 4", "2 fields instead of 3", "the same number of fields"),
    ),
    "extra field": (
        csv(GOOD, ITEMS.replace("Title 1", "Title, 1")),
        ("items.csv line 3", "3 fields instead of 2", "the same number of fields"),
    ),
    "unclosed quote": (
        csv(GOOD, ITEMS.replace("Title 1", '"Title 1')),
        ("items.csv line 3", "never closed", "close the quote"),
    ),
    "two stray quotes": (
        csv(GOOD, ITEMS.replace("Title 1", '"Title 1').replace("Title 3", '"Title 3')),
        ("items.csv line 3", "never closed", "2 of 5 rows", "close the quote"),
    ),
    "empty user": (
        csv(GOOD.replace("u2,2,2\n", " ,2,2\n")),
        ("interactions.csv line 4", "user is empty", "fill in the users"),
    ),
    "empty item": (
        csv(GOOD.replace("u2,2,2\n", "u2,,2\n")),
        ("interactions.csv line 4", "item is empty", "fill in the items"),
    ),
    "unreadable time": (
        csv(GOOD.replace("u2,2,2\n", "u2,2,yesterday\n")),
        (
            "interactions.csv line 4",
            "time 'yesterday' is not a number or a date",
            "1 of 20 rows",
            "ISO dates",
        ),
    ),
    "impossible date": (
        csv(GOOD.replace("u2,2,2\n", "u2,2,2020-02-30\n")),
        ("line 4", "'2020-02-30'", "ISO"),
    ),
    "infinite time": (csv(GOOD.replace("u2,2,2\n", "u2,2,inf\n")), ("line 4", "'inf'", "write times")),
    "unreadable position": (
        csv(POSITION.replace("u2,2,2\n", "u2,2,2020-01-01\n")),
        ("interactions.csv line 4", "position '2020-01-01' is not a number", "write positions"),
    ),
    "unknown item": (
        csv(GOOD.replace("u2,2,2\n", "u2,77,2\n")),
        ("interactions.csv line 4", "item '77' is not in items.csv", "add these items"),
    ),
    "row of an item lost": (
        csv(
            GOOD.replace("u2,2,2\n", "u2,é9,2\n"),
            (ITEMS + "".join(f"x{n},É {n}\n" for n in range(120))).encode() + b"\xc3\xa99,\xe9\n",
        ),
        ("interactions.csv line 4", "item 'é9' lost its row, items.csv line 127 (undecodable bytes)", "mend the item"),
    ),
    "no header": (
        csv(GOOD.removeprefix(HEADER)),
        (INTERACTIONS, "first line is a row (u0, 0, 0)", "data.header = false", "data.columns.user = '1'"),
    ),
    "carriage return": (
        csv(GOOD.replace("u2,2,2\nu", "u2,2,2\ru")),
        ("interactions.csv line 4", "5 fields instead of 3 (a carriage return", "the same number"),
    ),
    "duplicate row": (
        csv(GOOD + "u2,2,2\n"),
        ("interactions.csv line 22", "user 'u2' and item '2'", "remove the duplicates"),
    ),
    "repeated item id": (
        csv(GOOD, ITEMS + "3,Other\n"),
        ("items.csv line 7", "item '3' has a row", "one row an"),
    ),
    "broken json": (
        {"T.csv": AMAZON, "meta_T.jsonl": META.replace('"T2"}', '"T2')},
        ("meta_T.jsonl line 3", "JSON object", "one JSON object a line"),
    ),
    "json list": (
        {"T.csv": AMAZON, "meta_T.jsonl": META + "[1, 2]\n"},
        ("meta_T.jsonl line 6", "JSON object", "one JSON object a line"),
    ),
    "atomic row": (
        {"s.inter": RECBOLE.replace("u2\t2\t2\n", "u2 2 2\n"), "s.item": RECBOLE_ITEMS},
        ("s.inter line 4", "1 fields instead of 3", "the same number of fields"),
    ),
    "1M row": (
        {"ratings.dat": "1::1::5::9\n1::2::5\n", "movies.dat": "1::A (1990)::X\n2::B (1990)::X\n"},
        ("ratings.dat line 2", "3 fields instead of 4", "the same number of fields"),
    ),
    "100K row": (
        {"u.data": "1\t1\t5\t9\n", "u.item": "1|A (1990)|d||x|0|1\n"},
        ("u.item line 1", "7 fields instead of 24", "the same number of fields"),
    ),
}


def assert_one_clear_sentence(message: str) -> None:
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert not re.search(r"[.!?]\s+[A-Z]", message), message
    assert "Error" not in message, message
    assert len(message) < 450, message


def refusal(folder: Path, damage: str) -> str:
    files = REFUSED[damage][0]
    if damage == "truncated parquet":
        files = {"shop.parquet": parquet(folder)[:-12]}
    with pytest.raises(DeepRecError) as caught:
        load(put(folder, files))
    return str(caught.value)


@pytest.mark.parametrize("damage", REFUSED)
def test_damage_is_told_in_one_sentence(tmp_path: Path, damage: str) -> None:
    message = refusal(tmp_path, damage)
    assert_one_clear_sentence(message)
    for part in REFUSED[damage][1]:
        assert part in message, message


def test_every_kind_of_bad_row_is_among_them(tmp_path: Path) -> None:
    messages = []
    for number, damage in enumerate(REFUSED):
        folder = tmp_path / str(number)
        folder.mkdir()
        messages.append(refusal(folder, damage))
    assert {kind for kind in BadKind if any(f"(1 {kind})" in message for message in messages)} == set(BadKind)


@pytest.mark.parametrize("files", [csv(GOOD), {"s.inter": RECBOLE, "s.item": RECBOLE_ITEMS}])
def test_without_damage_the_same_files_load(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    dataset = load(put(tmp_path, files))
    assert (len(dataset.items_N), dataset.report.bad) == (20, ())


def test_amazon_without_damage_loads(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, {"T.csv": AMAZON, "meta_T.jsonl": META}))
    assert (len(dataset.items_N), dataset.report.bad) == (20, ())


@pytest.mark.parametrize(("source", "part"), [("nowhere/at/all", "nowhere/at/all"), ("gone.csv", "gone.csv")])
def test_a_missing_source(tmp_path: Path, source: str, part: str) -> None:
    with pytest.raises(DeepRecError, match=r"check data\.source") as caught:
        load(tmp_path / source)
    assert part in str(caught.value)
    assert_one_clear_sentence(str(caught.value))


def test_cores_that_nothing_passes_and_a_wrong_format(tmp_path: Path) -> None:
    folder = put(tmp_path, csv(GOOD))
    with pytest.raises(DeepRecError) as caught:
        load(folder, item_core=6)
    assert_one_clear_sentence(str(caught.value))
    assert "data.item_core = 6: lower them" in str(caught.value)
    for form in ("movielens", "amazon2023", "recbole"):
        with pytest.raises(DeepRecError) as caught:
            load(folder / INTERACTIONS, format=form, items=str(folder / "items.csv"))
        assert_one_clear_sentence(str(caught.value))


# Bad rows of all kinds that a table can have: 11 in 32 and 4 in 11.
MIXED = (
    GOOD.encode()
    + b"u0,0\n"  # line 22: fields
    + b",0,100\n"
    + b"u0,,100\n"
    + b"u0,0,never\n"
    + b"u0,0,\n"
    + b"u0,99,100\n"
    + b"u0,0,0\n"  # line 28: as line 2
    + b"u0,0,0\n"
    + b"u\x81,0,100\n"
    + b'"u0"x,0,100\n'
    + b'"u0,0,100\n'
    + b"u0,1,100\n"
)
MIXED_ITEMS = ITEMS + '7,"two\nlines"\n,Nothing\n3,Again\n8,"A" b\n9,"never closed\n'


def test_all_kinds_of_bad_rows_are_counted_and_located(tmp_path: Path) -> None:
    dataset = load(put(tmp_path, csv(MIXED, MIXED_ITEMS)), max_bad_share=0.5)
    bad = {(found.file, found.kind): found for found in dataset.report.bad}
    assert {key: found.count for key, found in bad.items()} == {
        (INTERACTIONS, BadKind.ENCODING): 1,
        (INTERACTIONS, BadKind.QUOTE): 2,
        (INTERACTIONS, BadKind.FIELDS): 1,
        (INTERACTIONS, BadKind.USER): 1,
        (INTERACTIONS, BadKind.ITEM): 1,
        (INTERACTIONS, BadKind.TIME): 2,
        (INTERACTIONS, BadKind.UNKNOWN_ITEM): 1,
        (INTERACTIONS, BadKind.DUPLICATE): 2,
        ("items.csv", BadKind.ITEM): 1,
        ("items.csv", BadKind.REPEATED_ITEM): 1,
        ("items.csv", BadKind.QUOTE): 2,
    }
    assert bad[INTERACTIONS, BadKind.TIME].examples == (
        "interactions.csv line 25: time 'never' is not a number or a date",
        "interactions.csv line 26: time '' is not a number or a date",
    )
    assert bad[INTERACTIONS, BadKind.DUPLICATE].examples[1].startswith("interactions.csv line 29: user 'u0'")
    assert bad["items.csv", BadKind.REPEATED_ITEM].examples[0].startswith("items.csv line 10: item '3'")
    assert dataset.report.rows[INTERACTIONS] == 32
    assert dataset.report.bad_count == sum(found.count for found in bad.values())
    assert len(dataset.items_N) == 20, "the good row at the end repeats user and item"
    assert dataset.report.repeats == 1
    assert "two lines" not in dataset.catalog.titles, "no interaction"


def test_the_limit_is_a_share_of_a_files_rows(tmp_path: Path) -> None:
    folder = put(tmp_path, csv(GOOD.replace("u2,2,2\n", "u2,2,x\n")))
    assert len(load(folder, max_bad_share=0.05).items_N) == 19
    with pytest.raises(DeepRecError, match=r"1 of 20 rows .*max_bad_share = 0\.049 "):
        load(folder, max_bad_share=0.049)


def test_stray_quotes_swallow_no_rows(tmp_path: Path) -> None:
    """Two stray quotes far apart must not make the rows between them vanish."""
    rows = GOOD.splitlines()
    rows[3] = '"' + rows[3]
    rows[15] = '"' + rows[15]
    with pytest.raises(DeepRecError, match="2 of 20 rows"):
        load(put(tmp_path, csv("\n".join(rows))))


def test_years_that_cannot_be_read_are_noted_not_dropped(tmp_path: Path) -> None:
    items = "item_id,title,year\n0,A,1999\n1,B,soon\n2,C (1980),\n3,D,1970-05-01\n4,E,\n"
    dataset = load(put(tmp_path, csv(GOOD, items)))
    assert dataset.catalog.years == (1999, None, 1980, 1970, None)
    assert dataset.catalog.titles == ("A (1999)", "B", "C (1980)", "D (1970)", "E")
    assert any("items.csv line 3" in note and "'soon'" in note for note in dataset.report.notes)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


EDITS = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 6), st.binary(max_size=4) | st.sampled_from([b'"', b"\n", b"\r"])),
    min_size=1,
    max_size=6,
)
WHOLE: dict[str, dict[str, str | bytes]] = {
    "table": csv(GOOD),
    "recbole": {"s.inter": RECBOLE, "s.item": RECBOLE_ITEMS},
    "amazon": {"T.csv": AMAZON, "meta_T.jsonl": META},
    "movielens": {
        "ratings.dat": "1::1::5::9\n1::2::5::8\n",
        "movies.dat": "1::A (1990)::X\n2::B (1990)::X|Y\n",
    },
    "gzip": {"s.inter.gz": gzip.compress(RECBOLE.encode(), mtime=0), "s.item": RECBOLE_ITEMS},
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("form", WHOLE)
@given(edits=EDITS, second=st.booleans(), limit=st.sampled_from([0.0, 1.0]))
def test_no_damage_escapes_as_a_traceback(
    scratch: Path, form: str, edits: list[tuple[int, int, bytes]], second: bool, limit: float
) -> None:
    folder = scratch / form
    folder.mkdir(exist_ok=True)
    files = dict(WHOLE[form])
    name = list(files)[second]
    content = files[name]
    damaged = content if isinstance(content, bytes) else content.encode()
    for position, length, new in edits:
        position %= len(damaged) + 1
        damaged = damaged[:position] + new + damaged[position + length :]
    with contextlib.suppress(DeepRecError):  # any other exception fails the test
        load(put(folder, {**files, name: damaged}), max_bad_share=limit).describe()
