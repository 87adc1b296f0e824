"""Times in the cells of a file, numbers or dates in many forms, to seconds since 1970."""

from __future__ import annotations

import polars as pl

from deeprec.data.report import FILE, LINE, Ledger, position, shorten
from deeprec.errors import DeepRecError

_UNITS = {"seconds": 1e0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_FIRST_DATE = 1e8  # March 1973; smaller numbers are counters
_LAST_DATE = 4_102_444_800  # 2100-01-01
_SURE = 0.9  # share of the numbers of eight or twelve digits that must be dates, else they are counters
# Numbers that may be mistaken for a date of so many digits; none of fourteen or more, which pass 2100 in any unit.
_RIVALS = {8: (1, 1e8), 12: (1e11, 1e12), 14: (0, 0), 17: (0, 0)}

_ISO = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z")
_CLOCK = (
    r"(?<hour>\d{1,2}):(?<minute>\d\d)(?::(?<second>\d\d)(?:[.,](?<fraction>\d{1,9}))?)?"
    r"(?: ?(?<half>[AaPp])\.?[Mm]\.?)?"
)
_ZONE = r"(?: ?(?:[Zz]|UTC|GMT)?(?<zone>[+-]\d\d(?::?\d\d)?)?)"
_REST = rf"(?:(?:[Tt]|,? ){_CLOCK}{_ZONE})?$"
_WEEKDAY = r"^(?:[A-Za-z]{3,9}\.?,? )?"
_MONTH = r"(?<name>[A-Za-z]{3})[a-z]*\.?"
_FORMS = (
    rf"^(?<year>\d{{4}})[-/.](?<month>\d{{1,2}})[-/.](?<day>\d{{1,2}}){_REST}",
    rf"^(?<year>\d{{4}})(?<month>\d\d)(?<day>\d\d)"
    rf"(?:[Tt ]?(?<hour>\d\d):?(?<minute>\d\d)(?::?(?<second>\d\d)[.,]?(?<fraction>\d{{1,9}})?)?{_ZONE})?$",
    rf"^(?<one>\d{{1,2}})[-/. ](?<two>\d{{1,2}})(?:[-/.]|, )(?<year>\d{{4}}){_REST}",
    rf"{_WEEKDAY}{_MONTH} (?<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?<year>\d{{4}}){_REST}",
    rf"{_WEEKDAY}(?<day>\d{{1,2}})[ -]{_MONTH},?[ -](?<year>\d{{4}}){_REST}",
    rf"{_WEEKDAY}{_MONTH} (?<day>\d{{1,2}}) {_CLOCK}{_ZONE} (?<year>\d{{4}})$",  # of C, Java, Ruby
)
"""Dates as people and programs write them; `one` and `two` are day and month in an order that the file must tell."""

_FIELDS = ("year", "month", "day", "one", "two", "name", "hour", "minute", "second", "fraction", "half", "zone")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ASIDE = r"\s*(?:\([^)]*\)|\[[^\]]*\])$"  # the zone's name after its offset


def read_times(rows: pl.DataFrame, file: str, time_format: str | None, ledger: Ledger) -> pl.Series:
    """Seconds since 1970 of the cells in the column `order` (Float64), null where a cell is no time.

    Numbers may be seconds, milli-, micro- or nanoseconds, told apart row by row where a file mixes them, or digits of
    a date (20200913, 20200913124320). Numbers that are no dates are counters and stay. Dates without a zone are UTC.
    `time_format` (strptime) reads all cells by one form. The ledger notes units, and dates outside 1970 to 2100.
    DeepRecError where a file mixes units and a number fits none, and where no row tells day from month.
    """
    cells = rows["order"]
    if time_format is not None:
        seconds = _by_format(cells, time_format, file)
        _note_far(rows, seconds, file, ledger)
        return seconds
    numbers = cells.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)
    seconds, is_date = _read_numbers(rows, numbers, file, ledger)
    text = cells.filter(numbers.is_null())
    if not text.is_empty():
        at = numbers.is_null().arg_true()
        dates = _iso(text)
        if (rest := dates.is_null() & (text != "")).any():
            found = rows.select(pl.exclude("order"), order=cells)[at].filter(rest)
            dates = dates.scatter(rest.arg_true(), _read_dates(found, file))
        seconds = seconds.scatter(at, dates)
        is_date = is_date.scatter(at, dates.is_not_null())
    _note_far(rows, seconds.set(~is_date, None), file, ledger)
    return seconds


