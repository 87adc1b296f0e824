"""How bytes become rows: encodings, quotes, compressions, headers, and cells that mean nothing."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprec.config import DataConfig, load_config
from deeprec.data.dataset import Dataset
from deeprec.data.files import read_any
from deeprec.data.report import BadKind, Ledger
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError

N = 30  # items, all with interactions
INTERACTIONS = "user_id,item_id,time\n" + "".join(f"u{n // N},{n % N + 1},{n}\n" for n in range(4 * N))


def write(folder: Path, **files: str | bytes) -> Path:
    """Files by name; '__' in a name stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(raw)
    return folder


def load(source: Path, **options: object) -> Dataset:
    options = {"user_core": 1, "item_core": 1, "source": str(source), **options}
    return load_dataset(DataConfig.model_validate(options))


def items(titles: dict[int, str], separator: str = ",") -> str:
    """An item file; `titles` (by id, from 1) replace the plain ones as they are, without quoting."""
    rows = "".join(f"{n}{separator}{titles.get(n, f'Title {n}')}\n" for n in range(1, N + 1))
    return f"item_id{separator}title\n{rows}"


def load_titles(folder: Path, content: str | bytes, name: str = "items__csv", **options: object) -> Dataset:
    return load(write(folder, interactions__csv=INTERACTIONS, **{name: content}), **options)


def notes(dataset: Dataset) -> str:
    return "\n".join(dataset.report.notes)


# --- encodings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_movielens_names_are_utf_8_or_latin_1(tmp_path: Path, encoding: str) -> None:
    flags = "|0" * 18 + "|1"
    movies = f"1|Amélie (2001)|d||x{flags}\n2|La cité (1995)|d||x{flags}\n3|M (1931)|d||x{flags}\n"
    ratings = "u\t1\t5\t1\nu\t2\t5\t2\nv\t3\t5\t3\n"
    dataset = load(write(tmp_path / "a", u__data=ratings, u__item=movies.encode(encoding)))
    assert dataset.catalog.titles == ("Amélie (2001)", "La cité (1995)", "M (1931)")
    movies = "1::Amélie (2001)::Comedy\n2::Léon (1994)::Crime\n3::M (1931)::Crime\n"
    ratings = "u::1::5::1\nu::2::5::2\nv::3::5::3\n"
    dataset = load(write(tmp_path / "b", ratings__dat=ratings, movies__dat=movies.encode(encoding)))
    assert dataset.catalog.titles == ("Amélie (2001)", "Léon (1994)", "M (1931)")
    assert (dataset.report.bad, dataset.report.notes) == ((), ())


@pytest.mark.parametrize(
    ("titles", "shown"),
    [
        ({5: "Café"}, {5: "Café"}),
        ({2: "“Best” – 5 €", 9: "It’s naïve…"}, {2: "“Best” – 5 €", 9: "It’s naïve…"}),
        ({n: f"Größe {n} für Übergänge" for n in range(1, N + 1)}, {7: "Größe 7 für Übergänge"}),
    ],
)
def test_cp1252_items_are_read_and_said(tmp_path: Path, titles: dict[int, str], shown: dict[int, str]) -> None:
    dataset = load_titles(tmp_path, items(titles).encode("cp1252"))
    assert {n: dataset.catalog.titles[n - 1] for n in shown} == shown
    assert dataset.report.bad == ()
    assert f"items.csv is not UTF-8 and was read as cp1252, first '{min(titles)},{titles[min(titles)]}" in notes(
        dataset
    )
    assert f"in line {min(titles) + 1}" in notes(dataset)


