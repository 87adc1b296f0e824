"""Questions of many callers to one retriever: what comes while it works on a batch makes the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from deeprec.retrieval.retriever import Hit, Query, Retriever
from deeprec.serving.worker import BusyError

_BATCH = 256
"""Queries of a batch, at most."""


class Batcher:
    """See the module. One event loop's.

    Args:
        most: queries that are answered or wait; one more is refused.
    """

    def __init__(self, retriever: Retriever, most: int) -> None:
        self.retriever = retriever
        self.most = most
        self._waiting: list[tuple[Query, int, asyncio.Future[list[Hit]]]] = []
        self._work: asyncio.Task[None] | None = None

    def ask(self, queries: Sequence[Query], k: int) -> asyncio.Future[list[list[Hit]]]:
        """As the retriever's `retrieve`, for whoever awaits it; it may fail as that does.

        Raises:
            BusyError: at once, where too many wait.
        """
        if len(self._waiting) + len(queries) > self.most:
            raise BusyError(f"{len(self._waiting)} queries wait for the recommender: try later.")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in queries]
        self._waiting += zip(queries, [k] * len(queries), futures, strict=True)
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._run())
        return asyncio.gather(*futures)

    async def _run(self) -> None:
        while self._waiting:
            batch = self._waiting[:_BATCH]
            longest = max(k for _, k, _ in batch)
            try:
                found = await run_in_threadpool(self.retriever.retrieve, [query for query, _, _ in batch], longest)
            except Exception as error:  # noqa: BLE001 (theirs to hear, not the loop's)
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, k, future), hits in zip(batch, found, strict=True):
                    if not future.done():
                        future.set_result(hits[:k])
            del self._waiting[: len(batch)]
