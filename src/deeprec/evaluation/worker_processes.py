"""Explorations in several processes: on a processor, two with one thread each are faster than one with two."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.rankings import Stream
from deeprec.explore.policy import Policy
from deeprec.explore.trace import Trace

_PR_SET_PDEATHSIG = 1
_MOST = 8  # processes: each keeps the cache of a whole batch


def spread(stream: Stream, policy: Policy, batch_size: int) -> Stream:
    """`in_worker_processes`, where Linux and the policy allow forks."""
    if sys.platform != "linux" or not policy.forkable:
        return stream
    import torch

    return in_worker_processes(stream, min(torch.get_num_threads(), _MOST), max(1, batch_size // 2))


def in_worker_processes(stream: Stream, most: int, at_least: int) -> Stream:
    """The same stream, its tasks dealt out to forks of this process, which share the memory of what is loaded: to
    `most` of them at most, `at_least` tasks to each. Closing the iterator ends the workers."""

    def together(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        processes = min(most, len(tasks) // at_least)
        if processes < 2:
            yield from stream(tasks)
            return
        context = multiprocessing.get_context("fork")
        open_: dict[Connection, range] = {}
        workers = []
        try:
            for first in range(processes):
                ours, theirs = context.Pipe(duplex=False)
                arguments = (stream, tasks[first::processes], theirs, os.getpid())
                workers.append(context.Process(target=_work, args=arguments, daemon=True))
                workers[-1].start()
                theirs.close()
                open_[ours] = range(first, len(tasks), processes)
            while open_:
                for end in wait(list(open_)):
                    assert isinstance(end, Connection)
                    if found := _received(end):
                        yield open_[end][found[0]], found[1]
                    else:
                        del open_[end]
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()

    return together


def _received(end: Connection) -> tuple[int, Trace] | None:
    """What a worker sends; None at its end."""
    try:
        found: tuple[int, Trace] | BaseException | None = end.recv()
    except EOFError:
        raise DeepRecError(
            "A worker process was killed, perhaps for lack of memory. Resume in one process with OMP_NUM_THREADS=1, or "
            "start again with a lower explore.batch_size: finished explorations are kept."
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _work(stream: Stream, tasks: Sequence[Task], end: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends its workers
    # Whoever kills the parent kills its workers, which hold the lock on the run's folder too.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)  # a fork has no other threads
    try:
        for pair in stream(tasks):
            end.send(pair)
        end.send(None)
    except Exception as error:  # noqa: BLE001 (to be raised by the parent)
        # Other errors may not survive the transfer, or lose their traceback.
        end.send(error if type(error) is DeepRecError else RuntimeError("".join(traceback.format_exception(error))))