def test_most_lines_decide_between_utf_8_and_cp1252(tmp_path: Path) -> None:
    mostly_utf_8 = items({1: "Zoë", 2: "Ärger", 3: "CAF"}).encode().replace(b"CAF", b"Caf\xe9")
    dataset = load_titles(tmp_path / "a", mostly_utf_8, max_bad_share=0.2)
    assert dataset.catalog.titles[:2] == ("Zoë", "Ärger")
    (bad, lost) = dataset.report.bad
    assert (bad.kind, bad.count) == (BadKind.ENCODING, 1)
    assert bad.examples == ("items.csv line 4: not utf-8 text, '3,Caf\ufffd'",)
    assert (lost.kind, lost.count) == (BadKind.LOST_ITEM, 4)
    assert "item '3' lost its row, items.csv line 4 (undecodable bytes)" in lost.examples[0]

    mostly_cp1252 = items({1: "Zoë", 2: "Ärger", 3: "CAF"}).encode("cp1252").replace(b"CAF", "Café".encode())
    dataset = load_titles(tmp_path / "b", mostly_cp1252)
    assert dataset.catalog.titles[:3] == ("Zoë", "Ärger", "Café"), "a line of UTF-8 in it stays UTF-8"


@pytest.mark.parametrize(
    ("encoding", "titles"),
    [("cp1251", {3: "Матрица", 4: "Терминатор 2"}), ("gbk", {3: "黑客帝国"}), ("cp1253", {9: "Ο Νονός"})],
)
def test_other_alphabets_are_not_read_as_cp1252(tmp_path: Path, encoding: str, titles: dict[int, str]) -> None:
    with pytest.raises(DeepRecError, match=r"items\.csv line \d+: not utf-8 text.*save the file as UTF-8"):
        load_titles(tmp_path, items(titles).encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_with_its_mark_is_read(tmp_path: Path, encoding: str) -> None:
    text = items({1: "Amélie", 2: "千と千尋の神隠し", 3: "🎬"}, "\t").replace("\n", "\r\n")
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    dataset = load_titles(tmp_path, (mark + text).encode(encoding), "items__tsv")
    assert dataset.catalog.titles[:4] == ("Amélie", "千と千尋の神隠し", "🎬", "Title 4")


def test_marks_go_wherever_they_stand(tmp_path: Path) -> None:
    first, second = items({}).splitlines(keepends=True), INTERACTIONS.splitlines(keepends=True)
    joined = "\ufeff" + "".join(first[:9]) + "\ufeff" + "".join(first[9:])
    interactions = "\ufeff\ufeff" + "".join(second[:50]) + "\ufeff" + "".join(second[50:])
    dataset = load(write(tmp_path, interactions__csv=interactions, items__csv=joined))
    assert (len(dataset.items_N), len(dataset.catalog), dataset.report.bad) == (4 * N, N, ())
    assert dataset.users == ("u0", "u1", "u2", "u3")
    meta = "\ufeff" + "".join(f'{{"parent_asin": "{n}", "title": "T{n}"}}\n' for n in range(1, N + 1))
    ratings = "\ufeff" + INTERACTIONS.replace("item_id,time", "parent_asin,timestamp")
    dataset = load(write(tmp_path / "a", T__csv=ratings, meta_T__jsonl=meta))
    assert (dataset.catalog.titles[0], dataset.report.bad) == ("T1", ())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_configuration_may_begin_with_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "shop.toml").write_text('[data]\nsource = "küche.csv"\n', encoding=encoding, newline="\r\n")
    assert load_config(tmp_path / "shop.toml").data.source == "küche.csv"


@pytest.mark.parametrize(
    ("title", "meant"),
    [
        ("CafÃ© Noir", "Café Noir"),
        ("CafÃƒÂ© Noir", "Café Noir"),
        ("Childrenâ€™s Games", "Children’s Games"),
        ("ÐœÐ°Ñ‚Ñ€Ð¸Ñ†Ð°", "Матрица"),
        ("é»‘å®¢", "黑客"),
    ],
)
def test_mojibake_is_noted(tmp_path: Path, title: str, meant: str) -> None:
    said = notes(load_titles(tmp_path, items({6: title, 7: "Café"})))
    assert "items.csv has UTF-8 that was read in another encoding and saved (title of 1 items)" in said
    title, meant = (
        title.removesuffix(" Noir").removesuffix(" Games"),
        meant.removesuffix(" Noir").removesuffix(" Games"),
    )
    assert f"first {title!r} for {meant!r} in items.csv line 7: export the file again as UTF-8" in said


