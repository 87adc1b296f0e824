"""Cut the README's main table out of the committed report of the main experiment.

    python benchmarks/readme_table.py

What stands between the two marks of the README is replaced by the first table of each set in
docs/results/main/report.md, with what its intervals allow to be said and how the explorers ran, and the report's own
line of machines and dates. A test fails where they differ.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
REPORT = ROOT / "docs" / "results" / "main" / "report.md"
EXPLORERS = "How the explorers ran\n"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def main() -> None:
    before, _, after = parts(README.read_text(encoding="utf-8"))
    README.write_text(before + BEGIN + cut(REPORT.read_text(encoding="utf-8")) + END + after, encoding="utf-8")


def parts(readme: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks."""
    before, _, rest = readme.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


def cut(report: str) -> str:
    """Of each set: its heading, users and items, main table, sentences, and how the explorers ran."""
    preface, *sets = re.split(r"^## ", report.partition("\n## The experiment\n")[0], flags=re.MULTILINE)
    machines = [line for line in preface.splitlines() if line.startswith(("- machines:", "- dates:"))]
    found = ["", *machines]
    for text in sets:
        name, _, body = text.partition("\n")
        head, _, more = body.partition("\n### ")
        found += ["", f"### {name}", "", head.partition("\n![")[0].strip("\n")]
        if more.startswith(EXPLORERS):
            found += ["", more.partition("\n### ")[0].removeprefix(EXPLORERS).partition("\n![")[0].strip("\n")]
    return "\n".join([*found, "", ""])


if __name__ == "__main__":
    main()
