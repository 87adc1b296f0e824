"""Rewrite the committed reports, plots and training logs in today's words; no figure changes.

    python benchmarks/carry_over_reports.py

The reports under docs/results were made when settings, systems and headings had other names. This script applies the
tables below to every `report.md`, to the labels of the plots, and to the logs of trainings. It refuses to write a file
whose numbers would change, and a second run changes nothing.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

RESULTS = Path(__file__).parents[1] / "docs" / "results"
RENAMED_FOLDERS = {"worth": "preference-weight"}

SENTENCES = (
    (
        "A language model's ranking is the one served: places that its answer leaves empty are filled by what was"
        " retrieved (by the candidates, where it was to rank these), and the column fallback says how often that "
        "happened; titles from memory are not filled up. As answered, one that failed is a miss.",
        "A language model's ranking is scored with fallback: retrieved items (in a rerank, candidates) fill the "
        "positions that its answer leaves empty, and the column fallback says how often. Titles from memory have "
        "no fallback. In the raw ranking a failed answer is a miss.",
    ),
    (
        "None of their answers was well-formed, none held a target, and all were filled up, which is what is measured:",
        "No valid answer; the score is the fallback list's:",
    ),
    (" by regression on what these have on all: ", " by regression; controls: "),
    (
        "with one link replaced; the pool is what the calls brought back. Oracles know the target: they bound "
        "what a better link would bring, with the others as they are.",
        "with one part replaced; the pool is what the calls retrieved. Oracles know the target: they bound what a"
        " better part could bring while the others stay.",
    ),
    (
        "what the calls bring, list after list, if the first says phrases of the target and the others what they "
        "said; at the system's trust, and at 1.",
        "what the calls retrieve, list after list, when the first call states phrases of the target and the "
        "others stay; at the system's preference weight, and at 1.",
    ),
    (
        "What the words of a history are worth as a preference, said",
        "What the words of a history bring as a preference, said",
    ),
    (
        "How far are guesses at a preference worth believing? On the validation users, of whom a TRM chooses from"
        " these trusts; the titles of the last three items stand for a guess.",
        "Which preference weight suits guessed preferences? On the validation users, with the weights among which"
        " a TRM is calibrated; the titles of the last three items stand for a guess.",
    ),
    (
        "What the trainings of docs/results/training are worth to test users.",
        "What the trainings of docs/results/training bring to test users.",
    ),
    (
        "whose own trust of 0.75 is not that of guesses; believed here as the others are",
        "trained at preference weight 0.75, evaluated at that of the other rows",
    ),
    (
        "the TRM trained without neighbours and preferences",
        "the TRM trained without item co-occurrence and preferences",
    ),
    (
        "what a language model adds to this, it adds to the words of the history",
        "a rule that needs no language model",
    ),
    (
        "the adapter that comes with the package, trained on ml-100k and in lessons of amazon-scientific-2018",
        "the shipped adapter, trained on ml-100k and on demonstrations of amazon-scientific-2018",
    ),
    (
        "the adapter that comes with the package, from which the cold start went on",
        "the shipped adapter, from which the cold start continued",
    ),
    ("the adapter that comes with the package", "the shipped adapter"),
    (
        "held to the candidates' titles; of free answers none could be read",
        "constrained to the candidates' titles; no free answer was valid",
    ),
    ("as the TRM has chosen from titles", "calibrated with titles"),
    ("as the TRM has chosen", "calibrated"),
    ("experiments/worth.toml", "experiments/preference-weight.toml"),
)
"""Whole sentences and names, replaced as they stand."""

WORDS = {
    r"not to be told apart from": "not distinguishable from",
    r"NDCG@(\d+) as answered": r"NDCG@\1, raw",
    r"none, as served": "none, with fallback",
    r"pool hit": "pool recall",
    r"Which link loses": "Oracle ablation",
    r"link replaced": "part replaced",
    r"preferences are believed to (?=[\d.])": "preference weight ",
    r"\btrust (?=[\d.])": "preference weight ",
    r"\bthemes of the history( as preference)?": r"frequent phrases\1",
    r"\bthemes\b": "frequent phrases",
    r"^# worth$": "# preference-weight",
}
"""Regular expressions for what stands in headings, cells and labels."""

TRAINING_SENTENCES = (
    (
        "Numbers of every step (`metrics.jsonl`) lie beside this page with the configuration of each:\n"
        "`deeprec train --config docs/results/training/NAME/config.toml` makes another of its kind (these ran in "
        "two processes,\n"
        "by torchrun), `deeprec runs curves docs/results/training/NAME` shows this one. The adapter "
        "`runs/trained/NAME` that one\n"
        "goes on from is a copy of the weights that training NAME left in its run's folder. Means of the first "
        "and the last fifth\n"
        "of the steps; Kendall's tau of the number with the step, and its p for rising (one-sided, not corrected "
        "for their\n"
        "number). What they mean stands in [Training](../../training.md#what-reinforcement-learning-did-on-two-"
        "cores).\n",
        "The numbers of every step (`metrics.jsonl`) and the configuration of each training are in this\n"
        "folder. `deeprec runs curves docs/results/training/NAME` shows the curves of one, and\n"
        "`deeprec train --config docs/results/training/NAME/config.toml` trains again; these ran in two\n"
        "processes, by torchrun. An adapter `runs/trained/NAME` is a copy of the weights in the run folder of\n"
        "training NAME.\n"
        "\n"
        "The tables give the means of the first and the last fifth of the steps, Kendall's tau of the number\n"
        "with the step, and its one-sided p for rising, not corrected for the number of tests.\n"
        "[Results](../index.md#reinforcement-learning) says what they mean. `reward/rank_gain` was a metric\n"
        "of a [reward that is gone](../../research-log/2026-11-28-reinforcement-learning.md).\n",
    ),
    (", preferences believed as the TRM has chosen, ", ", calibrated preference weight, "),
    (", preferences believed to ", ", preference weight "),
    (", top-p 0.95", ""),
    ("`updates = ", "`updates_per_step = "),
    ("`negative = ", "`negative_advantage_weight = "),
    ("`whitening = ", "`advantage_normalisation = "),
    ("| gain |", "| reward_over_trm |"),
    ("| reward/foresight |", "| reward/rank_gain |"),
)

KEYS = {
    "trm.neighbours": "trm.cooccurrence",
    "trm.lexical": "trm.bm25",
    "explore.trust": "explore.preference_weight",
    "train.reach": "train.max_target_rank",
    "train.samples": "train.group_size",
    "train.updates": "train.updates_per_step",
    "train.rows": "train.micro_batch_size",
    "train.negative": "train.negative_advantage_weight",
    "train.warm_start": "train.sft",
    "train.warm_start.tasks": "train.sft.demonstrations",
    "train.warm_start.beside": "train.sft.extra_datasets",
}
"""Configuration keys that have another name."""

CONSTANTS: dict[str, Any] = {
    "trm.heads": 2,
    "trm.dropout": 0.2,
    "trm.patience": 5,
    "trm.batch_places": 2048,
    "trm.weight_decay": 0.0,
    "trm.averaging": 3.0,
    "trm.id_dropout": 0.1,
    "trm.preference_dropout": 0.3,
    "trm.history_preference": 0.3,
    "trm.preference_window": 5,
    "trm.exact_preference": 0.3,
    "policy.timeout": 60.0,
    "policy.retries": 3,
    "policy.price_read": 0.0,
    "policy.price_written": 0.0,
    "explore.top_p": 1.0,
    "rewards.format_penalty": -1.0,
    "rewards.invocation_step": 0.5,
    "rewards.invocation_calls": 3,
    "rewards.diversity_scale": 0.2,
    "rewards.hit_value": 1.0,
    "rewards.rank_step": 0.2,
    "rewards.pointwise_scale": 10.0,
    "rewards.foresight_scale": 0.5,
    "train.per_user": 20,
    "train.top_p": 0.95,
    "train.clip_low": 0.2,
    "train.clip_high": 0.28,
    "train.grad_norm": 1.0,
    "train.replacements": 1,
    "train.save_every": 1,
    "eval.bootstrap": 2000,
    "eval.confidence": 0.95,
    "eval.seed": 0,
    "serve.queue": 32,
    "serve.queries": 1024,
    "serve.untrained": True,
}
"""Settings that became constants, with their values. A log that has another value says so in a comment."""

METRICS = {
    r'"([a-z0-9-]+)/gain"': r'"\1/reward_over_trm"',
    r'"([a-z0-9-]+)/reward/foresight"': r'"\1/reward/rank_gain"',
    r'"warm-start/': '"sft/',
    r'"[a-z0-9-]+/stop/horizon": 0\.0, ': "",  # a stop reason that is gone, and that no exploration had
}
MANIFEST = {"edition": "format_version", "beside": "extra_datasets"}

OLD_WORDS = re.compile(
    r"\b(trusts?|believed?|themes?|neighbours|lessons|warm[ -]start|told apart|pool hit|as served|as answered|worth|"
    r"whitening|foresight|gain|beside|horizon)\b"
)
FENCE = re.compile(r"```toml\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def main() -> None:
    for old, new in RENAMED_FOLDERS.items():
        if (RESULTS / old).is_dir():
            (RESULTS / old).rename(RESULTS / new)
    for path in sorted(RESULTS.glob("*/report.md")):
        convert = training_report if path.parent.name == "training" else report
        rewrite(path, convert(path.read_text(encoding="utf-8")))
    for path in sorted(RESULTS.glob("*/*.svg")):
        rewrite(path, plot(path.read_text(encoding="utf-8")))
    for folder in sorted(path.parent for path in RESULTS.glob("training/*/config.toml")):
        training_log(folder)


def rewrite(path: Path, text: str) -> None:
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(RESULTS))


# --- reports ---


def report(text: str) -> str:
    """An evaluation's report, with the plan at its end."""
    parts = FENCE.split(text)
    assert len(parts) == 3, "a report has one plan"
    head, plan, tail = parts
    found = words(head)
    same_numbers(head, found)
    plan = words(plan_keys(plan))
    tomllib.loads(plan)
    found = f"{found}```toml\n{plan}```{tail}"
    nothing_old(found)
    return found