def test_foreign_titles_are_no_mojibake(tmp_path: Path) -> None:
    titles = [
        "SÃO PAULO",
        "CAFÉ»",
        "Ærø",
        "Ça va – très bien…",
        "Ñandú",
        "Łódź",
        "Größe",
        "“Â”",
        "ÎLE",
        "ñ™",
        "Über «A»",
    ]
    assert load_titles(tmp_path, items(dict(enumerate(titles, 1)))).report.notes == ()


# --- quotes -------------------------------------------------------------------------------------------------

# name: titles as they stand in the file, titles as they are, and a word of the note
TSV: dict[str, tuple[dict[int, str], dict[int, str], str]] = {
    "a quoted name": ({3: '"Weird Owl" Sings'}, {3: '"Weird Owl" Sings'}, "'none'"),
    "a quoted name and a quoted title": ({3: '"Weird" Al', 4: '"Heroes"'}, {3: '"Weird" Al', 4: '"Heroes"'}, "'none'"),
    "a lone quote": ({5: '"Heroes'}, {5: '"Heroes', 6: "Title 6", N: f"Title {N}"}, "'none'"),
    "two lone quotes": ({5: '"Heroes', 9: 'Screen 12"'}, {5: '"Heroes', 7: "Title 7", 9: 'Screen 12"'}, "'none'"),
    "three lone quotes": ({5: '"A', 9: '"B', 12: '"C'}, {5: '"A', 8: "Title 8", 12: '"C'}, "'none'"),
    "quotes in the middle": ({5: 'The "A" Team', 6: '5" pipe'}, {5: 'The "A" Team', 6: '5" pipe'}, ""),
    "all quoted": ({n: f'"No. ""{n}"""' for n in range(1, N + 1)}, {1: 'No. "1"'}, "'csv'"),
    "a quoted tab": ({3: '"Red\tand ""big"""', 4: '"X"'}, {3: 'Red and "big"', 4: "X"}, ""),
    "a quoted line break": ({3: '"Red\nand big"', 4: '"X"'}, {3: "Red and big", 4: "X"}, ""),
    "a backslash": ({3: '"The \\"A\\" Team"', 4: '12\\" disc'}, {3: 'The "A" Team', 4: '12" disc'}, "'backslash'"),
}


@pytest.mark.parametrize("kind", TSV)
def test_quotes_in_a_tsv(tmp_path: Path, kind: str) -> None:
    written, expected, note = TSV[kind]
    dataset = load_titles(tmp_path, items(written, "\t"), "items__tsv")
    assert dataset.report.bad == ()
    assert dataset.report.rows["items.tsv"] == N
    assert {n: dataset.catalog.titles[n - 1] for n in expected} == expected
    assert (note in notes(dataset)) if note else not dataset.report.notes


