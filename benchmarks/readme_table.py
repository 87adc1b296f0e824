"""Cut the README's table of results out of the committed report of the main experiment.

    python benchmarks/readme_table.py

It stands between two marks of the README: six systems of the first set in docs/results/main/report.md, and who ran it
when. A test fails where the two differ.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORT = ROOT / "docs" / "results" / "main" / "report.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
SYSTEMS = (
    "popularity",
    "RecTools SASRec",
    "TRM alone",
    "scripted explorer",
    "SmolLM2-135M, one-shot rerank of 20",
    "SmolLM2-135M, trained",
)


def main() -> None:
    before, _, after = parts(README.read_text(encoding="utf-8"))
    README.write_text(before + BEGIN + cut(REPORT.read_text(encoding="utf-8")) + END + after, encoding="utf-8")


def parts(readme: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks."""
    before, _, rest = readme.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


def cut(report: str) -> str:
    """The table: means, and the difference to the TRM in per cent with its interval."""
    preface, _, text = report.partition("\n## ")
    machine, dates = (re.search(rf"^- {name}: (.*)$", preface, re.MULTILINE) for name in ("machines", "dates"))
    assert machine is not None
    assert dates is not None
    label, _, body = text.partition("\n")
    table = re.search(r"(?:^\|.*\n)+", body, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
    headings, found = rows[0], {row[0]: row for row in rows[2:]}
    lines = [
        f"| {label} | users | {headings[3]} | {headings[4]} | % to TRM alone |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in SYSTEMS:
        _, users, _, ndcg, recall, _, change = found[name]
        percent = re.search(r"\((.*) % (\[.*\])\)", change)
        told = f"{percent[1]} {percent[2]}" if percent else change
        lines.append(f"| {name} | {users} | {ndcg.partition(' ')[0]} | {recall.partition(' ')[0]} | {told} |")
    day = dates[1].partition(" ")[0]
    return "\n".join(
        [*lines, "", f"In brackets 95 % intervals; {machine[1]}; {day};", "[report](docs/results/main/report.md).", ""]
    )


if __name__ == "__main__":
    main()
