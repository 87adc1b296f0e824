"""Times as files have them: forms of dates, units, and what is refused or noted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.data.report import LINE, Ledger
from deeprec.data.times import read_times
from deeprec.errors import DeepRecError
from small_tables import ITEMS, load, put

MOMENT = datetime(2020, 9, 13, 12, 43, 20, tzinfo=UTC)


def read(*cells: str, form: str | None = None) -> tuple[list[float | None], list[str]]:
    """Seconds, and the notes."""
    ledger = Ledger()
    rows = pl.DataFrame({"order": list(cells)}).with_row_index(LINE, offset=2)
    return read_times(rows, "f.csv", form, ledger).to_list(), ledger.notes


def at(*moment: int) -> float:
    return datetime(*moment, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cell", "moment"),
    [
        ("20200913124320", MOMENT),
        ("20200913124320.0", MOMENT),
        ("20200913T124320Z", MOMENT),
        ("20200913T124320", MOMENT),
        ("20200913T1243", MOMENT.replace(second=0)),
        ("20200913 12:43:20", MOMENT),
        ("202009131243", MOMENT.replace(second=0)),
        ("20200913", datetime(2020, 9, 13, tzinfo=UTC)),
        ("20200913124320250", MOMENT + timedelta(seconds=0.25)),
        ("2020-09-13 12:43:20 UTC", MOMENT),
        ("2020-09-13 12:43:20 GMT", MOMENT),
        ("2020-09-13 12:43:20 +00:00", MOMENT),
        ("2020-09-13 14:43:20+02", MOMENT),
        ("2020-09-13 14:43:20+0200", MOMENT),
        ("2020-09-13T14:43+02:00", MOMENT.replace(second=0)),
        ("2020-09-13T09:13:20-03:30", MOMENT),
        ("2020-09-13 14:43:20.5+02:00[Europe/Berlin]", MOMENT + timedelta(seconds=0.5)),
        ("2020-09-13T12:43Z", MOMENT.replace(second=0)),
        ("2020-09-13 12:43:20,250", MOMENT + timedelta(seconds=0.25)),
        ("2020/09/13", datetime(2020, 9, 13, tzinfo=UTC)),
        ("2020/9/13 12:43:20", MOMENT),
        ("2020.09.13 12:43", MOMENT.replace(second=0)),
        ("09/13/2020 12:43", MOMENT.replace(second=0)),
        ("9/13/2020, 12:43:20 PM", MOMENT),
        ("9/13/2020 12:43:20 AM", MOMENT.replace(hour=0)),
        ("13.09.2020 12:43", MOMENT.replace(second=0)),
        ("13-09-2020", datetime(2020, 9, 13, tzinfo=UTC)),
        ("09 13, 2020", datetime(2020, 9, 13, tzinfo=UTC)),
        ("Sep 13, 2020", datetime(2020, 9, 13, tzinfo=UTC)),
        ("September 13th, 2020", datetime(2020, 9, 13, tzinfo=UTC)),
        ("13-Sep-2020 12:43:20", MOMENT),
        ("13 September 2020", datetime(2020, 9, 13, tzinfo=UTC)),
        ("Sun, 13 Sep 2020 14:43:20 +0200", MOMENT),
        ("Sun Sep 13 12:43:20 +0000 2020", MOMENT),
        ("Sun Sep 13 12:43:20 UTC 2020", MOMENT),
        ("Sun Sep 13 12:43:20 2020", MOMENT),
        ("Sun Sep 13 2020 14:43:20 GMT+0200 (Central European Summer Time)", MOMENT),
    ],
)
def test_forms_of_dates(cell: str, moment: datetime) -> None:
    assert read(cell) == ([moment.timestamp()], [])


@given(st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31)))
def test_forms_that_python_writes(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    forms = ("%Y%m%d%H%M%S", "%Y%m%dT%H%M%SZ", "%Y/%m/%d %H:%M:%S", "%d %b %Y %I:%M:%S %p", "%c", "%B %d, %Y %H:%M:%S")
    cells = [*(moment.strftime(form) for form in forms), format_datetime(moment), moment.isoformat()]
    assert read(*cells)[0] == [moment.timestamp()] * len(cells)


@pytest.mark.parametrize(
    "cell", ["2020-02-30", "20200230", "2020-09-13 25:00", "13/13/2020", "Foo 13, 2020", "12:43", "x"]
)
def test_what_is_no_date(cell: str) -> None:
    # Others in the file make eight digits a date.
    assert read(*["20200913"] * 20, cell)[0][-1] is None


def test_another_row_tells_the_day_from_the_month() -> None:
    assert read("03/04/2020", "13/04/2020")[0] == [at(2020, 4, 3), at(2020, 4, 13)]
    assert read("03/04/2020", "04/13/2020")[0] == [at(2020, 3, 4), at(2020, 4, 13)]
    assert read("04/04/2020")[0] == [at(2020, 4, 4)]


def test_an_ambiguous_file_is_refused_and_a_form_reads_it() -> None:
    with pytest.raises(DeepRecError, match=r"f\.csv line 3: time '03/04/2020'.*data\.columns\.time_format") as caught:
        read("04/04/2020", "03/04/2020")
    assert "the day or the month first" in str(caught.value)
    with pytest.raises(DeepRecError, match=r"day first \(f\.csv line 2: '13/04/2020'\).*data\.columns\.time_format"):
        read("13/04/2020", "04/13/2020")
    assert read("04/04/2020", "03/04/2020", form="%d/%m/%Y")[0] == [at(2020, 4, 4), at(2020, 4, 3)]
    assert read("04/04/2020", "03/04/2020", form="%m/%d/%Y")[0] == [at(2020, 4, 4), at(2020, 3, 4)]
    assert read("13.09.20 12:43:20.25", form="%d.%m.%y %H:%M:%S.%f")[0] == [MOMENT.timestamp() + 0.25]
    assert read("13.09.2020 14:43:20 +0200", "x", form="%d.%m.%Y %H:%M:%S %z")[0] == [MOMENT.timestamp(), None]


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Q", "day"])
def test_a_form_that_fits_nothing_is_refused(form: str) -> None:
    with pytest.raises(DeepRecError, match=r"data\.columns\.time_format"):
        read("03/04/2020", form=form)


def test_seconds_and_milliseconds_in_one_file() -> None:
    seconds, notes = read("1600000000", "1600000060500", "1600000120", "0")
    assert seconds == [1_600_000_000, 1_600_000_060.5, 1_600_000_120, 0]
    assert len(notes) == 1
    assert "2 in seconds, 1 in milliseconds" in notes[0]
    assert read("1600000000", "1600000000000000", "1600000000000000000", "1.6e12")[0] == [1.6e9] * 4
    assert read("20200913124320", "1600000000", "1600000000000")[0] == [MOMENT.timestamp(), 1.6e9, 1.6e9]


def test_a_number_that_fits_no_unit_of_a_mixed_file_is_refused() -> None:
    with pytest.raises(DeepRecError, match=r"seconds and milliseconds, and '5' in f\.csv line 4"):
        read("1600000000", "1600000000000", "5")


@pytest.mark.parametrize(
    "cells",
    [
        range(100),
        range(20_200_900, 20_201_000),  # counts through what would be dates
        [44087.5, 44088, 44100],  # days of a spreadsheet
        [19_700_101 + 977 * n for n in range(100)],
        [1995, 2020],
        [-5, 0, 3],
    ],
)
def test_counters_stay(cells: object) -> None:
    assert read(*map(str, cells)) == (list(map(float, cells)), [])  # type: ignore[call-overload]


def test_dates_outside_1970_to_2100_are_noted() -> None:
    seconds, notes = read("2020-09-13", "9999-12-31", "1066-10-14", "1970-01-01")
    assert seconds[1] == at(9999, 12, 31)
    assert notes == ["2 times of f.csv are outside 1970 to 2100, first '9999-12-31' in f.csv line 3"]
    assert read("1600000000", "1600000000", "-2e9")[1] == [
        "1 times of f.csv are outside 1970 to 2100, first '-2e9' in f.csv line 4"
    ]


def test_a_set_with_the_form_of_its_times(tmp_path: Path) -> None:
    rows = "user_id,item_id,time\nu,1,03/04/2020\nu,2,02/05/2020\n"
    folder = put(tmp_path, interactions__csv=rows, items__csv=ITEMS)
    with pytest.raises(DeepRecError, match="time_format"):
        load(folder)
    days = {
        form: load(folder, columns={"time_format": form}).describe()["first_date"] for form in ("%d/%m/%Y", "%m/%d/%Y")
    }
    assert days == {"%d/%m/%Y": "2020-04-03", "%m/%d/%Y": "2020-02-05"}


def test_dates_of_parquet(tmp_path: Path) -> None:
    put(tmp_path, items__csv=ITEMS)
    moments = [datetime(2020, 9, 13, 12, 43, 20), datetime(9999, 12, 31)]
    for cells in (
        pl.Series(moments),
        pl.Series(moments).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        pl.Series(moments).cast(pl.Datetime("ms")),
    ):
        frame = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["1", "2"], "time": cells})
        frame.write_parquet(tmp_path / "interactions.parquet")
        dataset = load(tmp_path)
        assert dataset.times_N is not None
        assert dataset.times_N.tolist() == [MOMENT.timestamp(), at(9999, 12, 31)]
        assert any("'9999-12-31 00:00:00" in note for note in dataset.report.notes)