CSV: dict[str, tuple[dict[int, str], dict[int, str]]] = {
    "Spark": ({3: '"Said \\"hi\\", left"', 4: '"A, B"'}, {3: 'Said "hi", left', 4: "A, B"}),
    "Spark with line breaks": ({3: '"Said \\"hi\\"\nand left, soon"', 4: '"A, B"'}, {3: 'Said "hi" and left, soon'}),
    "MySQL": ({3: '12\\" disc', 4: "A\\, B"}, {3: '12" disc', 4: "A, B"}),
    "pandas without quotes": ({3: "Toy\\, Story", 4: "C:\\\\dir"}, {3: "Toy, Story", 4: "C:\\dir"}),
    "a path": ({3: '"C:\\dir\\"', 4: '"A, B"', 5: "D:\\x"}, {3: "C:\\dir\\", 4: "A, B", 5: "D:\\x"}),
    "JSON": ({3: '"{""a"": ""5\\"" disc""}"'}, {3: '{"a": "5\\" disc"}'}),
    "line breaks and commas": (
        {3: '"Hello there,\nfoo, bar\nand so on, or not\n"', 4: '"One\n\ntwo ""three""\nfour"', 5: '"A, B"'},
        {3: "Hello there, foo, bar and so on, or not", 4: 'One two "three" four', 5: "A, B"},
    ),
    "carriage returns": ({3: '"Hello\rthere"', 4: 'The\r "A" Team'}, {3: "Hello there", 4: 'The "A" Team'}),
    "a long field": ({3: '"' + "x, " * 70_000 + '"', 4: '"A, B"'}, {4: "A, B"}),
}


@pytest.mark.parametrize("kind", CSV)
def test_quotes_in_a_csv(tmp_path: Path, kind: str) -> None:
    written, expected = CSV[kind]
    dataset = load_titles(tmp_path, items(written))
    assert dataset.report.bad == ()
    assert dataset.report.rows["items.csv"] == N
    assert {n: dataset.catalog.titles[n - 1] for n in expected} == expected


def test_a_first_field_may_hold_line_breaks(tmp_path: Path) -> None:
    rows = "".join(f'"Two\nlines {n}",{n},Books\n' for n in range(1, N + 1))
    dataset = load_titles(tmp_path, "title,item_id,categories\n" + rows)
    assert (dataset.report.bad, dataset.report.rows["items.csv"]) == ((), N)
    assert dataset.catalog.titles[4] == "Two lines 5"


@pytest.mark.parametrize(
    "titles",
    [
        {5: '"Title 5'},
        {5: '"Title 5', 20: 'Screen 12"'},  # which would close it
        {5: '"Title 5', 7: "Title, 7", 8: "Title, 8", 20: 'Screen 12"'},
    ],
)
def test_a_lone_quote_of_a_csv_costs_its_own_row_alone(tmp_path: Path, titles: dict[int, str]) -> None:
    dataset = load_titles(tmp_path, items(titles | {25: '"A, B"'}), max_bad_share=0.5)
    bad = {found.kind: found for found in dataset.report.bad if found.file == "items.csv"}
    assert bad[BadKind.QUOTE].count == 1
    assert bad[BadKind.QUOTE].examples[0].startswith("items.csv line 6: a quote is opened and never closed")
    assert set(bad) <= {BadKind.QUOTE, BadKind.FIELDS}
    assert {"Title 6", "Title 9", "Title 19", "A, B"} <= set(dataset.catalog.titles)


def test_data_quoting_is_heeded_in_every_format(tmp_path: Path) -> None:
    """The same titles read in the three ways, and what each makes of them."""
    titles = {3: '"Heroes"', 4: '12\\" disc', 5: '"A, ""B"""'}
    expected = {
        "csv": ("Heroes", '12\\" disc', 'A, "B"'),
        "none": ('"Heroes"', '12\\" disc', '"A, ""B"""'),
        "backslash": ("Heroes", '12" disc', 'A, "B"'),
    }
    inter = INTERACTIONS.replace("user_id,item_id,time", "user_id:token,item_id:token,timestamp:float").replace(
        ",", "\t"
    )
    item = items(titles, "\t").replace("item_id\ttitle", "item_id:token\ttitle:token_seq")
    write(tmp_path / "r", s__inter=inter, s__item=item)
    write(tmp_path / "t", interactions__csv=INTERACTIONS, items__tsv=items(titles, "\t"))
    flags = "|0" * 19
    movies = "".join(f"{n}|{titles.get(n, f'Title {n}')}|d||x{flags}\n" for n in range(1, N + 1))
    ratings = "".join(f"u{n // N}\t{n % N + 1}\t5\t{n}\n" for n in range(4 * N))
    write(tmp_path / "m", u__data=ratings, u__item=movies)
    for quoting, shown in expected.items():
        for folder in "rtm":
            dataset = load(tmp_path / folder, quoting=quoting)
            assert (folder, quoting, *dataset.catalog.titles[2:5]) == (folder, quoting, *shown)
            assert dataset.report.bad == ()
    assert load(tmp_path / "r").catalog.titles[2:5] == expected["none"], "atomic files hold no quotes by default"


