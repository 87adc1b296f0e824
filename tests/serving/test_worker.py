"""The worker: many callers, one explorer; nobody is lost, and a cancelled job frees its slot."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deeprec.config import ExploreConfig
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import call_text
from deeprec.explore.trace import Stop, Trace, Turn
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.serving.worker import CLOSING, FAILED, BusyError, Event, Worker
from serving.conftest import CONFIG, DATASET, SECONDS, Gate, ranking_of
from toys import RecordingRetriever

TASKS = DATASET.tasks("test")


@pytest.fixture
def make() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def worker(writer: Any, **options: Any) -> Worker:
        explorer = Explorer(TextPolicy(writer), RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, CONFIG)
        workers.append(Worker(explorer, **{"slots": 4, "queue": 100, "seconds": SECONDS} | options))
        return workers[-1]

    yield worker
    for each in workers:
        each.close()


def received(events: queue.Queue[Event]) -> list[Event]:
    """All events of a job."""
    found = [events.get(timeout=SECONDS)]
    while not isinstance(found[-1], Trace):
        found.append(events.get(timeout=SECONDS))
    return found


def stop_of(events: queue.Queue[Event]) -> Stop:
    last = received(events)[-1]
    assert isinstance(last, Trace)
    return last.stop


def submit(worker: Worker, task: Any, config: ExploreConfig = CONFIG) -> tuple[Any, queue.Queue[Event]]:
    events: queue.Queue[Event] = queue.Queue()
    return worker.submit(task, config, events.put), events


def test_everyone_gets_the_trace_of_an_explorer_alone(make: Callable[..., Worker]) -> None:
    worker = make(ScriptedWriter(3))
    asked = [submit(worker, task)[1] for task in TASKS[:20]]
    alone = Explorer(
        TextPolicy(ScriptedWriter(3)), RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, CONFIG
    ).run(TASKS[:20])
    for events, trace in zip(asked, alone, strict=True):
        *before, last = received(events)
        assert isinstance(last, Trace)
        assert [segment.text for segment in last.segments] == [segment.text for segment in trace.segments]
        assert [event for event in before if isinstance(event, Turn)] == list(last.turns)
        written = "".join(segment.text for segment in last.segments if segment.author == "policy")
        assert "".join(event for event in before if isinstance(event, str)) == written
        kinds = [type(event) for event in before]
        assert kinds.index(Turn) > kinds.index(str)
    assert worker.load() == (0, 0)


def test_callers_may_have_limits_of_their_own(make: Callable[..., Worker]) -> None:
    worker = make(ScriptedWriter(3))
    few = CONFIG.model_copy(update={"items_per_call": 2, "answer_size": 3})
    asked = [submit(worker, TASKS[0], config)[1] for config in (CONFIG, few)]
    counts = [{len(turn.hits) for turn in received(events)[-1].turns} for events in asked]  # type: ignore[union-attr]
    assert counts == [{4}, {2}]


def test_beyond_the_queue_callers_are_refused_and_nobody_else_is_lost(make: Callable[..., Worker]) -> None:
    gate = Gate()
    worker = make(gate, slots=2, queue=3)
    first = submit(worker, TASKS[0])[1]
    assert gate.reached.wait(SECONDS)  # its step holds the thread, so that the next ones stay in the queue
    others = [submit(worker, task)[1] for task in TASKS[1:5]]  # one more slot, and three who wait
    with pytest.raises(BusyError, match="try later"):
        submit(worker, TASKS[5])
    gate.open.set()
    assert {stop_of(events) for events in [first, *others]} == {Stop.ANSWERED}
    assert stop_of(submit(worker, TASKS[9])[1]) is Stop.ANSWERED


def test_a_cancelled_job_frees_its_slot_and_reports_no_more(make: Callable[..., Worker]) -> None:
    gate = Gate()
    worker = make(gate, slots=1, queue=2)
    job, events = submit(worker, TASKS[0])
    assert gate.reached.wait(SECONDS)
    waiting, unheard = submit(worker, TASKS[1])
    after = submit(worker, TASKS[2])[1]
    worker.cancel(waiting)
    worker.cancel(job)
    gate.open.set()
    assert stop_of(after) is Stop.ANSWERED
    assert not any(isinstance(event, Trace | Turn) for event in list(events.queue))
    assert unheard.empty()
    assert worker.load() == (0, 0)


def test_an_exploration_over_its_time_limit_is_ranked_from_what_it_found(make: Callable[..., Worker]) -> None:
    calls = iter(range(10**9))
    worker = make(lambda _: call_text("Again.", f"wish {next(calls)}"), seconds=0.05)
    endless = CONFIG.model_copy(update={"max_calls": 10**6, "items_per_call": 1, "context_tokens": 10**9})
    last = received(submit(worker, TASKS[0], endless)[1])[-1]
    assert isinstance(last, Trace)
    assert last.stop is Stop.FAILED
    assert "more than 0.05 s" in str(last.error)
    assert not last.answer
    assert len(ranking_of(last)) == 3


def test_a_failing_policy_ends_the_explorations_and_not_the_worker(make: Callable[..., Worker]) -> None:
    broken = threading.Event()

    def writer(conversation: str) -> str:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("out of memory")
        return ScriptedWriter(3)(conversation)

    worker = make(writer)
    failed = received(submit(worker, TASKS[0])[1])[-1]
    assert isinstance(failed, Trace)
    assert (failed.stop, failed.error, failed.turns) == (Stop.FAILED, FAILED, ())
    assert stop_of(submit(worker, TASKS[1])[1]) is Stop.ANSWERED


def test_who_is_dismissed_hears_of_it_at_once(make: Callable[..., Worker]) -> None:
    gate = Gate()
    worker = make(gate, slots=1, queue=2)
    asked = [submit(worker, TASKS[0])[1]]
    assert gate.reached.wait(SECONDS)  # its step holds the thread
    asked.append(submit(worker, TASKS[1])[1])
    worker.dismiss()
    for events in asked:
        last = events.get(timeout=1)
        assert isinstance(last, Trace)
        assert (last.stop, last.error) == (Stop.FAILED, CLOSING)
    with pytest.raises(BusyError, match="closing"):
        submit(worker, TASKS[2])
    gate.open.set()
    worker.close()
    assert all(events.empty() for events in asked), "nothing comes after the end"


def test_a_closed_worker_refuses_jobs(make: Callable[..., Worker]) -> None:
    worker = make(ScriptedWriter(3))
    worker.close()
    with pytest.raises(BusyError, match="closing"):
        submit(worker, TASKS[0])