def training_report(text: str) -> str:
    found = text
    for old, new in TRAINING_SENTENCES:
        found = found.replace(old, new)
    same_numbers(text, found)
    nothing_old(found)
    return found


def words(text: str) -> str:
    for old, new in SENTENCES:
        text = text.replace(old, new)
    for pattern, new in WORDS.items():
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def plan_keys(plan: str) -> str:
    """Of the plan's TOML: a TRM without preferences, kinds of systems, and renamed keys."""
    plan = plan.replace("preference_dropout = 1.0\nhistory_preference = 0.0\n", "preferences = false\n")
    plan = re.sub(r'^kind = "themes"$', 'kind = "frequent-phrases"', plan, flags=re.MULTILINE)
    plan = re.sub(r'^kind = "lists"$', 'kind = "external"', plan, flags=re.MULTILINE)
    plan = re.sub(r'^name = "worth"$', 'name = "preference-weight"', plan, flags=re.MULTILINE)
    plan = re.sub(r"^trust = ", "preference_weight = ", plan, flags=re.MULTILINE)
    return re.sub(r"^neighbours = ", "cooccurrence = ", plan, flags=re.MULTILINE)


def same_numbers(before: str, after: str) -> None:
    """Tables and lists have the same numbers in the same order."""
    numbers = [
        [NUMBER.findall(line) for line in text.splitlines() if line.startswith(("|", "-", "!"))]
        for text in (before, after)
    ]
    assert numbers[0] == numbers[1], "a figure would change"


