"""Items asked for outright: by their whole title, and by a rare word of their titles; as requests and as guesses.

    .venv/bin/python benchmarks/by_name.py ml-100k runs/*-trm/trm
    .venv/bin/python benchmarks/by_name.py ../shared/data/amazon-scientific-2018 runs/other-trm/trm

The first argument is a data set, the second the folder of a TRM that was trained on it. Titles and words are drawn
at random with a seed. Each is asked for without a history, and with that of a random test user who does not hold the
item (of a word: who holds none of its items). A guess of the same weight is what a request was before. Below the names
stand preferences of known quality (`preference_sensitivity.py`), as guesses and as requests.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, load_config
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.evaluation.metrics import ndcg_at
from deeprec.evaluation.tables import markdown_table
from deeprec.retrieval.bm25 import words
from deeprec.retrieval.retriever import Query, queries_of
from deeprec.runs import environment
from deeprec.trm.trm import TRM
from preference_sensitivity import preferences
from ratios import ratio_interval

K = 10
RARE = 5  # titles that a rare word is in, at most
History = tuple[ItemIdx, ...]


def rare_words(catalog: Catalog) -> dict[str, set[ItemIdx]]:
    """Words of letters and digits, no stop words, that are in few titles; and the items whose titles these are."""
    items: defaultdict[str, set[ItemIdx]] = defaultdict(set)
    for item, title in enumerate(catalog.titles):
        for word in set(words(title)):
            items[word].add(ItemIdx(item))
    return {word: found for word, found in items.items() if len(found) <= RARE and re.fullmatch(r"\w+", word)}


def ask(trm: TRM, preference: Sequence[str], histories: Sequence[History], requested: bool) -> list[list[ItemIdx]]:
    """The first items of each."""
    pairs = zip(preference, histories, strict=True)
    queries = [Query(history, text, frozenset(history), requested=requested) for text, history in pairs]
    return [[hit.item for hit in hits] for hits in trm.retrieve(queries, K)]


def by_name(trm: TRM, dataset: Dataset, n: int, seed: int) -> list[dict[str, Any]]:
    """Shares of the titles among the first ten and first, and of the words whose items all come first."""
    catalog, rng = dataset.catalog, np.random.default_rng(seed)
    titles = [ItemIdx(item) for item in rng.permutation(len(catalog))[:n].tolist()]
    rare = rare_words(catalog)
    chosen = [sorted(rare)[position] for position in rng.permutation(len(rare))[:n].tolist()]
    wanted = [{item} for item in titles] + [rare[word] for word in chosen]
    asked = [catalog.titles[item] for item in titles] + chosen
    tasks = dataset.tasks("test")
    without = [next(h for h in _shuffled(tasks, rng) if not items & set(h)) for items in wanted]
    rows = []
    for kind, histories in (("none", [()] * len(asked)), ("of a test user", without)):
        for requested in (False, True):
            found = ask(trm, asked, histories, requested)
            of_titles, of_words = zip(found[:n], titles, strict=True), zip(found[n:], wanted[n:], strict=True)
            places = [items.index(title) if title in items else K for items, title in of_titles]
            lead = [set(items[: len(bearers)]) == bearers for items, bearers in of_words]
            rows.append(
                {
                    "history": kind,
                    "asked": "as a request" if requested else "as a guess",
                    "titles in ten": float(np.mean([place < K for place in places])),
                    "titles first": float(np.mean([place == 0 for place in places])),
                    "words lead": float(np.mean(lead)),
                }
            )
    return rows


def of_known_quality(trm: TRM, dataset: Dataset) -> list[dict[str, Any]]:
    """NDCG@10 of test users with right and wrong preferences, divided by that without, at the weight of requests."""
    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    targets_U = [targets[task.id] for task in tasks]
    blank_U = ndcg_at(trm.ranks(queries_of(tasks), targets_U), K)
    rows = []
    for kind, texts in preferences(dataset.catalog, tasks, targets).items():
        row: dict[str, Any] = {"preference": kind}
        for requested in (False, True):
            queries = [replace(query, requested=requested) for query in queries_of(tasks, texts)]
            ratio = ratio_interval(ndcg_at(trm.ranks(queries, targets_U), K), blank_U)
            row["as a request" if requested else "as a guess"] = [ratio.mean, ratio.low, ratio.high]
        rows.append(row)
    return rows


def main() -> None:
    args = _arguments()
    dataset = load_dataset(load_config(None, [f'data.source="{args.source}"']).data)
    trm = TRM.load(args.trm)
    names, kinds = by_name(trm, dataset, args.n, args.seed), of_known_quality(trm, dataset)
    text = _markdown(dataset, args.n, names, kinds)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment(sys.argv), "names": names, "preferences": kinds}
    (args.out / f"{dataset.name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.out / f"{dataset.name}.md").write_text(text, encoding="utf-8")
    print(text)


def _shuffled(tasks: Sequence[Any], rng: np.random.Generator) -> Any:
    """Histories in a random order."""
    return (tasks[position].history for position in rng.permutation(len(tasks)).tolist())


def _markdown(dataset: Dataset, n: int, names: Sequence[dict[str, Any]], kinds: Sequence[dict[str, Any]]) -> str:
    lines = [f"# Asked for by name on {dataset.name}: {n} titles, {n} words in 1 to {RARE} titles", ""]
    lines += [f"- {key}: {text}" for key, text in environment(sys.argv).items()]
    headings = ["history", "asked", f"titles among the first {K}", "titles first", "words whose items all come first"]
    shares = ("titles in ten", "titles first", "words lead")
    table = [[row["history"], row["asked"], *(f"{row[share]:.1%}" for share in shares)] for row in names]
    lines += ["", *markdown_table(headings, table), ""]
    lines += [f"NDCG@10 / blank at preference weight {DEFAULT_PREFERENCE_WEIGHT}, test users:", ""]
    ways = ("as a guess", "as a request")
    table = [[row["preference"], *("{:.2f} [{:.2f}, {:.2f}]".format(*row[way]) for way in ways)] for row in kinds]
    return "\n".join([*lines, *markdown_table(["preference", *ways], table)]) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("trm", type=Path)
    parser.add_argument("-n", type=int, default=200, help="titles, and words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/by_name"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
