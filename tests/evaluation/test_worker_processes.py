"""Explorations in worker processes: the same ones, and no worker outlives its parent's interest."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from deeprec.config import ExploreConfig, PolicyConfig
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.worker_processes import in_worker_processes, spread
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Trace
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from toys import RecordingRetriever, toy_dataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is unsafe elsewhere")

DATA = toy_dataset()
TASKS = DATA.tasks("test")
LIMITS = ExploreConfig(answer_size=3, items_per_call=4, segment_tokens=1000, context_tokens=100_000)


def explore(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
    policy = TextPolicy(ScriptedWriter(LIMITS.answer_size))
    return Explorer(policy, RecordingRetriever(len(DATA.catalog)), DATA.catalog, LIMITS).stream(tasks)


@pytest.mark.parametrize("processes", [1, 2, 3, 50])
def test_every_task_is_explored_once_as_in_one_process(processes: int) -> None:
    def told(trace: Trace) -> tuple[object, ...]:  # the tokens of a text policy are its process's own
        return trace.task, trace.turns, trace.raw_ranking, [segment.text for segment in trace.segments]

    alone = {position: told(trace) for position, trace in explore(TASKS)}
    found = list(in_worker_processes(explore, processes, 1)(TASKS))
    assert len(found) == len(TASKS)
    assert {position: told(trace) for position, trace in found} == alone
    assert not multiprocessing.active_children()


def test_the_work_is_done_in_workers_and_none_has_too_few_tasks() -> None:
    def where(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        return ((position, os.getpid()) for position, _ in enumerate(tasks))  # type: ignore[misc]

    for count, expected in ((9, 1), (10, 2), (16, 3), (100, 3)):
        pids = dict(in_worker_processes(where, 3, 5)(TASKS[:1] * count)).values()
        assert len(set(pids)) == expected
        assert (os.getpid() in pids) == (expected == 1)


def test_what_a_worker_raises_is_raised_here() -> None:
    def failing(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        yield from explore(tasks[:1])
        raise DeepRecError("No more.")

    found = in_worker_processes(failing, 2, 1)(TASKS)
    assert next(iter(found))
    with pytest.raises(DeepRecError, match="No more"):
        list(found)
    assert not multiprocessing.active_children()


def test_what_cannot_travel_is_told_in_words() -> None:
    class TornError(Exception):  # of a function: it has no name by which to pickle it
        pass

    def failing(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        yield from explore(tasks[:1])
        raise TornError("No more.")

    with pytest.raises(RuntimeError, match=r"in failing\n.*\n.*TornError: No more"):
        list(in_worker_processes(failing, 2, 1)(TASKS))


def test_workers_die_with_their_parent() -> None:
    reading, writing = os.pipe()

    def endless(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        os.write(writing, b"%8d" % os.getpid())
        yield from explore(tasks[:1])
        time.sleep(60)

    parent = os.fork()
    if not parent:
        with contextlib.suppress(BaseException):
            list(in_worker_processes(endless, 2, 1)(TASKS))
        os._exit(0)
    workers = [int(os.read(reading, 8)) for _ in range(2)]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while any(map(_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status  # killed, and whoever adopted it has not asked yet


def test_a_killed_worker_is_reported() -> None:
    def dying(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        yield from explore(tasks[:1])
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DeepRecError, match="was killed"):
        list(in_worker_processes(dying, 2, 1)(TASKS))
    assert not multiprocessing.active_children()


def test_closing_ends_the_workers() -> None:
    def endless(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        while True:
            yield from explore(tasks)

    found = iter(in_worker_processes(endless, 2, 1)(TASKS))
    assert next(found)
    assert len(multiprocessing.active_children()) == 2
    found.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_only_a_model_on_a_processor_gets_workers() -> None:
    assert spread(explore, TextPolicy(ScriptedWriter(3)), 32) is explore


@pytest.mark.llm
def test_a_language_model_explores_in_workers_as_it_does_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from deeprec.policies.transformers import TransformersPolicy

    policy = TransformersPolicy.load(PolicyConfig(dtype="float32"))
    limits = LIMITS.model_copy(update={"segment_tokens": 24, "context_tokens": 1000})

    def stream(tasks: Sequence[Task]) -> Iterator[tuple[int, Trace]]:
        return Explorer(policy, RecordingRetriever(len(DATA.catalog)), DATA.catalog, limits).stream(tasks)

    def told(pairs: Iterable[tuple[int, Trace]]) -> dict[int, list[tuple[int, ...]]]:
        return {position: [segment.tokens for segment in trace.segments] for position, trace in pairs}

    alone = told(stream(TASKS[:4]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pairs = iter(spread(stream, policy, 2)(TASKS[:4]))
    first = next(pairs)
    assert len(multiprocessing.active_children()) == 2
    assert told([first, *pairs]) == alone

    policy.forkable = False
    assert spread(stream, policy, 2) is stream