def nothing_old(text: str) -> None:
    if left := sorted({match[0] for match in OLD_WORDS.finditer(text)}):
        sys.exit(f"Old words are left: {', '.join(left)}")


# --- plots: matplotlib writes text as outlines of letters, so a label is drawn anew ---

LABEL = re.compile(
    r'(?P<head><g id="text_\d+">\n\s*)<!-- (?P<text>[^\n]*) -->\n'
    r'\s*<g (?P<style>style="[^"]*" )?transform="translate\((?P<x>-?[\d.]+) (?P<y>[\d.]+)\) scale\((?P<scale>[\d.]+) '
    r'-[\d.]+\)">\n(?P<body>.*?)\n\s*</g>(?P<tail>\s*</g>)',
    re.DOTALL,
)
DEFINED = re.compile(r'<path id="(DejaVuSans-[0-9a-f]+)" .*?/>', re.DOTALL)


def plot(svg: str) -> str:
    """The plot with its labels in today's words; whatever is not a label stays as it is."""
    before, furthest = svg, 3.0
    for label in reversed(list(LABEL.finditer(svg))):
        new = words(label["text"])
        new = re.sub(r"^([a-z0-9-]+): gain$", r"\1: reward_over_trm", new)
        if new == label["text"]:
            continue
        x, drawn = redrawn(svg, label, new)
        furthest = min(furthest, x)
        svg = svg[: label.start()] + drawn + svg[label.end() :]
    assert LABEL.sub("", svg) == LABEL.sub("", before), "the drawing would change"
    return widened(svg, 3 - furthest)


