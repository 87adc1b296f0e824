from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deeprec.config import EvalConfig, ExploreConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.evaluate import evaluate_retriever, evaluate_traces, evaluation_tasks, resume
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import Fault
from deeprec.explore.trace import Author, Line, Segment, Stop, Trace, Turn
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import Hit
from deeprec.runs import JsonLines
from deeprec.testing import toy_dataset

CONFIG = EvalConfig(cutoffs=(1, 3))


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def tasks_of(*histories):
    return [Task(f"test:u{u}", UserId(f"u{u}"), items(*history)) for u, history in enumerate(histories)]


# Retrievers


def test_a_retriever_ranks_all_but_the_history():
    """Popularity 0 > 1 > 2 > 3 > 4; two of the three best without the history."""
    retriever = PopularityRetriever(np.array([5.0, 4, 3, 2, 1]))
    tasks = tasks_of([0, 4], [3], [], [0, 1, 2])
    targets = {"test:u0": ItemIdx(2), "test:u1": ItemIdx(0), "test:u2": ItemIdx(4), "test:u3": ItemIdx(0)}
    result = evaluate_retriever("popularity", retriever, tasks, targets, 5, CONFIG, note="a note")
    # u0: 1 2 3, u1: 0 1 2, u2: 0 1 2 (4 is out of the three), u3: 3 4 (0 is in the history)
    assert result.users == ("test:u0", "test:u1", "test:u2", "test:u3")
    assert result.ranks == (1, 0, -1, -1)
    assert result.coverage == 5 / 5
    assert (result.name, result.note, result.extras, result.stops) == ("popularity", "a note", {}, {})


class Asked:
    """Answers with item = number of the query, and remembers what it was asked."""

    def __init__(self):
        self.batches, self.ks, self.count = [], [], 0

    def retrieve(self, queries, k):
        self.batches.append(queries)
        self.ks.append(k)
        hits = [[Hit(ItemIdx(self.count + position), 0.0)] for position in range(len(queries))]
        self.count += len(queries)
        return hits


def test_a_retriever_is_asked_in_batches_without_targets_and_answers_stay_in_order():
    tasks = tasks_of(*[[1, 2]] * 600)
    targets = {task.id: ItemIdx(position if position % 2 else 999) for position, task in enumerate(tasks)}
    asked = Asked()
    result = evaluate_retriever("x", asked, tasks, targets, 1000, CONFIG)
    assert result.ranks == (-1, 0) * 300
    assert set(asked.ks) == {3}
    assert sum(map(len, asked.batches)) == 600
    assert len(asked.batches) > 1
    for query in (query for batch in asked.batches for query in batch):
        assert (query.history, query.preference, set(query.exclude)) == ((1, 2), "", {1, 2})


# Traces


def trace(task, *, answer=(), turns=(), fallback=(), faults=(), stop=Stop.ANSWERED, written=0):
    """An exploration that answers items 1 2 3 where nothing else is said; `turns` are lists of items."""
    return Trace(
        task=task.id,
        user=task.user,
        history=task.history,
        segments=(
            Segment(Author.ENVIRONMENT, (1,) * 100, (), "prompt"),
            Segment(Author.POLICY, (2,) * written, (), "words"),
        ),
        turns=tuple(Turn("", "p", tuple(Hit(item, 0.0) for item in items(*turn))) for turn in turns),
        thought="",
        answer=tuple(Line(f"t{item}", ItemIdx(item), True, None) for item in answer),
        fallback=tuple(Hit(item, 0.0) for item in items(*fallback)),
        stop=stop,
        faults=faults,
        answer_size=3,
    )


def test_traces_as_answered_and_as_served():
    tasks = tasks_of([0], [0], [0], [0])
    targets = dict(zip([task.id for task in tasks], items(2, 2, 3, 9), strict=True))
    traces = [
        # Answered in full; the target 2 is at place 1.
        trace(tasks[0], answer=(1, 2, 3), turns=[(1, 2, 3)], written=10),
        # Garbage after two calls: a miss as answered; served 1, 2, 4, list after list: place 1.
        trace(tasks[1], turns=[(1, 2), (2, 4)], faults=(Fault.NO_ANSWER,), stop=Stop.SEGMENT_LIMIT, written=30),
        # One line of three: the target 3 is not among them; served 1, then 3 and 5 of the list: place 1.
        trace(tasks[2], answer=(1,), turns=[(3, 5)], faults=(Fault.LINES,), written=20),
        # No call at all: served the spare list, in which the target 9 is missing.
        trace(tasks[3], fallback=(4, 5, 6), faults=(Fault.NO_CALL,), stop=Stop.END_OF_TEXT),
    ]
    answered, with_fallback = evaluate_traces("llm", tasks, traces, targets, 10, CONFIG, note="a note")
    assert (answered.name, with_fallback.name) == ("llm, as answered", "llm, as served")
    assert answered.users == with_fallback.users == tuple(task.id for task in tasks)
    assert answered.ranks == (1, -1, -1, -1)
    assert with_fallback.ranks == (1, 1, 1, -1)
    assert answered.coverage == 3 / 10  # 1 2 3
    assert with_fallback.coverage == 6 / 10  # 1 to 6
    assert answered.extras == {
        "well_formed": 1 / 4,
        "fallback": 3 / 4,
        "calls": (1 + 2 + 1 + 0) / 4,
        "pool hit": 3 / 4,
        "tokens": (10 + 30 + 20 + 0) / 4,  # the prompt's 100 are not the policy's
    }
    assert answered.stops == {"answered": 2, "segment limit": 1, "end of text": 1}
    assert (with_fallback.extras, with_fallback.stops) == (answered.extras, answered.stops)
    assert answered.note == "a note"


