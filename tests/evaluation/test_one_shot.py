"""One-shot reranking: the policy ranks the retriever's best items, and its traces are read like any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deeprec.config import ExploreConfig
from deeprec.data.catalog import ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.one_shot import CANDIDATES, recall_titles, rerank
from deeprec.explore.policy import Chunk, Finish, Request
from deeprec.explore.protocol import END_ANSWER, END_PREFERENCE, Fault, item_lines
from deeprec.explore.trace import Author, Origin, Stop, Trace
from deeprec.policies.text import TextPolicy, Writer
from deeprec.retrieval.retriever import Query, Retriever
from deeprec.testing import RetrieverContract
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
CATALOG = DATASET.catalog
TASKS = DATASET.tasks("test")
CONFIG = ExploreConfig(answer_size=3, segment_tokens=50, history=5, batch_size=4)
SENTINEL = "Zq9 Sentinel Xv7"


class Recording(TextPolicy):
    def __init__(self, writer: Writer, finish: Finish | None = None) -> None:
        super().__init__(writer)
        self.requests: list[Request] = []
        self.released: list[str] = []
        self.read: list[str] = []
        self.finish = finish

    def submit(self, requests: Sequence[Request]) -> None:
        self.requests += requests
        self.read += [self.decode(request.context) for request in requests]
        super().submit(requests)

    def release(self, keys: Sequence[str]) -> None:
        self.released += keys
        super().release(keys)

    def step(self) -> list[Chunk]:
        chunks = super().step()
        return [replace(chunk, finish=self.finish, error="boom") for chunk in chunks] if self.finish else chunks


def candidates(conversation: str) -> list[str]:
    lines = conversation.rpartition("Candidates:\n")[2].partition("\nAssistant:")[0].split("\n")
    return [line.partition(". ")[2] for line in lines if line[:1].isdigit()]


def writer(*positions: int, end: str = f"\n{END_ANSWER}") -> Writer:
    """Ranks the candidates of these places; the prompt has written the first number already."""

    def write(conversation: str) -> str:
        titles = candidates(conversation)
        return "\n".join(f" {titles[p]}" if n == 1 else f"{n}. {titles[p]}" for n, p in enumerate(positions, 1)) + end

    return write


def run(
    policy: Writer | TextPolicy, tasks: Sequence[Task] = TASKS[:1], **options: Any
) -> tuple[list[Trace], RecordingRetriever]:
    policy = policy if isinstance(policy, TextPolicy) else TextPolicy(policy)
    retriever = RecordingRetriever(len(CATALOG))
    got = list(rerank(policy, retriever, CATALOG, tasks, CONFIG.model_copy(update=options)))
    assert [position for position, _ in got] == list(range(len(tasks)))
    return [trace for _, trace in got], retriever


def test_a_ranking() -> None:
    policy = Recording(writer(5, 0, 19))
    (trace,), retriever = run(policy)
    (query,) = retriever.queries
    assert (query.history, query.preference, set(query.exclude)) == (TASKS[0].history, "", set(TASKS[0].history))
    (turn,) = trace.turns
    assert (turn.thought, turn.preference, turn.hits) == ("", "", tuple(retriever.answers[0]))
    pool = trace.pool
    assert len(pool) == CANDIDATES
    assert trace.raw_ranking == (pool[5], pool[0], pool[19])
    assert all(line.retrieved for line in trace.answer)
    assert trace.origin is Origin.ANSWER
    assert trace.well_formed
    assert (trace.stop, trace.answer_size, trace.fallback) == (Stop.ANSWERED, 3, ())
    assert (trace.task, trace.user, trace.history) == (TASKS[0].id, TASKS[0].user, TASKS[0].history)
    assert [segment.author for segment in trace.segments] == [Author.ENVIRONMENT, Author.POLICY]
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


def test_the_policy_reads_history_and_candidates_and_is_asked_greedily() -> None:
    policy = Recording(writer(0, 1, 2))
    (trace,), _ = run(policy, temperature=0.9)
    (asked,) = policy.requests
    assert (asked.temperature, asked.stops, asked.max_new_tokens) == (0, (END_ANSWER,), 50)
    assert policy.read == [trace.segments[0].text]
    shown = TASKS[0].history[-5:]
    assert item_lines([CATALOG.titles[i] for i in shown], [CATALOG.categories[i] for i in shown]) in policy.read[0]
    assert CATALOG.titles[TASKS[0].history[-6]] not in policy.read[0]
    assert candidates(policy.read[0]) == [CATALOG.titles[i] for i in trace.pool]
    assert tuple(asked.context) == trace.segments[0].tokens


def test_users_keep_their_order_over_batches() -> None:
    policy = Recording(writer(2, 1, 0))
    traces, retriever = run(policy, TASKS[:10])
    assert [trace.task for trace in traces] == [task.id for task in TASKS[:10]]
    assert [len(batch) for batch in retriever.batches] == [4, 4, 2]
    assert all(trace.well_formed for trace in traces)
    for trace, hits in zip(traces, retriever.answers, strict=True):
        assert trace.raw_ranking == tuple(hit.item for hit in hits[:3])[::-1]
        assert not set(trace.raw_ranking) & set(trace.history)
    assert policy.released == [request.key for request in policy.requests]
    assert len(set(policy.released)) == 10
    alone, _ = run(Recording(writer(2, 1, 0)), TASKS[:10], batch_size=1)
    assert [trace.turns for trace in alone] == [trace.turns for trace in traces]
    assert [trace.answer for trace in alone] == [trace.answer for trace in traces]
    assert run(policy, [])[0] == []


def seen(conversation: str) -> str:
    return f" {CATALOG.titles[TASKS[0].history[-1]]}\n2. Nope\n3. {candidates(conversation)[0]}\n{END_ANSWER}"


def tool_tags(conversation: str) -> str:
    return f" {candidates(conversation)[0]}{END_PREFERENCE}\n{END_ANSWER}"


@pytest.mark.parametrize(
    ("write", "stop", "faults", "origin"),
    [
        (writer(0, 0, 1), Stop.ANSWERED, [Fault.REPEATED_TITLE], Origin.COMPLETED),
        (writer(0, 1), Stop.ANSWERED, [Fault.LINES], Origin.COMPLETED),
        (writer(0, 1, 2, 3), Stop.ANSWERED, [Fault.LINES], Origin.ANSWER),
        (seen, Stop.ANSWERED, [Fault.SEEN_TITLE, Fault.UNKNOWN_TITLE], Origin.COMPLETED),
        (lambda _: END_ANSWER, Stop.ANSWERED, [Fault.LINES, Fault.NUMBERING], Origin.POOL),
        (lambda _: "", Stop.END_OF_TEXT, [Fault.NO_ANSWER], Origin.POOL),
        # Three good titles, but cut off before the end: as in an exploration, that is no answer.
        (writer(0, 1, 2, end=""), Stop.END_OF_TEXT, [Fault.NO_ANSWER], Origin.POOL),
        (
            lambda _: " Nope\n2. x\n3." + " y" * 99,
            Stop.SEGMENT_LIMIT,
            [Fault.NO_ANSWER],
            Origin.POOL,
        ),
    ],
)
def test_what_is_wrong_is_counted(write: Writer, stop: Stop, faults: list[Fault], origin: Origin) -> None:
    (trace,), _ = run(write)
    assert trace.stop is stop
    assert list(trace.faults) == faults
    assert not trace.well_formed
    ranking, where = trace.ranking, trace.origin
    assert where is origin
    assert len(set(ranking)) == 3
    assert not set(ranking) & set(trace.history)


def test_items_of_the_history_are_candidates_and_titles_where_the_task_allows_them() -> None:
    task = replace(TASKS[0], history=(ItemIdx(0), ItemIdx(1)), exclude_history=False)
    (trace,), _ = run(writer(1, 0, 2), [task])
    assert trace.well_formed
    assert trace.ranking == (1, 0, 2)

    def similarity(titles: Sequence[str]) -> Any:
        return np.tile(-np.arange(len(CATALOG), dtype=np.float32), (len(titles), 1))  # item 0 is nearest

    def from_memory(conversation: str) -> str:
        assert "titles that you know, also from the history" in conversation
        return f" {CATALOG.titles[1]}\n2. Some film\n3. Another\n{END_ANSWER}"

    ((_, trace),) = recall_titles(TextPolicy(from_memory), similarity, CATALOG, [task], CONFIG)
    assert (trace.ranking, trace.faults) == ((1, 0, 2), ())


def test_a_failing_policy_is_said_to_have_failed() -> None:
    for finish, stop in ((Finish.FAILED, Stop.FAILED), (Finish.NO_ROOM, Stop.CONTEXT_LIMIT)):
        (trace,), _ = run(Recording(writer(0, end=""), finish))
        assert (trace.stop, trace.error) == (stop, "boom")
        assert not trace.well_formed
        assert len(trace.ranking) == 3


def test_a_context_without_room_is_not_asked() -> None:
    policy = Recording(writer(0, 1, 2))
    tasks = [replace(task, history=task.history[: 2 + n]) for n, task in enumerate(TASKS[:3])]
    traces, _ = run(policy, tasks)
    lengths = sorted(len(request.context) for request in policy.requests)
    assert len(set(lengths)) == 3
    asked, limit = Recording(writer(0, 1, 2)), lengths[2]
    *less, full = run(asked, tasks, context_tokens=limit)[0]
    rooms = {len(request.context): request.max_new_tokens for request in asked.requests}
    assert rooms == {length: min(CONFIG.segment_tokens, limit - length) for length in lengths[:2]}
    assert [len(trace.segments[0].tokens) for trace in (*less, full)] == lengths
    assert (full.stop, full.policy_tokens, len(full.ranking)) == (Stop.CONTEXT_LIMIT, 0, 3)
    assert full.segments[0] == traces[2].segments[0]


def test_the_target_never_leaks() -> None:
    for task in TASKS[:8]:
        target = DATASET.targets("test")[task.id]
        titles = list(CATALOG.titles)
        titles[target] = SENTINEL
        policy = Recording(writer(2, 1, 0))
        retriever = RecordingRetriever(len(CATALOG), never=[target])
        catalog = replace(CATALOG, titles=tuple(titles))
        ((_, trace),) = rerank(policy, retriever, catalog, [task], CONFIG.model_copy(update={"history": 100}))
        assert SENTINEL not in json.dumps(trace.to_json())
        assert len(policy.read) == len(retriever.queries) == 1
        assert not any(SENTINEL in text for text in policy.read)
        for query in retriever.queries:
            assert target not in {*query.history, *query.exclude}


class TestRecording(RetrieverContract):
    @pytest.fixture
    def n_items(self) -> int:
        return len(CATALOG)

    @pytest.fixture
    def retriever(self, n_items: int) -> Retriever:
        return RecordingRetriever(n_items)


def test_the_recorder_never_returns_what_it_shall_not() -> None:
    (hits,) = RecordingRetriever(10, never=[0, 2]).retrieve([Query((), exclude=[ItemIdx(1)])], 3)
    assert [hit.item for hit in hits] == [3, 4, 5]


# Titles from memory


def bag(texts: Sequence[str]) -> Any:
    """Unit vectors of letter counts, as an encoder's."""
    counts = np.array([[text.lower().count(chr(c)) for c in range(48, 123)] for text in texts], dtype=np.float32)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def similarity(texts: Sequence[str]) -> Any:
    return bag(texts) @ bag(CATALOG.titles).T


