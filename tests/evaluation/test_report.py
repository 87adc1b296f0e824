"""The report of an evaluation in all its forms, from results made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import polars as pl
import pytest
from rich.console import Console

from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import CachedResult, Explorations, Users
from deeprec.evaluation.report import Report, compare
from deeprec.evaluation.results import Result
from deeprec.evaluation.tables import SetReport

USERS = tuple(f"u{number}" for number in range(40))
ENVIRONMENT = {
    "command": "/some/where/deeprec eval",
    "date": "2030-01-02 03:04 UTC",
    "hardware": "Example CPU, 2 cores",
    "versions": "python 3.11.0",
}


def part(ranks, users=USERS, note="", explorations=None):
    rankings = tuple((rank % 100, 0) if rank > 0 else (0,) for rank in ranks)
    return CachedResult("", "", "print", users, tuple(ranks), rankings, 0.5, note, ENVIRONMENT, explorations)


def result(name, ranks, users=USERS, note="", explorations=None, **own):
    return Result(name, (None,), (part(ranks, users, note, explorations),), (1, 5, 10), **own)


TRM = result("TRM alone", [0, 4, -1, 9] * 10)
POPULAR = result("popularity", [9, -1, -1, -1] * 10, note="a note | with a bar")
# On ten of the users, in another order, and as good as the TRM on each.
EXPLORED = Explorations(
    raw=(-1,) * 10,
    pooled=(0,) * 10,
    found=(1,) * 5 + (0,) * 5,
    retrieved=((3, 2),) * 10,
    tokens=(1234,) * 10,
    well_formed=(True,) * 8 + (False,) * 2,
    fallback=(False,) * 8 + (True,) * 2,
    stops={"answered": 8, "call limit": 2},
)
RANKS = TRM.parts[0].ranks[9::-1]
LLM = result("language model, explorer", RANKS, USERS[9::-1], explorations=EXPLORED, against=("popularity",))
OF = Users("print", "text", USERS, tuple(range(40)), tuple(range(40)), (5,) * 100)
TABLE = SetReport("toy", "test", "each user's last two items held out", OF, (TRM, POPULAR, LLM), "TRM alone")
REPORT = Report("evaluation", (TABLE,))


def with_results(*results):
    return replace(REPORT, sets=(replace(TABLE, results=results),))


def row(markdown, name):
    """The cells of the system's row in the first table."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "new"
    assert REPORT.save(root) == root / "report.md"
    return root


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.md").read_text()


def test_metrics_by_hand():
    # Each ten users hold ranks 0, 4, -1, 9: NDCG@10 is (1 + 0.38685 + 0 + 0.28906) / 4.
    assert TRM.mean("NDCG@10").mean == pytest.approx(0.4189794, abs=1e-6)
    assert TRM.mean("Recall@5").mean == pytest.approx(0.5)
    assert POPULAR.mean("MRR@10").mean == pytest.approx(0.025)


def test_markdown_stands_alone(page):
    for text in (
        "# evaluation",
        "40 test users, 100 items; each user's last two items held out; fingerprint `print`.",
        "`deeprec eval`",
        "Example CPU, 2 cores",
        "dates: 2030-01-02 03:04 UTC to 2030-01-02 03:04 UTC",
        "python 3.11.0",
        "NDCG@10 to TRM alone",
        "scored with fallback",
        "In the raw ranking a failed answer is a miss",
        "95 % intervals (percentile bootstrap over users, 200 resamples, seed 0)",
        "- popularity: a note | with a bar.",
        "not certainty",
        "![Quality by system](toy-quality.svg)",
        "![Cost against quality](toy-cost.svg)",
        "![Quality by call](toy-turns.svg)",
        "Each cell: mean, interval, users.",
    ):
        assert text in page, text
    assert "Oracle ablation" not in page