def test_csv_that_is_asked_for_joins_what_a_guess_would_not(tmp_path: Path) -> None:
    """Two rows of two columns, or one with a line break: the file cannot tell, its owner can."""
    content = items({3: '"Hello\nfoo,bar"'})
    assert load_titles(tmp_path, content, quoting="csv").catalog.titles[2] == "Hello foo,bar"
    with pytest.raises(DeepRecError, match=r"items\.csv line 4: a quote is opened and never closed.*data\.quoting"):
        load_titles(tmp_path, content)


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\ufeff"), max_size=12).map(str.strip)
ROWS = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=12)


def read_rows(path: Path, content: str, ledger: Ledger) -> list[tuple[str, ...]]:
    path.write_bytes(content.encode())
    return read_any(path, ledger).drop("#line").rows()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, delimiter=st.sampled_from(",;\t|"), every=st.booleans())
def test_what_a_csv_writer_wrote_is_read(
    scratch: Path, rows: list[tuple[str, str]], delimiter: str, every: bool
) -> None:
    written = io.StringIO()
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    out = csv.writer(written, delimiter=delimiter, lineterminator="\n", quoting=quoting)
    numbered = [(f"i{n}", *row) for n, row in enumerate(rows)]
    out.writerows([("a", "b", "c"), *numbered])
    ledger = Ledger("csv")
    found = read_rows(scratch / "w.csv", written.getvalue(), ledger)
    # Blank lines inside a field are dropped.
    squeeze: Callable[[str], str] = lambda cell: "\n".join(line for line in cell.split("\n") if line.strip()).strip()  # noqa: E731
    assert [tuple(map(squeeze, row)) for row in found] == [tuple(map(squeeze, row)) for row in numbered]
    assert (ledger.bad, ledger.rows) == ((), {"w.csv": len(rows)})


QUOTED = st.text(st.sampled_from('ab "\\'), max_size=8).map(str.strip)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(QUOTED, min_size=1, max_size=15), ending=st.sampled_from(["tsv", "csv"]))
def test_no_quote_swallows_a_row(scratch: Path, cells: list[str], ending: str) -> None:
    """Lines of three fields are as many rows, each with its own id, whatever quotes stand in them."""
    mark = "\t" if ending == "tsv" else ","
    text = f"a{mark}b{mark}c\n" + "".join(f"i{n}{mark}{cell}{mark}x\n" for n, cell in enumerate(cells))
    ledger = Ledger()
    found = read_rows(scratch / f"q.{ending}", text, ledger)
    assert ledger.rows == {f"q.{ending}": len(cells)}
    assert len(found) + sum(bad.count for bad in ledger.bad) == len(cells)
    ids = [row[0] for row in found]
    assert ids == [f"i{n}" for n in range(len(cells)) if f"i{n}" in ids]
    if ending == "tsv":
        assert not ledger.bad, "quotes are text, if nothing else fits"


# --- counting and causes ------------------------------------------------------------------------------------