def _by_format(cells: pl.Series, form: str, file: str) -> pl.Series:
    key = f"data.columns.time_format = {form!r}"
    try:
        chrono = form.replace(".%f", "%.f")  # Rust's %f has no fewer than nine digits
        seconds = cells.str.to_datetime(chrono, time_unit="us", strict=False).dt.epoch("us") / 1e6
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise DeepRecError(f"{key} reads no times ({reason}): write a form as '%d/%m/%Y %H:%M'.") from None
    if seconds.is_null().all():
        raise DeepRecError(f"No time of {file} has the form {key}, the first is {shorten(cells[0])}: mend the form.")
    return seconds


def _read_numbers(rows: pl.DataFrame, numbers: pl.Series, file: str, ledger: Ledger) -> tuple[pl.Series, pl.Series]:
    """Seconds, and which of them are dates and no counters."""
    dates = _dates_in_digits(rows["order"], numbers)
    numbers = numbers.set(dates.is_not_null(), None)
    seconds, is_date = _to_seconds(rows, numbers, file, ledger)
    return seconds.zip_with(dates.is_null(), dates).fill_nan(None), is_date | dates.is_not_null()


def _dates_in_digits(cells: pl.Series, numbers: pl.Series) -> pl.Series:
    """Seconds of numbers such as 20200913 and 20200913124320, NaN for 20200931 among them, null for others.

    Fourteen digits and more cannot be a time since 1970 in any unit. Eight or twelve might be a counter, so nearly all
    numbers of that size must be dates.
    """
    nothing = pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
    digits = cells.str.replace(r"\.0*$", "")
    shaped = numbers.is_not_null() & digits.str.contains(r"^(?:19[7-9]\d|20\d\d)\d{4}(?:\d{4}|\d{6}|\d{9})?$")
    if not shaped.any():
        return nothing
    dates = nothing.scatter(shaped.arg_true(), _read_fields(digits.filter(shaped), None))
    lengths = digits.str.len_chars()
    for length, (low, high) in _RIVALS.items():
        own = shaped & (lengths == length)
        count = int((own & dates.is_not_null()).sum())
        rivals = numbers.abs().is_between(low, high, closed="left").sum()
        if count == 0 or count < _SURE * int(rivals):
            dates = dates.set(own, None)
        else:
            dates = dates.set(own & dates.is_null(), float("nan"))
    return dates


def _to_seconds(rows: pl.DataFrame, numbers: pl.Series, file: str, ledger: Ledger) -> tuple[pl.Series, pl.Series]:
    """Numbers in the unit that all have, or each in the only one in which it is a date of 1973 to 2100."""
    size = numbers.abs()
    fits = {unit: (size >= _FIRST_DATE * scale) & (size < _LAST_DATE * scale) for unit, scale in _UNITS.items()}
    found = {unit: int(fit.sum()) for unit, fit in fits.items() if fit.any()}
    dated = numbers.is_not_null()
    if len(found) < 2:
        if sum(found.values()) * 2 <= numbers.count():
            dated = pl.zeros(len(numbers), dtype=pl.Boolean, eager=True)  # they count
        median = size.median()
        for unit, scale in _UNITS.items():
            if scale > 1 and isinstance(median, float) and _FIRST_DATE * scale <= median < 1e11 * scale:
                ledger.notes.append(f"times are {unit} and were divided by {scale:g}")
                return numbers / scale, dated
        return numbers, dated
    seconds = numbers.set(numbers != 0, None)
    for unit in found:
        seconds = seconds.zip_with(~fits[unit].fill_null(False), numbers / _UNITS[unit])
    units = " and ".join(found)
    odd = numbers.is_not_null() & seconds.is_null()
    if odd.any():
        where, cell = _first(rows, odd, file)
        raise DeepRecError(
            f"{file} has times in {units}, and {cell} in {where} may be either: write all in one unit, "
            "or name the column with data.columns.position if it counts."
        )
    counts = ", ".join(f"{count:,} in {unit}" for unit, count in found.items())
    ledger.notes.append(f"times of {file} are in {units}, told apart row by row ({counts}), and became seconds")
    return seconds, dated