def test_a_target_beyond_the_largest_cutoff_still_has_its_rank():
    """The metrics cut, not the result; coverage counts only what is above the cutoff."""
    tasks = tasks_of([0])
    found = trace(tasks[0], answer=(1, 2, 3), turns=[(1, 2, 3)])
    answered, _ = evaluate_traces("x", tasks, [found], {"test:u0": ItemIdx(3)}, 10, EvalConfig(cutoffs=(1, 2)))
    assert answered.ranks == (2,)
    assert answered.coverage == 2 / 10
    assert answered.per_user((1, 2))["Recall@2"] == {"test:u0": 0.0}


# The sample


def test_the_sample_is_seeded_sorted_and_of_the_split():
    dataset = toy_dataset(n_users=50)
    everything, sample = evaluation_tasks(dataset, EvalConfig(users=10))
    assert everything == dataset.tasks("test")
    assert len(sample) == 10
    numbers = [everything.index(task) for task in sample]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(10))
    assert evaluation_tasks(dataset, EvalConfig(users=10))[1] == sample
    assert {task.id for task in sample} < {task.id for task in evaluation_tasks(dataset, EvalConfig(users=15))[1]}
    assert evaluation_tasks(dataset, EvalConfig(users=10, seed=1))[1] != sample
    assert evaluation_tasks(dataset, EvalConfig(users=10, split="validation"))[0] == dataset.tasks("validation")


@pytest.mark.parametrize("users", [None, 50, 51])
def test_without_a_smaller_number_the_sample_is_everybody(users):
    everything, sample = evaluation_tasks(toy_dataset(n_users=50), EvalConfig(users=users))
    assert sample == everything


def test_no_users_to_evaluate_is_an_error():
    with pytest.raises(DeepRecError, match="has no test users"):
        evaluation_tasks(toy_dataset(length=2), EvalConfig())


# Resuming


@pytest.fixture
def explorer():
    """The scripted explorer over popularity; `asked` lists the users it explored for."""
    dataset = toy_dataset(n_users=8)
    retriever = PopularityRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    config = ExploreConfig(answer_size=3, items_per_call=4, batch_size=3)
    explorer = Explorer(TextPolicy(ScriptedWriter(3)), retriever, dataset.catalog, config)
    explorer.tasks = dataset.tasks("test")
    explorer.asked = []
    return explorer


def stream(explorer, stop_after=None):
    def explore(tasks):
        explorer.asked += [task.id for task in tasks]
        for count, found in enumerate(explorer.stream(tasks)):
            if count == stop_after:
                raise KeyboardInterrupt
            yield found

    return explore


@pytest.mark.parametrize("stop_after", [0, 1, 5, 7])
def test_interrupted_and_resumed_gives_the_same_traces(tmp_path, explorer, stop_after):
    unbroken = explorer.run(explorer.tasks)
    path = tmp_path / "traces.jsonl"
    with pytest.raises(KeyboardInterrupt):
        resume(explorer.tasks, "llm", JsonLines(path), stream(explorer, stop_after), lambda _: None)
    kept = {entry["trace"]["task"] for entry in JsonLines(path)}
    assert len(kept) == stop_after
    explorer.asked.clear()
    ticks = []
    assert resume(explorer.tasks, "llm", JsonLines(path), stream(explorer), ticks.append) == unbroken
    assert explorer.asked == [task.id for task in explorer.tasks if task.id not in kept]
    assert ticks == [stop_after] + [1] * (8 - stop_after)
    explorer.asked.clear()
    assert resume(explorer.tasks, "llm", JsonLines(path), stream(explorer), ticks.append) == unbroken
    assert explorer.asked == []


def test_a_torn_line_is_explored_again(tmp_path, explorer):
    path = tmp_path / "traces.jsonl"
    unbroken = resume(explorer.tasks, "llm", JsonLines(path), stream(explorer), lambda _: None)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    explorer.asked.clear()
    assert resume(explorer.tasks, "llm", JsonLines(path), stream(explorer), lambda _: None) == unbroken
    assert len(explorer.asked) == 1
    log = JsonLines(path)
    assert len(list(log)) == 8
    assert log.dropped == 1


def test_whom_the_policy_failed_is_explored_for_again(tmp_path, explorer):
    unbroken = explorer.run(explorer.tasks)
    log = JsonLines(tmp_path / "traces.jsonl")
    for trace in unbroken[:3]:
        log.append({"system": "llm", "trace": replace(trace, stop=Stop.FAILED, error="no server").to_json()})
    assert resume(explorer.tasks, "llm", log, stream(explorer), lambda _: None) == unbroken
    assert len(explorer.asked) == 8


def test_systems_share_a_log_without_mixing(tmp_path, explorer):
    log = JsonLines(tmp_path / "traces.jsonl")
    resume(explorer.tasks[:3], "rerank", log, stream(explorer), lambda _: None)
    explorer.asked.clear()
    found = resume(explorer.tasks, "llm", log, stream(explorer), lambda _: None)
    assert len(explorer.asked) == len(found) == 8
    assert [trace.task for trace in found] == [task.id for task in explorer.tasks]


def test_nothing_missing_asks_for_nothing(tmp_path):
    log = JsonLines(tmp_path / "traces.jsonl")
    assert resume([], "llm", log, lambda tasks: pytest.fail("explored"), lambda _: None) == []
    assert not log.path.exists()