def test_files_of_one_name_are_counted_apart(tmp_path: Path) -> None:
    bad = INTERACTIONS.replace(",7\n", ",soon\n")
    folder = write(tmp_path / "a", data__csv=bad)
    write(tmp_path / "b", data__csv=items({}))
    dataset = load(folder / "data.csv", items=str(tmp_path / "b" / "data.csv"))
    assert dataset.report.rows == {"a/data.csv": 4 * N, "b/data.csv": N}
    assert dataset.report.bad[0].examples[0].startswith("a/data.csv line 9: time 'soon'")
    with pytest.raises(DeepRecError, match=r"1 of 120 rows of a/data\.csv are bad"):
        load(folder / "data.csv", items=str(tmp_path / "b" / "data.csv"), max_bad_share=0.005)
    write(tmp_path / "c", data__csv=items({}).replace("title", "titel"))
    with pytest.raises(DeepRecError, match=r"^c/data\.csv has no title column"):
        load(folder / "data.csv", items=str(tmp_path / "c" / "data.csv"))


def test_csv_and_parquet_of_one_stem(tmp_path: Path) -> None:
    write(tmp_path / "a", data__csv=INTERACTIONS.replace(",7\n", ",soon\n"))
    table = pl.read_csv(io.StringIO(items({})))
    table.write_parquet(tmp_path / "a" / "data.parquet")
    dataset = load(tmp_path / "a" / "data.csv", items=str(tmp_path / "a" / "data.parquet"))
    assert dataset.report.rows == {"data.csv": 4 * N, "data.parquet": N}


def test_interactions_that_name_themselves_as_items(tmp_path: Path) -> None:
    rows = INTERACTIONS.splitlines()
    table = rows[0] + ",title\n" + "".join(f"{row},Title {row.split(',')[1]}\n" for row in rows[1:])
    path = write(tmp_path, shop__csv=table) / "shop.csv"
    dataset = load(path, items=str(path))
    assert (dataset.report.bad, dataset.catalog.titles[1]) == ((), "Title 2")


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_files_of_every_format(tmp_path: Path, kind: str) -> None:
    pack, dot = PACKED[kind], f"__{kind}"
    parquet = io.BytesIO()
    pl.read_csv(io.StringIO(items({}))).write_parquet(parquet)
    inter = INTERACTIONS.replace("user_id,item_id,time", "user_id:token,item_id:token,timestamp:float").replace(
        ",", "\t"
    )
    item = items({}, "\t").replace("item_id\ttitle", "item_id:token\ttitle:token_seq")
    meta = "".join(f'{{"parent_asin": "{n}", "title": "Title {n}"}}\n' for n in range(1, N + 1))
    ratings = INTERACTIONS.replace("item_id,time", "parent_asin,timestamp")
    sets: list[dict[str, str | bytes]] = [
        {"interactions__csv" + dot: INTERACTIONS, "items__tsv" + dot: items({}, "\t")},
        {"interactions__csv" + dot: INTERACTIONS, "items__parquet" + dot: parquet.getvalue()},
        {"s__inter" + dot: inter, "s__item" + dot: item},
        {"T__csv" + dot: ratings, "meta_T__jsonl" + dot: meta},
        {"interactions__csv": INTERACTIONS, "items__csv": items({})},  # by content, not by name
    ]
    for number, files in enumerate(sets):
        raw = {name: pack(text if isinstance(text, bytes) else text.encode()) for name, text in files.items()}
        dataset = load(write(tmp_path / str(number), **raw))
        assert (len(dataset.items_N), dataset.catalog.titles[N - 1]) == (4 * N, f"Title {N}")
        assert dataset.report.bad == ()


@pytest.mark.parametrize("kind", PACKED)
def test_compressed_files_that_are_cut_short(tmp_path: Path, kind: str) -> None:
    short = PACKED[kind](INTERACTIONS.encode())[:-9]
    write(tmp_path, **{f"interactions__csv__{kind}": short, "items__csv": items({})})
    with pytest.raises(DeepRecError, match=rf"interactions\.csv\.{kind} is not a whole .*: fetch it again\."):
        load(tmp_path)
    write(tmp_path, **{f"interactions__csv__{kind}": INTERACTIONS})
    with pytest.raises(DeepRecError, match=rf"take \.{kind} off its name"):
        load(tmp_path)


