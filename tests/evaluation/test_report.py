from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from deeprec.errors import DeepRecError
from deeprec.evaluation.eval_report import Report, SystemResult

USERS = tuple(f"u{number}" for number in range(40))

TRM = SystemResult("TRM alone", USERS, tuple([0, 4, -1, 9] * 10), coverage=0.31)
POPULAR = SystemResult("popularity", USERS, tuple([9, -1, -1, -1] * 10), coverage=0.012)
# On ten of the users, in another order, and as good as TRM on each.
LLM = SystemResult(
    "SmolLM2 [as answered]",
    USERS[9::-1],
    TRM.ranks[9::-1],
    coverage=0.05,
    extras={"well_formed": 0.8, "fallback": 0.2, "calls": 2.5, "pool hit": 0.3, "tokens": 1234.4, "odd": 7.0},
    stops={"budget": 2, "answered": 8},
    note="a note | with a bar",
)

REPORT = Report(
    dataset="toy (40 users, 100 items)",
    fingerprint="abc123",
    split="test",
    cutoffs=(1, 5, 10),
    baseline="TRM alone",
    systems=(TRM, POPULAR, LLM),
    config_path="config.toml",
    environment={
        "command": "deeprec eval",
        "date": "2030-01-02 03:04 UTC",
        "hardware": "Example CPU, 2 cores",
        "versions": "python 3.11.0",
    },
    timings={"data": 1.25, "explore": 60.0},
    resamples=500,
)


def terminal(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report.to_rich())
    return console.file.getvalue()