def redrawn(svg: str, label: re.Match[str], text: str) -> tuple[float, str]:
    """Where the label begins, and its group, aligned as the old one was."""
    size = 100 * float(label["scale"])
    share = {"left": 0.0, "centre": 0.5, "right": 1.0}[alignment(svg[: label.start()])]
    x = float(label["x"]) + share * (width(label["text"], size) - width(text, size))
    elsewhere = set(DEFINED.findall(svg))  # outlines that the old label defines may be used by others, so they stay
    glyphs, uses = outlines(text, size)
    new = "\n".join(drawn for name, drawn in glyphs.items() if name not in elsewhere)
    kept = "\n".join(re.findall(r"<defs>.*?</defs>", label["body"], re.DOTALL))
    defs = kept + (f"\n<defs>\n{new}\n</defs>" if new else "")
    transform = f"translate({x:.6f} {label['y']}) scale({label['scale']} -{label['scale']})"
    body = "\n".join(part for part in (defs.strip("\n"), uses) if part)
    begin = f'{label["head"]}<!-- {text} -->\n<g {label["style"] or ""}transform="{transform}">'
    return x, f"{begin}\n{body}\n</g>{label['tail']}"


def alignment(before: str) -> str:
    """By what encloses a label: tick labels of the y axis end at it, a legend's begin at theirs, titles are centred."""
    if re.findall(r'<g id="(xtick|ytick|patch|legend|axes)_', before)[-1] == "ytick":
        return "right"
    return "left" if before.rfind('<g id="legend_') > before.rfind('<g id="axes_') else "centre"


def width(text: str, size: float) -> float:
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])


def outlines(text: str, size: float) -> tuple[dict[str, str], str]:
    """The outline of each letter by its id, and the lines that place them."""
    figure, file = Figure(), io.StringIO()
    figure.text(0.5, 0.5, text, size=size)
    figure.savefig(file, format="svg", metadata={"Date": None})
    (label,) = (each for each in LABEL.finditer(file.getvalue()) if each["text"] == text)
    glyphs = {match[1]: match[0] for match in DEFINED.finditer(label["body"])}
    return glyphs, "\n".join(re.findall(r"<use .*?/>", label["body"]))


def widened(svg: str, more: float) -> str:
    """The picture with room on its left for a label that has become longer."""
    if more <= 0:
        return svg
    old, height = (float(found) for found in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    head, patch, rest = svg.partition('<g id="axes_1">')
    head = re.sub(r'width="[\d.]+pt"', f'width="{old + more:g}pt"', head, count=1)
    head = head.replace('viewBox="0 0 ', f'viewBox="{-more:g} 0 ').replace(
        f'{old:g} {height:g}"', f'{old + more:g} {height:g}"'
    )
    head = head.replace(f"M 0 {height:g}", f"M {-more:g} {height:g}").replace("L 0 0", f"L {-more:g} 0")
    return head + patch + rest


# --- logs of trainings ---


def training_log(folder: Path) -> None:
    if (folder / "clock.json").is_file():
        (folder / "clock.json").rename(folder / "time_budget.json")
    config = (folder / "config.toml").read_text(encoding="utf-8")
    rewrite(folder / "config.toml", configuration(config))
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    found = metrics
    for pattern, new in METRICS.items():
        found = re.sub(pattern, new, found)
    for before, after in zip(metrics.splitlines(), found.splitlines(), strict=True):
        kept = [value for name, value in json.loads(before).items() if not name.endswith("/stop/horizon")]
        assert kept == list(json.loads(after).values()), "a number of a step would change"
    rewrite(folder / "metrics.jsonl", found)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest = {MANIFEST.get(name, name): value for name, value in manifest.items()}
    rewrite(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def configuration(text: str) -> str:
    """A training's configuration: renamed keys, and without the settings that are constants now."""
    old = tomllib.loads(text)
    if "preferences" in old["trm"]:
        return text
    normalisation = old["train"].pop("whitening")
    for stage in old["train"]["stages"]:
        stage["advantage_normalisation"] = stage.pop("whitening", normalisation)
        assert not stage["rewards"].pop("foresight", 0.0), "a reward that is gone was paid"
    dropped = {key: value for key, value in flat(old) if key in CONSTANTS}
    other = [f"{key} = {value} (now {CONSTANTS[key]})" for key, value in dropped.items() if value != CONSTANTS[key]]
    new = renamed(old)
    new["trm"]["preferences"] = True
    del new["rewards"]
    note = f"# This training ran with settings that are constants now: {', '.join(other)}.\n\n" if other else ""
    return note + tomli_w.dumps(new)


def renamed(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        full = f"{path}{key}"
        if full in CONSTANTS:
            continue
        name = KEYS.get(full, full).rpartition(".")[2]
        found[name] = renamed(value, f"{full}.") if isinstance(value, dict) else value
    return found


def flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


if __name__ == "__main__":
    main()
