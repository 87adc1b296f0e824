"""Items without a single interaction: found by their text among themselves, against the popularity of their categories.

    .venv/bin/python benchmarks/trm_cold.py ml-100k ../shared/data/ml-1m ../shared/data/amazon-scientific-2018

A tenth of the items is taken out of the catalogue and of every sequence; the TRM is trained without them and given
them afterwards by `add_items`. Users whose test item is one of them are asked, with the other held-out items as
candidates. Three draws of the items, each with a training of its own; brackets hold 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.config import TRMConfig, load_config
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.evaluation.intervals import mean_interval
from deeprec.evaluation.metrics import Floats, ranks_of, recall_at
from deeprec.evaluation.tables import markdown_table
from deeprec.retrieval.retriever import Hit, Query, top_hits
from deeprec.runs import environment
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import TRM
from ratios import ratio_interval

SHARE = 0.1
K = 10


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    encoder = TextEncoder.load()
    results = {}
    for source in args.sources:
        config = load_config(None, [f'data.source="{source}"', *args.set])
        dataset = load_dataset(config.data)
        draws = [_draw(dataset, encoder, config.trm.model_copy(update={"seed": seed}), seed) for seed in args.seeds]
        hits = {name: np.concatenate([draw[name] for draw in draws]) for name in draws[0]}
        results[dataset.name] = _result(hits)
        print(_markdown(results), flush=True)
        record = {"environment": environment(sys.argv), "sets": results}
        (args.out / "report.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (args.out / "report.md").write_text(_markdown(results), encoding="utf-8")


def _draw(dataset: Dataset, encoder: TextEncoder, config: TRMConfig, seed: int) -> dict[str, Floats]:
    """Recall@10 (U,) among the held-out items, by system."""
    n_items = len(dataset.catalog)
    cold_I = np.zeros(n_items, dtype=bool)
    cold_I[np.random.default_rng(seed).choice(n_items, round(SHARE * n_items), replace=False)] = True
    frame = dataset.catalog.to_frame()
    cold = Catalog.from_frame(frame.filter(pl.Series(cold_I)))
    warm_set = _without(dataset, cold_I, Catalog.from_frame(frame.filter(pl.Series(~cold_I))))
    position_I = np.where(cold_I, np.cumsum(cold_I) - 1 + (~cold_I).sum(), np.cumsum(~cold_I) - 1)

    tasks, targets = dataset.tasks("test"), dataset.targets("test")
    tasks = [task for task in tasks if cold_I[targets[task.id]]]
    wanted = [int(position_I[targets[task.id]]) for task in tasks]
    warm = frozenset(map(ItemIdx, range(len(warm_set.catalog))))
    queries = [
        Query(tuple(ItemIdx(int(position_I[i])) for i in task.history if not cold_I[i]), exclude=warm) for task in tasks
    ]
    print(f"{dataset.name}, draw {seed}: {len(cold)} items held out, the last item of {len(tasks)} users", flush=True)
    trm = TRM.fit(warm_set, config, encoder)
    print(f"trained in {sum(epoch.seconds for epoch in trm.curve):.0f} s, {len(trm.curve)} epochs", flush=True)
    trm.add_items(cold)
    found = {"TRM, by text": trm.retrieve(queries, K)}
    n_warm, counts = len(warm_set.catalog), np.bincount(warm_set.train_sequences().items_N)
    for name, scores_C in _by_category(warm_set.catalog, counts, cold).items():
        scores_QI = np.tile(np.concatenate([np.zeros(n_warm), scores_C]), (len(queries), 1))
        found[name] = top_hits(scores_QI, queries, K)
    found["text of the last 20 items"] = _by_text(dataset, position_I, encoder, queries)
    return {
        name: recall_at(ranks_of([[hit.item for hit in hits] for hits in lists], wanted), K)
        for name, lists in found.items()
    }


def _without(dataset: Dataset, cold_I: NDArray[np.bool_], catalog: Catalog) -> Dataset:
    """The data set whose items are those of `catalog`, without their interactions with the others."""
    kept_N = ~cold_I[dataset.items_N]
    users_N = np.repeat(np.arange(len(dataset.users)), np.diff(dataset.starts_U1))
    # Test items are never trained on, so they go whether cold or not: tasks come from the whole data set.
    kept_N[dataset.starts_U1[1:] - 1] = False
    lengths_U = np.bincount(users_N[kept_N], minlength=len(dataset.users))
    position_I = (np.cumsum(~cold_I) - 1).astype(np.int32)
    # train_sequences() leaves out two more items of each user: less to train on, and no leak.
    return replace(
        dataset,
        catalog=catalog,
        items_N=position_I[dataset.items_N[kept_N]],
        starts_U1=np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
        times_N=None,
    )


def _by_text(
    dataset: Dataset, position_I: NDArray[np.int64], encoder: TextEncoder, queries: list[Query]
) -> list[list[Hit]]:
    """Nothing trained: the items whose text vectors are nearest to the mean of those of the user's last items."""
    texts_IE = encoder.encode(dataset.catalog.texts())[np.argsort(position_I)]
    users_QE = np.stack([texts_IE[list(query.history[-20:])].sum(0) for query in queries])
    return top_hits(users_QE @ texts_IE.T, queries, K)


def _by_category(catalog: Catalog, counts_I: NDArray[np.int64], cold: Catalog) -> dict[str, NDArray[np.float64]]:
    """Scores (C,) of held-out items: interactions with their categories, summed over them or averaged."""
    popularity: Counter[str] = Counter()
    for item, count in enumerate(counts_I.tolist()):
        popularity.update(dict.fromkeys(catalog.categories[item], count))
    of_items = [[popularity[name] for name in dict.fromkeys(names)] or [0] for names in cold.categories]
    return {
        "popularity of categories, summed": np.array([sum(values) for values in of_items], dtype=float),
        "popularity of categories, averaged": np.array([np.mean(values) for values in of_items], dtype=float),
    }


def _result(hits: dict[str, Floats]) -> dict[str, Any]:
    ours_U, rows = hits["TRM, by text"], {}
    for name, hits_U in hits.items():
        recall, ratio = mean_interval(hits_U), ratio_interval(ours_U, hits_U)
        rows[name] = {
            "users": len(hits_U),
            "recall": [recall.mean, recall.low, recall.high],
            "trm_ratio": [ratio.mean, ratio.low, ratio.high],
        }
    return rows


def _markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"- {key}: {text}" for key, text in environment(sys.argv).items()]
    table = []
    for name, rows in results.items():
        for system, row in rows.items():
            recall = "{:.4f} [{:.4f}, {:.4f}]".format(*row["recall"])
            ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["trm_ratio"])
            table.append([name, system, f"{row['users']:,}", recall, ratio])
    headings = ["set", "system", "users", f"Recall@{K} among held-out items", "TRM / it"]
    lines += ["", *markdown_table(headings, table)]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="trm.KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/trm_cold"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
