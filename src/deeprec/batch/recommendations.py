"""Recommendations for all users of a data set, or some of them, to a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deeprec.batch.parts import table_in_parts
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Dataset, Task
from deeprec.data.filters import ItemFilter, allowed_items
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import PROTOCOL
from deeprec.explore.trace import Stop, Trace
from deeprec.retrieval.retriever import Retriever, queries_of
from deeprec.runs import JsonLines
from deeprec.runs.progress import SILENT, Advance, Progress

_VERSION = 1  # of the parts; raise it if older ones can't be joined with new ones
_BATCH = 256  # queries that a retriever is asked at once
_MOST_FAILED = 0.1  # share of a part's explorations that may fail twice: of more, the policy is at fault
_EXAMPLES = 3

Schema = dict[str, type[pl.DataType]]
_COLUMNS: Schema = {"user": pl.String, "item": pl.String, "title": pl.String, "rank": pl.Int64}
Tick = Callable[[int], None]
"""Is told how many users of a part are done."""
Row = Sequence[Any]
"""Item, rank from 1, and what a recommender tells besides."""


def write_recommendations(
    recommender: Retriever | Explorer,
    dataset: Dataset,
    out: Path | str,
    k: int = 10,
    *,
    users: Sequence[str] | None = None,
    filter: ItemFilter | None = None,
    exclude_history: bool | None = None,
    key: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the `k` best items for each user into a Parquet, CSV or JSON lines file.

    A user's history is the whole sequence, held-out items included: what is recommended is what may come next. An
    interrupted call goes on where it stopped if it is repeated; until the end its parts
    lie in the folder `<out>.parts`. Memory does not grow with the number of users, beside that of the data set itself.

    Args:
        recommender: a retriever ranks without a preference, an explorer explores for each user.
        out: ends in .parquet, .csv or .jsonl.
        users: ids of the data; default: all, in the order of the data.
        filter: which items may be recommended; default: all.
        exclude_history: whether items of a user's history are left out; default: as the data have it.
        key: what else decides the recommendations, as JSON values, for instance a policy's version. Parts of an earlier
            call are used only if data, users, items, `k`, the limits of explorations, the TRM's weights and this are
            the same.

    Rows are best first within each user: user (str), item (id, str), title (str), rank (1..k, int), and

    - of a retriever: score (float; comparable within one user only);
    - of an explorer: call and preference that first found the item (int from 1, and str; null where none did), origin
      (str) of the user's ranking, as `Trace.origin`, and error (str, null), why the policy failed. Failed explorations
      are repeated once, and then ranked from what they retrieved, or by the retriever.

    Raises:
        DeepRecError: `out` is there already, or the folder has parts of other settings; the data lacks a user; the
            retriever lacks an item; the disk is full; or more than a tenth of a part's explorations failed twice.
    """
    if k < 1:
        raise DeepRecError(f"k is the number of items to recommend, at least 1, not {k}.")
    chosen_P = numbers_of(dataset, users)
    source = _Explored(recommender, k) if isinstance(recommender, Explorer) else _Retrieved(recommender, k)
    catalog = recommender.catalog or dataset.catalog
    # By id: the recommender may have been fitted to other data.
    include = allowed_items(catalog, filter)
    excludes = dataset.exclude_history if exclude_history is None else exclude_history
    items_I = np.array([catalog.index(item) for item in dataset.catalog.ids], dtype=np.int64)
    parts = np.array_split(chosen_P, -(-len(chosen_P) // source.users_a_part))
    record = {
        "version": _VERSION,
        "data set": [dataset.fingerprint, dataset.text_digest, catalog.digest],
        "choice of users": hashlib.sha256(chosen_P.astype("<i8").tobytes()).hexdigest(),
        "exclude history": excludes,
        "items": None if include is None else hashlib.sha256(include.items_N.astype("<i8").tobytes()).hexdigest(),
        "k": k,
        "recommender": source.key() | {"key": dict(key or {})},
    }
    done = 0
    with table_in_parts(Path(out), record, len(parts)) as table:
        missing = frozenset(table.missing())
        with progress.phase("recommend", len(chosen_P), unit="users") as advance:
            for number, users_P in enumerate(parts):
                if number in missing:
                    tasks = [_task(dataset, u, items_I, excludes, include) for u in users_P.tolist()]
                    lists = source.lists(tasks, table.log(number), partial(_advance, advance, done))
                    table.add(number, _frame(tasks, lists, catalog, source.told))
                done += len(users_P)
                advance(done)
        if isinstance(source, _Explored):
            failed = (
                table.scan().filter(pl.col("error").is_not_null()).select(pl.col("user").n_unique()).collect().item()
            )
            if failed:
                progress.message(f"{failed} explorations failed: the column error says why, and origin what stands in.")


def numbers_of(dataset: Dataset, users: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Positions (P,) in the data of these users, each once; of all by default. DeepRecError if some are unknown."""
    if users is None:
        return np.arange(len(dataset.users))
    if isinstance(users, str):
        raise DeepRecError(f"Users are a list of ids, not the text {users!r}: put it in a list.")
    numbers = {str(user): u for u, user in enumerate(dataset.users)}
    chosen = list(dict.fromkeys(users))
    if not chosen:
        raise DeepRecError("The list of users is empty: name at least one, or recommend for all.")
    if unknown := [user for user in chosen if user not in numbers]:
        some, known = (", ".join(map(repr, names[:_EXAMPLES])) for names in (unknown, list(dataset.users)))
        raise DeepRecError(
            f"{dataset.name} has no history of {len(unknown)} of {len(chosen)} users, as {some}; its users are for "
            f"instance {known}, and data.user_core says how many interactions a user needs to be among them."
        )
    return np.array([numbers[user] for user in chosen], dtype=np.int64)


def _task(dataset: Dataset, u: int, items_I: NDArray[np.int64], exclude_history: bool, include: ItemSet | None) -> Task:
    user, history = dataset.users[u], items_I[dataset.sequence(u)].tolist()
    return Task(f"all:{user}", user, tuple(map(ItemIdx, history)), exclude_history, include)


def _advance(advance: Advance, before: int, done: int) -> None:
    advance(before + done)


def _frame(tasks: Sequence[Task], lists: Iterable[Sequence[Row]], catalog: Catalog, told: Schema) -> pl.DataFrame:
    rows = [
        (task.user, catalog.ids[item], catalog.titles[item], *rest)
        for task, ranked in zip(tasks, lists, strict=True)
        for item, *rest in ranked
    ]
    return pl.DataFrame(rows, schema=_COLUMNS | told, orient="row")


@dataclass(frozen=True, slots=True)
class _Retrieved:
    """Lists of a retriever without a preference."""

    retriever: Retriever
    k: int
    users_a_part: ClassVar[int] = 16 * _BATCH  # some seconds of work
    told: ClassVar[Schema] = {"score": pl.Float64}

    def key(self) -> dict[str, Any]:
        return {"retriever": [type(self.retriever).__qualname__, self.retriever.digest]}

    def lists(self, tasks: Sequence[Task], log: JsonLines, tick: Tick) -> Iterator[Sequence[Row]]:
        for start in range(0, len(tasks), _BATCH):
            batch = tasks[start : start + _BATCH]
            for hits in self.retriever.retrieve(queries_of(batch), self.k):
                yield [(hit.item, rank, hit.score) for rank, hit in enumerate(hits, start=1)]
            tick(start + len(batch))


@dataclass(frozen=True, slots=True)
class _Explored:
    """Rankings of explorations, each of them logged as it ends."""

    explorer: Explorer
    k: int
    users_a_part: ClassVar[int] = 256
    told: ClassVar[Schema] = {"call": pl.Int64, "preference": pl.String, "origin": pl.String, "error": pl.String}

    def key(self) -> dict[str, Any]:
        settings = self.explorer.answering(self.k).model_dump(mode="json", exclude={"batch_size"})
        policy = type(self.explorer.policy).__qualname__
        return _Retrieved(self.explorer.retriever, self.k).key() | {
            "policy": policy,
            "explore": settings,
            "protocol": PROTOCOL,
        }

    def lists(self, tasks: Sequence[Task], log: JsonLines, tick: Tick) -> Iterator[Sequence[Row]]:
        found = {entry["user"]: entry["list"] for entry in log}
        failed: dict[str, Trace] = {}
        for _ in range(2):  # a server may fail for a moment
            failed = {}
            for trace in self._explore([task for task in tasks if task.user not in found]):
                if trace.stop is Stop.FAILED:
                    failed[trace.user] = trace
                    continue
                found[trace.user] = _ranked(trace)
                log.append({"user": trace.user, "list": found[trace.user]})
                tick(len(found))
        if len(failed) > _MOST_FAILED * len(tasks):
            first = next(iter(failed.values())).error
            raise DeepRecError(
                f"{len(failed)} of {len(tasks)} explorations failed twice (first: {first}): mend that, and repeat the "
                "command, which goes on from here."
            )
        for task in tasks:
            yield found[task.user] if task.user in found else _ranked(failed[task.user])

    def _explore(self, tasks: Sequence[Task]) -> Iterator[Trace]:
        settings = self.explorer.answering(self.k)
        return (trace for _, trace in self.explorer.stream(tasks, config_of=lambda _: settings))


def _ranked(trace: Trace) -> list[Row]:
    found = trace.first_found()
    rows: list[Row] = []
    for rank, item in enumerate(trace.ranking, start=1):
        call, turn = found.get(item, (None, None))
        rows.append((item, rank, call, turn and turn.preference, trace.origin.value, trace.error))
    return rows
