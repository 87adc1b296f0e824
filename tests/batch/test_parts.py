"""A table in parts: nothing is lost, mixed or overwritten."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

from deeprec.batch.parts import Parts, table_in_parts
from deeprec.errors import DeepRecError

RECORD = {"data set": ["d"], "choice of users": "u", "k": 3}
READERS = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}


def part(number: int) -> pl.DataFrame:
    users = [f"u{number}, é", f'"{number}"']
    return pl.DataFrame({"user": users, "rank": [2 * number, 1], "score": [0.1 * number, None]})


def fill(parts: Parts, numbers: Iterable[int]) -> None:
    for number in numbers:
        parts.add(number, part(number))


def stop(parts: Parts, numbers: Iterable[int]) -> None:
    fill(parts, numbers)
    raise KeyboardInterrupt


def interrupt(path: Path, numbers: Iterable[int], record: dict[str, object] = RECORD) -> None:
    with pytest.raises(KeyboardInterrupt), table_in_parts(path, record, 3) as parts:
        stop(parts, numbers)


def log_and_fail(parts: Parts, number: int) -> None:
    parts.log(number).append({"user": "u0"})
    raise RuntimeError("a bug")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a [new] folder" / "table.parquet"


@pytest.mark.parametrize("ending", READERS)
def test_parts_become_the_file_in_order(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"table.{ending}"
    with table_in_parts(path, RECORD, 3) as parts:
        fill(parts, (2, 0, 1))
    assert READERS[ending](path).equals(pl.concat(map(part, range(3))))
    assert left(tmp_path) == {path.name}


def test_an_interrupted_table_goes_on(path: Path) -> None:
    unbroken = path.with_name("other.parquet")
    with table_in_parts(unbroken, RECORD, 3) as parts:
        fill(parts, range(3))
    interrupt(path, [1])
    assert left(path.parent) == {unbroken.name, f"{path.name}.parts"}
    with table_in_parts(path, RECORD, 3) as parts:
        assert parts.missing() == [0, 2]
        parts.log(0).append({"user": "u0"})
        fill(parts, (0, 2))
        assert list(parts.log(0)) == []
    assert path.read_bytes() == unbroken.read_bytes()
    assert left(path.parent) == {unbroken.name, path.name}


def test_what_is_logged_survives(path: Path) -> None:
    interrupt(path, [0])
    with pytest.raises(RuntimeError, match="a bug"), table_in_parts(path, RECORD, 3) as parts:
        log_and_fail(parts, 1)
    with table_in_parts(path, RECORD, 3) as parts:
        assert list(parts.log(1)) == [{"user": "u0"}]
        assert list(parts.log(2)) == []
        fill(parts, parts.missing())


def test_parts_of_other_settings_are_not_mixed_in(path: Path) -> None:
    interrupt(path, [0, 1])
    other = RECORD | {"k": 4, "choice of users": "v"}
    with (
        pytest.raises(DeepRecError, match=r"table\.parquet\.parts holds .* another choice of users and another k: "),
        table_in_parts(path, other, 3),
    ):
        pytest.fail("the block must not run")
    with table_in_parts(path, {**RECORD, "data set": ("d",)}, 3) as parts:  # a tuple, which JSON makes a list
        assert parts.missing() == [2]
        fill(parts, [2])
    with table_in_parts(path.with_name("next.parquet"), other, 3) as parts:
        assert parts.missing() == [0, 1, 2]
        fill(parts, range(3))


def test_a_file_is_not_overwritten(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(DeepRecError, match=r"table\.parquet is there already and is kept: remove it"):
        interrupt(path, [])
    assert left(path.parent) == {path.name}
    path.unlink()
    interrupt(path, [0, 1])
    path.write_text("precious")  # meanwhile
    with pytest.raises(DeepRecError, match="is there already"):
        interrupt(path, [])
    assert path.read_text() == "precious"
    path.unlink()
    with table_in_parts(path, RECORD, 3) as parts:
        assert parts.missing() == [2]
        fill(parts, [2])


def test_a_run_killed_at_its_very_end_is_finished(path: Path) -> None:
    interrupt(path, range(3))
    path.write_text("joined")
    with table_in_parts(path, RECORD, 3) as parts:
        assert parts.missing() == []
    assert path.read_text() == "joined"
    assert left(path.parent) == {path.name}


def test_what_others_left_in_the_folder_stays(path: Path) -> None:
    folder = path.with_name(f"{path.name}.parts")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("precious")
    with table_in_parts(path, RECORD, 3) as parts:
        fill(parts, range(3))
    assert path.exists()
    assert left(folder) == {"notes.txt"}


def test_one_process_at_a_time(path: Path) -> None:
    with table_in_parts(path, RECORD, 3) as parts:
        with pytest.raises(DeepRecError, match="Another process is at work"):
            interrupt(path, [])
        fill(parts, range(3))
    assert path.exists()


@pytest.mark.parametrize("name", ["table", "table.xlsx", "table.csv.gz"])
def test_an_unknown_ending_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeepRecError, match=rf"{name} names no format: let it end in \.parquet, \.csv, \.jsonl\."):
        interrupt(tmp_path / name, [])
    assert left(tmp_path) == set()


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_damaged_record_is_one_sentence(path: Path, text: str) -> None:
    interrupt(path, [0])
    record = path.with_name(f"{path.name}.parts") / "record.json"
    assert json.loads(record.read_text()) == RECORD
    record.write_text(text)
    with pytest.raises(DeepRecError, match=r"record\.json is damaged: remove"):
        interrupt(path, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("file", ["part", "joined"])
def test_a_full_disk_is_one_sentence_and_keeps_the_parts(tmp_path: Path, ending: str, file: str) -> None:
    path = tmp_path / f"table.{ending}"
    interrupt(path, [0])
    (tmp_path / f"{path.name}.parts" / file).symlink_to("/dev/full")
    with pytest.raises(DeepRecError, match="disk"), table_in_parts(path, RECORD, 3) as parts:
        fill(parts, parts.missing())
    assert not path.exists()
    (tmp_path / f"{path.name}.parts" / file).unlink(missing_ok=True)
    with table_in_parts(path, RECORD, 3) as parts:
        assert parts.missing() == ([1, 2] if file == "part" else [])
        fill(parts, parts.missing())
    assert READERS[ending](path).equals(pl.concat(map(part, range(3))))
