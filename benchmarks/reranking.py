"""What is left in the order of the TRM's first items: what their text could change in it, and what co-occurrence could.

    .venv/bin/python benchmarks/reranking.py ml-100k runs/*-trm/trm

The arguments are a data set and the folder of a TRM that was trained on it. A linear model of features of the
candidates (the TRM's first `--top`) learns on the validation targets which of them comes next, and ranks the candidates
of the test users. The TRM's place is a feature of all, so that one which learns nothing ranks as the TRM does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from deeprec.config import EvalConfig, load_config
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.data.sources import load_dataset
from deeprec.evaluation.eval_report import markdown_table
from deeprec.evaluation.evaluate import rankings_of
from deeprec.evaluation.intervals import ratio_interval
from deeprec.evaluation.metrics import ndcg_at, ranks_of
from deeprec.retrieval.baselines import EASERetriever
from deeprec.runs import environment
from deeprec.trm.trm import TRM

CONFIG = EvalConfig()
LAST = (1, 3, 6, 30)  # how much of a history an item's text is compared with
REGULARISATION = 200.0  # of EASE
SHRINKAGE = 0.01
K = 10

Features = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="an asset or a path, as data.source")
    parser.add_argument("trm", type=Path)
    parser.add_argument("--top", type=int, default=20)
    args = parser.parse_args()
    dataset = load_dataset(load_config(None, [f'data.source="{args.source}"']).data)
    trm, catalog = TRM.load(args.trm), dataset.catalog
    ease = EASERetriever.fit(dataset.train_sequences(), len(catalog), REGULARISATION)
    tasks = {split: dataset.tasks(split) for split in ("validation", "test")}
    lists = {split: rankings_of(trm, tasks[split], args.top) for split in tasks}
    targets = {split: [dataset.targets(split)[task.id] for task in tasks[split]] for split in tasks}
    alone_U = ndcg_at(ranks_of(lists["test"], targets["test"]), K)
    parts = {split: _features(catalog, ease, tasks[split], lists[split]) for split in tasks}
    rows = [["TRM alone", f"{alone_U.mean():.4f}", ""]]
    for name, used in (
        ("the text of the history's last items", ["place", "text"]),
        ("co-occurrence with the whole history", ["place", "co-occurrence"]),
        ("both", ["place", "text", "co-occurrence"]),
    ):
        seen = {split: np.concatenate([parts[split][part] for part in used], axis=2) for split in tasks}
        weights_F = _learn(seen["validation"], ranks_of(lists["validation"], targets["validation"]))
        orders_UC = np.argsort(-(seen["test"] @ weights_F), axis=1, kind="stable")
        ranked = np.take_along_axis(np.asarray(lists["test"]), orders_UC, axis=1)
        ours_U = ndcg_at(ranks_of(ranked.tolist(), targets["test"]), K)
        ratio = ratio_interval(
            ours_U, alone_U, confidence=CONFIG.confidence, resamples=CONFIG.bootstrap, seed=CONFIG.seed
        )
        low, high = 100 * (ratio.low - 1), 100 * (ratio.high - 1)
        rows.append([name, f"{ours_U.mean():.4f}", f"{100 * (ratio.mean - 1):+.1f} % [{low:+.1f}, {high:+.1f}]"])
    told = environment(sys.argv)
    print(
        f"{dataset.name}, {len(alone_U):,} test users, the TRM's first {args.top}; {told['hardware']}, {told['date']}\n"
    )
    print("\n".join(markdown_table(["ranked by the TRM's place and", f"NDCG@{K}", "against the TRM alone"], rows)))


def _features(
    catalog: Catalog, ease: EASERetriever, tasks: list[Task], lists: list[list[ItemIdx]]
) -> dict[str, Features]:
    """Per part: users, candidates, features."""
    # Phrases of one item alone are left out, for they are shared with none.
    counter = CountVectorizer(analyzer=catalog.phrases, binary=True, min_df=2, dtype=np.float32)
    has_IP = counter.fit_transform(range(len(catalog))).toarray()
    sizes_I = has_IP.sum(1)
    years_I = np.array([np.nan if year is None else float(year) for year in catalog.years])
    years_I = np.nan_to_num(years_I, nan=0.0 if np.isnan(years_I).all() else float(np.nanmedian(years_I))) / 10
    text, together = [], []
    for task, candidates in zip(tasks, lists, strict=True):
        chosen = np.asarray(candidates)
        columns = []
        for last in LAST:
            history = list(task.history[-last:])
            shared_CH = has_IP[chosen] @ has_IP[history].T
            columns.append((shared_CH / np.maximum(1, sizes_I[chosen][:, None] + sizes_I[history] - shared_CH)).mean(1))
            columns.append(np.abs(years_I[chosen] - years_I[history].mean()))
        text.append(np.stack([*columns, years_I[chosen] - years_I[chosen].mean()], axis=1))
        score_C = ease.scores(task.history)[chosen]
        together.append(((score_C - score_C.mean()) / (score_C.std() + 1e-9))[:, None])
    positions_C = np.arange(len(lists[0]))
    position_CF = np.stack([-np.log2(positions_C + 2), -positions_C / 10, positions_C == 0], axis=1)
    return {
        "place": np.broadcast_to(position_CF, (len(tasks), *position_CF.shape)),
        "text": np.stack(text),
        "co-occurrence": np.stack(together),
    }


def _learn(seen_UCF: Features, ranks_U: NDArray[np.int64]) -> Features:
    """Weights of a softmax over each user's candidates, from the users whose target is among them."""
    there_U = ranks_U >= 0
    seen, target = torch.tensor(seen_UCF[there_U]), torch.tensor(ranks_U[there_U])
    weights_F = torch.zeros(seen.shape[2], dtype=seen.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights_F], max_iter=200)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(seen @ weights_F, target) + SHRINKAGE * weights_F @ weights_F
        value.backward()
        return value

    optimizer.step(loss)
    return weights_F.detach().numpy()


if __name__ == "__main__":
    main()
