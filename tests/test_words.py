"""The field's words: names of the first edition do not come back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OLD_WORDS = {
    r"trust(?!_remote_code|ed_?host)": "preference weight",
    r"believed|belief_of": "preference weight",
    r"worth_of_guesses|guesses are worth": "calibrate_preference_weight",
    r"heard|taken_back": "applied, history correction",
    r"themes?|Phrasebook": "frequent phrases, phrase table",
    r"trm\.neighbours|trm\.lexical|Lexical|bonuses": "item co-occurrence, BM25, score offsets",
    r"EDITION|batch_places": "format version, positions",
    r"habits?|accustomed": "prompt defaults, resolve_defaults",
    r"FoldedLinear|RowCache|row_cache|Drafts": "fused LoRA, slotted KV cache, prompt lookup",
    r"pool hit|as answered|as served": "pool recall, raw, with fallback",
    r"warm[_ -]start|WARM_START|WarmStart": "SFT",
    r"teacher|lessons?": "demonstrations",
    r"rehearsals?|came_to|clock\.json": "task sets, time spent, time_budget.json",
    r"whitening|foresight": "advantage normalisation",
    r"first_goes_first|first_says": "main_process_first, broadcast",
    r"desks?|tickets?": "worker, job",
    r"extended_interval|Population": "regression estimator, users",
    r"workbench|bench_of": "gone",
}
"""Words of the first edition that mean nothing else here, and what they are called now."""

_PATTERN = re.compile("|".join(rf"(?<![A-Za-z])(?:{word})(?![a-z])" for word in OLD_WORDS), re.IGNORECASE)
_EXEMPT = (
    "tests/test_words.py",
    "tests/test_config.py",
    "src/deeprec/config/renamed.py",
    "src/deeprec/serving/schemas.py",
    "tests/serving/test_renamed_fields.py",
    "tests/training/test_train_policy.py",
    "docs/research-log/",
    "docs/decisions/",
)
"""What says how old keys are called now, and what tells of the past."""


def tracked() -> list[str]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", "src", "tests", "docs", "benchmarks", "configs", "experiments", "README.md"],
            cwd=ROOT, capture_output=True, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def test_no_word_of_the_first_edition_is_left() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if name.startswith(_EXEMPT) or not path.is_file() or path.suffix in (".png", ".safetensors"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if "_SHUFFLE_NAMES" in line:  # a seed of the shipped adapters' trainings
                continue
            found += [f"{name}:{number}: {match[0]!r} in {line.strip()[:80]!r}" for match in _PATTERN.finditer(line)]
    assert not found, f"{len(found)} old words:\n" + "\n".join(found[:50])


@pytest.mark.parametrize(
    "text", ["trust", "trust_N", "Themes", "the desk", "warm start", "pool hit", "foresight_scale"]
)
def test_old_words_are_found(text: str) -> None:
    assert _PATTERN.search(text)


@pytest.mark.parametrize("text", ["trust_remote_code", "TrustedHostMiddleware", "desktop", "overheard", "cold start"])
def test_other_words_are_not(text: str) -> None:
    assert not _PATTERN.search(text)