def test_markdown_shows_every_number_with_its_interval_and_users(page):
    interval = r"-?\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]"
    name, users, seeds, ndcg, recall, mrr, change = row(page, "popularity")
    assert (name, users, seeds) == ("popularity", "40", "1")
    for cell in (ndcg, recall, mrr):
        assert re.fullmatch(interval, cell)
    assert ndcg.startswith("0.0723 ")
    assert re.fullmatch(r"-0\.3467 \[-0\.\d{4}, -0\.\d{4}\] \(-82\.8 % \[-\d+\.\d, -\d+\.\d\]\)", change)
    assert row(page, "TRM alone")[-1] == "baseline"
    on_ten = row(page, "language model, explorer")
    assert on_ten[1] == "10"
    assert on_ten[-1] == "+0.0000 [+0.0000, +0.0000] (+0.0 % [+0.0, +0.0])"  # paired on the common users alone
    assert "- By NDCG@10, worse than TRM alone on the same users: popularity." in page
    assert "- By NDCG@10, not distinguishable from TRM alone on the same users: language model, explorer." in page
    assert re.search(r"- language model, explorer to popularity: \+0\.\d{4} \[", page)


def test_markdown_tables_are_rectangular(page):
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_how_the_explorers_ran(page):
    text = page.partition("### How the explorers ran")[2]
    assert row(text, "language model, explorer") == [
        "language model, explorer",
        "0.0000 [0.0000, 0.0000]",
        "80.0 %",
        "20.0 %",
        "2.00",
        "50.0 %",
        "1,234",
        "0.50",
        "answered 80.0 %, call limit 20.0 %",
    ]


def test_every_cutoff_is_shown(page):
    text = page.partition("### Every cutoff")[2]
    assert "NDCG@1 | NDCG@5 | NDCG@10 | Recall@1" in text
    assert row(text, "popularity")[1].startswith("0.0000 ")
    assert row(text, "TRM alone")[4].startswith("0.2500 ")


def test_one_user_has_no_interval(tmp_path):
    page = with_results(TRM, result("one", [0], USERS[:1])).save(tmp_path).read_text()
    assert row(page, "one")[3] == "1.0000 [no interval]"
    rows = json.loads((tmp_path / "report.json").read_text())["metrics"]
    (row_,) = (each for each in rows if (each["system"], each["metric"]) == ("one", "NDCG@10"))
    assert (row_["mean"], row_["low"], row_["high"]) == (1.0, None, None)


def test_no_common_users_are_no_comparison(tmp_path):
    one, other = result("TRM alone", [0] * 20, USERS[:20]), result("popularity", [9] * 20, USERS[20:])
    page = with_results(one, other).save(tmp_path).read_text()
    assert row(page, "popularity")[-1] == "no common users"
    assert "Reach" not in page


def test_a_pipe_in_a_name_does_not_break_the_table(tmp_path):
    page = with_results(TRM, replace(POPULAR, name="a|b")).save(tmp_path).read_text()
    assert r"| a\|b | 40 |" in page


def test_answers_that_were_never_valid_are_said_to_be(tmp_path):
    never = replace(EXPLORED, well_formed=(False,) * 10, fallback=(True,) * 10)
    page = with_results(TRM, result("bad", RANKS, USERS[9::-1], explorations=never)).save(tmp_path).read_text()
    assert "- No valid answer; the score is the fallback list's: bad." in page


def test_the_report_is_written_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    page = REPORT.save(tmp_path).read_text()
    assert "![" not in page
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.html", "report.json"}


def test_json_holds_what_the_tables_say(folder):
    tree = json.loads((folder / "report.json").read_text())
    (each,) = tree["sets"]
    assert (each["label"], each["fingerprint"], each["split"], each["cutoffs"]) == ("toy", "print", "test", [1, 5, 10])
    _, popular, model = each["systems"]
    assert tree["metrics"] == REPORT.table().to_dicts()
    assert len(popular["users"]) == 40
    assert model["ranks"] == [list(LLM.parts[0].ranks)]
    assert model["tokens_per_user"] == 1234
    assert popular["notes"] == ["a note | with a bar"]


def test_the_frame_has_a_row_for_each_metric():
    frame = REPORT.table()
    assert frame.height == 3 * 9
    found = frame.filter((pl.col("system") == "popularity") & (pl.col("metric") == "NDCG@10")).row(0, named=True)
    assert found["mean"] == pytest.approx(0.0722662, abs=1e-6)
    assert found["difference ratio"] == pytest.approx(0.0722662 / 0.4189794 - 1, abs=1e-5)
    assert found["difference high"] < 0
    assert frame.filter(pl.col("system") == "TRM alone")["difference difference"].null_count() == 9


# The terminal