def row(markdown: str, name: str) -> list[str]:
    """The cells of the system's row in the first table."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_metrics_by_hand():
    # Each ten users hold ranks 0, 4, -1, 9: NDCG@10 is (1 + 0.38685 + 0 + 0.28906) / 4.
    assert REPORT.intervals["TRM alone"]["NDCG@10"].mean == pytest.approx(0.4189794, abs=1e-6)
    assert REPORT.intervals["TRM alone"]["Recall@5"].mean == pytest.approx(0.5)
    assert REPORT.intervals["popularity"]["MRR@10"].mean == pytest.approx(0.025)


def test_comparisons_use_the_common_users_only():
    change = REPORT.comparisons["SmolLM2 [as answered]"]
    # Different means over all users of each, yet no user differs.
    assert REPORT.intervals["SmolLM2 [as answered]"]["NDCG@10"].mean != pytest.approx(
        REPORT.intervals["TRM alone"]["NDCG@10"].mean
    )
    assert (change.difference, change.low, change.high, change.users) == (0, 0, 0, 10)


def test_comparisons_are_with_the_baseline():
    assert REPORT.comparisons.keys() == {"popularity", "SmolLM2 [as answered]"}
    change = REPORT.comparisons["popularity"]
    assert change.difference == pytest.approx(0.0722662 - 0.4189794, abs=1e-6)
    assert change.ratio == pytest.approx(0.0722662 / 0.4189794 - 1, abs=1e-5)
    assert change.low < change.difference < change.high < 0


def test_markdown_stands_alone():
    page = REPORT.to_markdown()
    for part in (
        "toy (40 users, 100 items)",
        "fingerprint `abc123`",
        "`deeprec eval`",
        "`Example CPU, 2 cores`",
        "`2030-01-02 03:04 UTC`",
        "`python 3.11.0`",
        "`config.toml`",
        "ΔNDCG@10 to TRM alone",
        '"As answered" scores only',
        '"as served"',
        "95 % intervals",
        "a note | with a bar",
        "| explore | 60.0 |",
        "different users (column n)",
    ):
        assert part in page, part


def test_markdown_shows_every_number_with_its_interval_and_n():
    page = REPORT.to_markdown()
    interval = r"-?\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]"
    name, n, ndcg, recall, mrr, coverage, change = row(page, "popularity")
    assert (name, n, coverage) == ("popularity", "40", "1.2 %")
    for cell in (ndcg, recall, mrr):
        assert re.fullmatch(interval, cell)
    assert ndcg.startswith("0.0723 ")
    assert re.fullmatch(r"-0\.3467 \(-82\.8 %\) \[-0\.\d{4}, -0\.\d{4}\] on 40", change)
    assert row(page, "TRM alone")[-1] == "baseline"
    answered = row(page, r"SmolLM2 [as answered]")
    assert answered[1] == "10"
    assert answered[-1] == "+0.0000 (+0.0 %) [+0.0000, +0.0000] on 10"


def test_markdown_tables_are_rectangular():
    tables = re.findall(r"(?:^\|.*\n)+", REPORT.to_markdown(), flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_explorer_figures_are_shown():
    page = REPORT.to_markdown()
    (line,) = [line for line in page.splitlines() if "answered 8, budget 2" in line]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "SmolLM2 [as answered]",
        "10",
        "80.0 %",
        "20.0 %",
        "2.50",
        "30.0 %",
        "1,234",
        "7",
        "answered 8, budget 2",
    ]
    cheap = replace(REPORT, systems=(TRM, POPULAR)).to_markdown()
    assert "How the explorers ran" not in cheap


def test_sizes_are_mentioned_only_where_they_differ():
    page = replace(REPORT, systems=(TRM, POPULAR)).to_markdown()
    assert "column n" not in page
    assert row(page, "popularity")[-1].endswith("]")


def test_same_number_of_other_users_is_a_difference_too():
    other = replace(POPULAR, users=tuple(f"v{user}" for user in USERS))
    report = replace(REPORT, systems=(TRM, other))
    assert "popularity" not in report.comparisons
    page = report.to_markdown()
    assert row(page, "popularity")[-1] == "no common users"
    assert "different users (column n)" in page


def test_terminal_fits_120_columns_and_cuts_nothing():
    text = terminal(REPORT)
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    for part in ("SmolLM2 [as answered]", "0.4190", "-0.3467 (-82.8 %)", "on 10", "answered 8", "budget 2"):
        assert part in text, part
    for part in ("As answered", "explore 60.0", "a note | with a bar"):
        assert part in " ".join(text.split()), part


def test_one_user_has_no_interval():
    one = SystemResult("one", USERS[:1], (0,), coverage=0.1)
    report = replace(REPORT, systems=(TRM, one))
    assert row(report.to_markdown(), "one")[2] == "1.0000 [no interval]"
    assert json.loads(report.to_json())["computed"]["intervals"]["one"]["NDCG@10"]["low"] is None


def test_no_hit_at_all_is_not_called_certain():
    missed = replace(POPULAR, ranks=(-1,) * 40)
    assert "too few users, not certainty" in replace(REPORT, systems=(TRM, missed)).to_markdown()
    assert "not certainty" not in replace(REPORT, systems=(TRM, LLM)).to_markdown()


def test_a_pipe_in_a_name_does_not_break_the_table():
    odd = replace(POPULAR, name="a|b")
    page = replace(REPORT, systems=(TRM, odd)).to_markdown()
    assert r"| a\|b | 40 |" in page


def test_json_round_trip():
    text = REPORT.to_json()
    assert Report.from_json(text) == REPORT
    assert Report.from_json(text).to_markdown() == REPORT.to_markdown()
    computed = json.loads(text)["computed"]
    assert computed["comparisons"]["SmolLM2 [as answered]"]["users"] == 10
    assert computed["intervals"]["popularity"]["MRR@10"]["mean"] == pytest.approx(0.025)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"systems": 3}', REPORT.to_json()[:-40]])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(DeepRecError, match="not an evaluation report"):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("users", "ranks"), [(("a", "a"), (0, 1)), (("a", "b"), (0,)), ((), ())], ids=["twice", "lengths", "none"]
)
def test_a_system_has_one_rank_for_each_user(users, ranks):
    with pytest.raises(ValueError, match="each has one rank"):
        SystemResult("x", users, ranks, coverage=0)


def test_systems_have_unique_names_and_hold_the_baseline():
    with pytest.raises(ValueError, match="unique names"):
        replace(REPORT, systems=(TRM, TRM))
    with pytest.raises(ValueError, match="unique names"):
        replace(REPORT, baseline="nobody")


def test_two_evaluations_are_compared_on_their_common_users():
    ours = Report.from_json(REPORT.to_json())
    systems = tuple(
        SystemResult(
            name=system.name,
            users=system.users[1:],
            ranks=tuple(-1 for _ in system.users[1:]),
            coverage=system.coverage,
        )
        for system in ours.systems
    )
    theirs = replace(ours, systems=systems)
    table = ours.against(theirs)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert {row[0] for row in rows} == {system.name for system in ours.systems}
    for name, users, _, mean, none, difference in rows:
        assert int(users) == next(len(s.users) for s in systems if s.name == name)
        assert none == "0.0000"
        assert difference.startswith(f"+{mean} ")
    same = list(ours.against(ours).columns[-1].cells)
    assert set(same) == {"+0.0000 [+0.0000, +0.0000]"}


def test_evaluations_of_different_data_are_not_compared():
    other = replace(REPORT, fingerprint="another")
    with pytest.raises(DeepRecError, match="different data"):
        REPORT.against(other)