HEADERLESS = "".join(f"u{n // N},{n % N + 1},5.0,{n}\n" for n in range(4 * N))
AT = {"user": 1, "item": "2", "time": 4}


def test_tables_without_header(tmp_path: Path) -> None:
    write(tmp_path / "a", ratings__csv=HEADERLESS, items__csv=items({}))
    dataset = load(tmp_path / "a", header=False, columns=AT)
    assert (len(dataset.items_N), dataset.catalog.titles[0], dataset.report.bad) == (4 * N, "Title 1", ())
    bare = "".join(f"{n};Title {n};Toys|Red\n" for n in range(1, N + 1))
    write(tmp_path / "b", ratings__csv=HEADERLESS, items__csv=bare)
    other = load(tmp_path / "b", header=False, columns=AT | {"title": 2, "categories": "3"})
    assert other.fingerprint == dataset.fingerprint
    assert other.catalog.titles == dataset.catalog.titles
    assert other.catalog.categories[0] == ("Toys", "Red")
    alone = HEADERLESS.replace(",5.0,", ",Title,")
    write(tmp_path / "c", ratings__csv=alone)
    assert load(tmp_path / "c", header=False, columns=AT | {"title": 3}).catalog.titles[0] == "Title"
    with pytest.raises(DeepRecError, match=r"ratings\.csv has no user column '9' \(its columns: 1, 2, 3, 4\)"):
        load(tmp_path / "a", header=False, columns=AT | {"user": 9})


def test_a_missing_header_is_named(tmp_path: Path) -> None:
    write(tmp_path, ratings__csv=HEADERLESS, items__csv=items({}))
    with pytest.raises(DeepRecError, match=r"its first line is a row \(u0, 1, 5\.0, 0\): set data\.header = false"):
        load(tmp_path)
    write(tmp_path, ratings__csv=INTERACTIONS, items__csv=items({}).partition("\n")[2])
    with pytest.raises(DeepRecError, match=r"items\.csv has no .*first line is a row \(1, Title 1\): set data\.header"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\n" + INTERACTIONS.replace(",", ";"),
        '"sep=|"\n' + INTERACTIONS.replace(",", "|"),
        "sep=\t\n" + INTERACTIONS.replace(",", "\t"),
        INTERACTIONS.replace(",", " "),
        INTERACTIONS.replace(",", "   "),
        INTERACTIONS.replace("user_id,item_id,time", "user_id item_id time"),
        INTERACTIONS.replace(",", "\t").replace("user_id\titem_id\ttime", "user_id item_id  time"),
    ],
)
def test_separators_that_a_first_line_says_or_hides(tmp_path: Path, text: str) -> None:
    dataset = load(write(tmp_path, interactions__csv=text, items__csv=items({})))
    assert (len(dataset.items_N), dataset.report.bad) == (4 * N, ())


# --- cells that mean nothing --------------------------------------------------------------------------------

TEXT = "item_id,title,brand,categories,description,year\n"


@pytest.mark.parametrize("nothing", ["nan", "NaN", "null", "NULL", "N/A", "\\N", "<NA>", "None"])
def test_programs_spell_nothing_in_many_ways(tmp_path: Path, nothing: str) -> None:
    rows = [f"{n},{nothing},{nothing},{nothing},{nothing},{nothing}\n" for n in (1, 2)]
    rows += [f"{n},Title {n},B,X|{nothing},D,1999\n" for n in range(3, N + 1)]
    dataset = load_titles(tmp_path, TEXT + "".join(rows))
    catalog = dataset.catalog
    assert catalog.titles[:3] == ("Untitled item 1", "Untitled item 2", "Title 3 (1999)")
    assert (catalog.brands[:3], catalog.descriptions[:3]) == (("", "", "B"), ("", "", "D"))
    assert (catalog.categories[:3], catalog.years[:3]) == (((), (), ("X",)), (None, None, 1999))
    assert not any("years" in note for note in dataset.report.notes)


