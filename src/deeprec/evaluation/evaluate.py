"""Evaluate recommenders from Python: `deeprec.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from deeprec.config import EvalConfig, Exclude
from deeprec.data.dataset import Dataset, Split
from deeprec.errors import DeepRecError, reason
from deeprec.evaluation.cached_results import TraceLog, Users
from deeprec.evaluation.rankings import check_targets, evaluation_tasks
from deeprec.evaluation.report import Report
from deeprec.evaluation.results import Result
from deeprec.evaluation.runner import evaluate_system
from deeprec.evaluation.systems import AnyExplorer, AnyRetriever, System
from deeprec.evaluation.tables import SetReport, held_out_by
from deeprec.explore.explorer import Explorer
from deeprec.retrieval.retriever import Retriever
from deeprec.runs.progress import SILENT, Progress


def evaluate(
    systems: Mapping[str, Retriever | Explorer | System],
    dataset: Dataset,
    *,
    users: int | None = None,
    split: Split = "test",
    cutoffs: Sequence[int] = (1, 5, 10),
    baseline: str | None = None,
    exclude: Exclude | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Compare systems by full ranking of the catalogue, one held-out item a user.

    Args:
        systems: by name; retrievers rank without a preference.
        users: size of the seeded sample on which explorers run, but for scripted ones; default: all users.
        split: "test" holds out each user's last item, "validation" the one before it.
        cutoffs: rising k of NDCG@k, Recall@k and MRR@k; the largest is the headline.
        baseline: name of the system that all others are compared with; default: the first.
        exclude: items that no system may rank: "history" or "none"; default: "none" where repeats are kept and occur
            among targets, else "history".

    Returns:
        Prints as a table; `save(folder)` writes it as Markdown, HTML and JSON, `table()` gives a polars frame.

    Raises:
        DeepRecError: an argument does not fit, every target is excluded, or explorations failed.
    """
    try:
        config = EvalConfig(split=split, cutoffs=tuple(cutoffs), users=users, exclude=exclude)
    except ValidationError as error:
        raise DeepRecError(f"evaluate: {reason(error.errors()[0])}.") from None
    if not systems:
        raise DeepRecError("evaluate: there is no system to evaluate.")
    first = baseline or next(iter(systems))
    if first not in systems:
        raise DeepRecError(f"evaluate: baseline {first!r} is not one of the systems {list(systems)}.")
    tasks, sample = evaluation_tasks(dataset, config)
    of, targets, results, failed = Users.of(dataset, config), dataset.targets(split), [], []
    for name, system in systems.items():
        if not isinstance(system, System):
            if system.catalog is not None and system.catalog.ids != dataset.catalog.ids:
                raise DeepRecError(
                    f"evaluate: {name!r} has other items than {dataset.name} (an updated TRM may have more): fit it to "
                    "this data."
                )
            system = AnyExplorer(name, system) if isinstance(system, Explorer) else AnyRetriever(name, system)
        chosen = sample if system.on_sample else tasks
        try:
            check_targets(chosen, targets)
            part = evaluate_system(system, chosen, targets, max(cutoffs), TraceLog(), progress)
        except DeepRecError as error:
            if name == first:
                raise
            failed.append(f"{name}: {error}")  # the other systems' results stay
            continue
        results.append(Result(name, (None,), (part,), config.cutoffs))
    held_out = held_out_by(None, dataset.parts_U2 is not None) if dataset.cuts is None else "split by time"
    found = SetReport(dataset.name, split, held_out, of, tuple(results), first)
    return Report("Evaluation", (found,), failed=tuple(failed))