LONG = tuple(
    replace(system, name=name)
    for system, name in (
        (POPULAR, "popularity"),
        (POPULAR, "last-item transitions"),
        (POPULAR, "EASE"),
        (TRM, "TRM alone"),
        (POPULAR, "scripted explorer"),
        (LLM, "language model, rerank of 20"),
        (LLM, "language model, explorer"),
    )
)


def test_the_terminal_shows_six_rows_of_one_line_in_80_columns():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(with_results(*LONG))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert str(with_results(*LONG)) == text.rstrip()
    rows = [line for line in text.splitlines() if re.search(r" 0\.\d{4} +0\.\d{4} ", line)]
    names = [line.strip().partition("  ")[0] for line in rows]
    assert names == [system.name for system in LONG[1:]]
    assert "…" not in text
    assert re.search(r" TRM alone +0\.4190 +0\.7500 +baseline", text)
    assert re.search(r" last-item transitions +0\.0723 +0\.2500 +-82\.8 \[-\d+\.\d, -\d+\.\d\]", text)
    for said in ("toy, test", "NDCG@10", "Recall@10", "% to TRM alone", "40 users.", "1 more in", "sample of 10"):
        assert said in text, said


def test_the_baseline_is_shown_wherever_it_stands():
    text = str(with_results(TRM, *(replace(POPULAR, name=f"other {n}") for n in range(9))))
    assert "TRM alone" in text
    assert [n for n in range(9) if f"other {n} " in text] == [4, 5, 6, 7, 8]


def test_a_long_name_is_cut_and_not_wrapped():
    text = str(with_results(TRM, replace(POPULAR, name="a system whose name is far too long to fit " * 2)))
    assert max(map(len, text.splitlines())) <= 80
    assert len([line for line in text.splitlines() if "…" in line]) == 1
    assert re.search(r"…  +0\.0723 +0\.2500 +-82\.8 \[", text)


def test_numbers_with_six_digits_fit():
    tiny = result("TRM alone", [-1] * 39 + [9])
    text = str(with_results(tiny, *(replace(TRM, name=system.name) for system in LONG[-2:])))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"language model, rer.* 0\.4190 +0\.7500 +\+\d{4}\.\d \[\+\d+\.\d, \+\d+\.\d\]", text)


# Comparisons


def test_two_evaluations_are_compared_on_their_common_users(folder, tmp_path):
    missed = [
        replace(
            system, parts=(replace(system.parts[0], users=system.users[1:], ranks=(-1,) * (len(system.users) - 1)),)
        )
        for system in (TRM, POPULAR, LLM)
    ]
    missed = [replace(each, parts=(replace(each.parts[0], rankings=each.parts[0].rankings[1:]),)) for each in missed]
    missed[2] = replace(missed[2], parts=(replace(missed[2].parts[0], explorations=None),))
    with_results(*missed).save(tmp_path / "theirs")
    cells = list(zip(*(column.cells for column in compare(folder, tmp_path / "theirs").columns), strict=True))
    rows = [tuple(map(str, row)) for row in cells]
    assert {row[0] for row in rows} == {"TRM alone", "popularity", "language model, explorer"}
    assert {row[2] for row in rows} == {"NDCG@10", "Recall@10", "MRR@10"}
    for name, users, _, mean, none, difference in rows:
        assert int(users) == (9 if "model" in name else 39)
        assert none == "0.0000"
        assert difference.startswith(f"+{mean} [")
    same = compare(folder, folder)
    assert {str(cell) for cell in same.columns[-1].cells} == {"+0.0000 [+0.0000, +0.0000]"}


def test_what_can_not_be_compared_is_said(folder, tmp_path):
    other = replace(TABLE, users=replace(OF, fingerprint="another"))
    replace(REPORT, sets=(other,)).save(tmp_path / "data")
    with pytest.raises(DeepRecError, match="different data"):
        compare(folder, tmp_path / "data")
    (tmp_path / "damaged").mkdir()
    with pytest.raises(DeepRecError, match="deeprec eval --resume"):
        compare(folder, tmp_path / "damaged")
    for text in ("", "[]", "3", "{}", '{"sets": 3}', (folder / "report.json").read_text()[:-40]):
        (tmp_path / "damaged" / "report.json").write_text(text)
        with pytest.raises(DeepRecError, match="is not an evaluation's report"):
            compare(folder, tmp_path / "damaged")
