"""Queries of many callers to one retriever: those that arrive while a batch is computed form the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.serving.worker import BusyError

_BATCH = 256  # maximum queries of a batch


class Batcher:
    """See the module. It belongs to one event loop.

    Args:
        limit: queries that may wait, those of the current batch included; more are refused.
    """

    def __init__(self, retriever: Retriever, limit: int) -> None:
        self.retriever, self.limit = retriever, limit
        self._waiting: list[tuple[Query, int, asyncio.Future[list[Hit]]]] = []
        self._work: asyncio.Task[None] | None = None

    def retrieve(self, queries: Sequence[Query], k: int) -> asyncio.Future[list[list[Hit]]]:
        """The result of the retriever's `retrieve`, or its exception, as a future; BusyError if too many wait."""
        if len(self._waiting) + len(queries) > self.limit:
            raise BusyError(f"{len(self._waiting)} queries wait for the recommender: try later.")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in queries]
        self._waiting += [(query, k, future) for query, future in zip(queries, futures, strict=True)]
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._run())
        return asyncio.gather(*futures)

    async def _run(self) -> None:
        while batch := self._waiting[:_BATCH]:
            queries, sizes, futures = zip(*batch, strict=True)
            try:
                results = await run_in_threadpool(self.retriever.retrieve, queries, max(sizes))
                for k, future, hits in zip(sizes, futures, results, strict=True):
                    if not future.done():
                        future.set_result(hits[:k])
            except Exception as error:  # noqa: BLE001 (the callers get it; the loop goes on)
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            del self._waiting[: len(batch)]