def _iso(text: pl.Series) -> pl.Series:
    """Seconds of ISO dates in their usual forms, the fast way."""
    plain = pl.col("text").str.replace("[Tt]", " ").str.replace("[Zz]$", "")
    moments = [plain.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us") for form in _ISO]
    return pl.DataFrame({"text": text}).select(pl.coalesce(*moments) / 1e6).to_series()


def _read_dates(rows: pl.DataFrame, file: str) -> pl.Series:
    """Seconds of dates in any of the forms; DeepRecError where day and month cannot be told apart."""
    text = rows["order"].str.replace_all(r"\s+", " ").str.replace(_ASIDE, "")
    pair = pl.DataFrame({"text": text}).select(pl.col("text").str.extract_groups(_FORMS[2])).unnest("text")
    one, two = (pair[name].cast(pl.Int64, strict=False) for name in ("one", "two"))
    day_first, month_first = (one > 12) & (two <= 12), (two > 12) & (one <= 12)
    for told, other in ((day_first, month_first), (month_first, day_first)):
        if told.any() and not other.any():
            return _read_fields(text, told is day_first)
    unclear = (one != two) & (one <= 12) & (two <= 12)
    mend = "say the form with data.columns.time_format, as '%d/%m/%Y' or '%m/%d/%Y %H:%M'"
    if day_first.any():
        (where, cell), (there, other_cell) = (_first(rows, mask, file) for mask in (day_first, month_first))
        raise DeepRecError(
            f"Times have the day first ({where}: {cell}) and the month first ({there}: {other_cell}): {mend}."
        )
    if unclear.any():
        where, cell = _first(rows, unclear, file)
        raise DeepRecError(f"{where}: time {cell} may have the day or the month first, and no row tells: {mend}.")
    return _read_fields(text, True)


def _read_fields(text: pl.Series, day_first: bool | None) -> pl.Series:
    """Seconds by the first form that each text has, null without one and for no day of the calendar."""
    whole = pl.DataFrame({"text": text})
    found = [whole.select(pl.col("text").str.extract_groups(form)).unnest("text") for form in _FORMS]
    fields = pl.DataFrame(
        {
            name: pl.select(pl.coalesce(*(frame[name] for frame in found if name in frame.columns))).to_series()
            for name in _FIELDS
        }
    )
    day, month = ("one", "two") if day_first else ("two", "one")
    names = (
        pl.col("name")
        .str.to_lowercase()
        .replace_strict(_MONTHS, [str(number) for number in range(1, 13)], default=None, return_dtype=pl.String)
    )
    date = pl.concat_str(
        "year",
        pl.coalesce("month", names, month).str.zfill(2),
        pl.coalesce("day", day).str.zfill(2),
        separator="-",
    ).str.to_date("%Y-%m-%d", strict=False)
    hour, minute, second = (
        pl.col(name).cast(pl.Int64, strict=False).fill_null(0) for name in ("hour", "minute", "second")
    )
    half = pl.col("half").str.to_lowercase()
    of_half = pl.when(hour.is_between(1, 12)).then(hour % 12 + pl.when(half == "p").then(12).otherwise(0))
    hour = pl.when(half.is_null()).then(hour).otherwise(of_half)
    fraction = pl.concat_str(pl.lit("0."), pl.col("fraction").fill_null("0")).cast(pl.Float64, strict=False)
    zone = pl.col("zone").str.extract_groups(r"(?<sign>[+-])(?<hours>\d\d):?(?<minutes>\d\d)?").struct
    offset = (
        zone.field("hours").cast(pl.Int64, strict=False) * 3600
        + zone.field("minutes").fill_null("0").cast(pl.Int64, strict=False) * 60
    )
    offset = pl.when(zone.field("sign") == "-").then(-offset).otherwise(offset).fill_null(0)
    seconds = date.dt.epoch("s") + hour * 3600 + minute * 60 + second - offset + fraction
    valid = (hour < 24) & (minute < 60) & (second < 60)
    return fields.select(pl.when(valid).then(seconds.cast(pl.Float64))).to_series()


def _note_far(rows: pl.DataFrame, seconds: pl.Series, file: str, ledger: Ledger) -> None:
    far = ((seconds < 0) | (seconds >= _LAST_DATE)).fill_null(False)
    if far.any():
        where, cell = _first(rows, far, file)
        ledger.notes.append(f"{int(far.sum()):,} times of {file} are outside 1970 to 2100, first {cell} in {where}")


def _first(rows: pl.DataFrame, mask: pl.Series, file: str) -> tuple[str, str]:
    """Where the first row of a mask stands, and its cell."""
    row = rows.row(int(mask.fill_null(False).arg_true()[0]), named=True)
    return position(row.get(FILE, file), row[LINE]), shorten(row["order"])