def test_ids_and_names_of_films_stay(tmp_path: Path) -> None:
    interactions = "user_id,item_id,time\nnan,null,1\nnan,None,2\nNone,nan,3\nNA,0,4\n"
    text = "null,None,NAN,Nan,\nNone,Null,B,,\nnan,NA,B,,\n0,Nan,B,,\n".replace("\n", ",\n")
    dataset = load(write(tmp_path, interactions__csv=interactions, items__csv=TEXT + text))
    assert dataset.users == ("NA", "nan", "None")
    assert dict(zip(dataset.catalog.ids, dataset.catalog.titles, strict=True)) == {
        "null": "None", "None": "Null", "nan": "NA", "0": "Nan",
    }  # fmt: skip
    assert (dataset.catalog.brands[3], dataset.catalog.categories[3]) == ("NAN", ("Nan",))


@pytest.mark.parametrize("year", ["0", "0000", "0.0", "0000-00-00", "0000-00-00 00:00:00", "nan"])
def test_the_year_zero_is_none(tmp_path: Path, year: str) -> None:
    dataset = load_titles(
        tmp_path, TEXT + "".join(f"{n},Title {n},,,,{year if n < 9 else 1987}\n" for n in range(1, 31))
    )
    assert (dataset.catalog.years[0], dataset.catalog.titles[0]) == (None, "Title 1")
    assert (dataset.catalog.years[-1], dataset.report.notes) == (1987, ())


def test_html_entities_are_characters_in_every_format(tmp_path: Path) -> None:
    written = "Salt &amp; Pepper&#39;s &lt;b&gt;"
    shown = "Salt & Pepper's ‹b›"
    rows = "".join(f"{n},{written},{written},Health &amp; Care|Toys,AT&T,\n" for n in range(1, N + 1))
    write(tmp_path / "a", interactions__csv=INTERACTIONS, items__csv=TEXT + rows)
    write(tmp_path / "b", interactions__csv=INTERACTIONS, items__csv=(TEXT + rows).replace("|Toys", ""))
    pl.read_csv(io.StringIO(TEXT + rows)).write_parquet(tmp_path / "p.parquet")
    inter = INTERACTIONS.replace("user_id,item_id,time", "user_id:token,item_id:token,timestamp:float").replace(
        ",", "\t"
    )
    write(tmp_path / "r", s__inter=inter, s__item=(TEXT + rows).replace("\n", ":x\n", 1).replace(",", "\t"))
    for source, options in (("a", {}), ("b", {}), ("r", {}), ("a", {"items": str(tmp_path / "p.parquet")})):
        catalog = load(tmp_path / source, **options).catalog
        assert (catalog.titles[0], catalog.brands[0], catalog.descriptions[0]) == (shown, shown, "AT&T")
        assert catalog.categories[0] == (("Health & Care",) if source == "b" else ("Health & Care", "Toys"))


def test_a_blank_first_title_hides_no_later_one(tmp_path: Path) -> None:
    rows = "user_id,item_id,time,title,brand\nu,1,1,,\nu,2,2,nan,X\nv,1,3,One,\nv,2,4,Two,Y\nw,1,5,Uno,Z\n"
    dataset = load(write(tmp_path / "a", shop__csv=rows))
    assert (dataset.catalog.titles, dataset.catalog.brands) == (("One", "Two"), ("Z", "X"))
    assert dataset.report.bad == ()
    twice = items({3: ""}) + "3,Three\n4,Quatre\n"
    dataset = load_titles(tmp_path / "b", twice, max_bad_share=0.1)
    assert dataset.catalog.titles[2:4] == ("Three", "Title 4")
    assert [(bad.kind, bad.count) for bad in dataset.report.bad] == [(BadKind.REPEATED_ITEM, 2)]