def recalled(text: str, task: Task) -> Trace:
    """The trace of a policy that goes on after `1.` with a text."""
    policy = Recording(lambda conversation: text)
    ((_, trace),) = recall_titles(policy, similarity, CATALOG, [task], CONFIG)
    assert "Candidates" not in policy.read[0]
    return trace


def test_titles_from_memory_become_items_of_the_catalogue() -> None:
    task = TASKS[0]
    new = [ItemIdx(item) for item in range(len(CATALOG)) if item not in task.history]
    seen = CATALOG.titles[task.history[0]]
    trace = recalled(f" {CATALOG.titles[new[3]]}\n2. {seen}\n3. {CATALOG.titles[new[3]]}\n{END_ANSWER}", task)
    assert trace.raw_ranking[0] == new[3]
    assert len(set(trace.raw_ranking)) == 3
    assert not set(trace.raw_ranking) & set(task.history)  # a title of the history gives way to the next in text
    assert trace.well_formed
    assert trace.turns == ()


def test_whole_lines_of_an_answer_without_an_end_count() -> None:
    task = TASKS[1]
    new = [ItemIdx(item) for item in range(len(CATALOG)) if item not in task.history]
    trace = recalled(f" {CATALOG.titles[new[0]]}\n2. {CATALOG.titles[new[1]]}\n3. Fil", task)
    assert trace.raw_ranking == (new[0], new[1])
    assert trace.stop is Stop.END_OF_TEXT or trace.stop is Stop.SEGMENT_LIMIT
    assert Fault.NO_ANSWER in trace.faults
    assert recalled("", task).raw_ranking == ()


def test_a_title_that_nobody_knows_is_the_nearest_in_text() -> None:
    task = TASKS[2]
    trace = recalled(f" The Film of Films\n{END_ANSWER}", task)
    scores = bag(["The Film of Films"])[0] @ bag(CATALOG.titles).T
    scores[list(task.history)] = -1
    assert trace.raw_ranking == (ItemIdx(int(scores.argmax())),)
