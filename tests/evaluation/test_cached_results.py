"""Traces that survive an interruption, what is kept of them, and files that are damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deeprec.config import EvalConfig, ExploreConfig
from deeprec.data.catalog import ItemIdx, UserId
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.evaluation.cached_results import CachedResult, Explorations, TraceLog, Users
from deeprec.evaluation.oracle_ablation import OracleAblation
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import Fault
from deeprec.explore.trace import Author, Line, Segment, Stop, Trace, Turn
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.retrieval.baselines import PopularityRetriever
from deeprec.retrieval.retriever import Hit
from deeprec.runs import JsonLines
from toys import toy_dataset


def items(*numbers):
    return tuple(map(ItemIdx, numbers))


def trace(user, *, answer=(), turns=(), fallback=(), faults=(), stop=Stop.ANSWERED, written=0):
    """`turns` are lists of items."""
    task = Task(f"test:{user}", UserId(user), items(0))
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


TRACES = [
    trace("a", answer=(1, 2, 3), turns=[(1, 2, 3)], written=10),
    # Garbage after two calls: a raw miss.
    trace("b", turns=[(1, 2), (2, 4)], faults=(Fault.NO_ANSWER,), stop=Stop.SEGMENT_LIMIT, written=30),
    # One line of three.
    trace("c", answer=(1,), turns=[(3, 5)], faults=(Fault.LINES,), written=20),
    # No call at all: the retriever's own list.
    trace("d", fallback=(4, 5, 6), faults=(Fault.NO_CALL,), stop=Stop.END_OF_TEXT),
    # Two titles from memory, of three: nothing fills them up.
    trace("e", answer=(9, 8), faults=(Fault.LINES,)),
]


def test_what_is_kept_of_explorations():
    kept = Explorations.of(TRACES, items(2, 4, 3, 9, 8), calls=True, oracle_ablation=None)
    assert kept.raw == (1, -1, -1, -1, 1)
    assert kept.pooled == (1, 2, 0, -1, -1)
    assert kept.found == (1, 2, 1, 0, 0)
    assert kept.retrieved == ((3,), (2, 2), (2,), (), ())
    assert kept.tokens == (10, 30, 20, 0, 0)  # the prompt's 100 are not the policy's
    assert kept.well_formed == (True, False, False, False, False)
    assert kept.fallback == (False, True, True, True, False)
    assert kept.stops == {"answered": 3, "segment limit": 1, "end of text": 1}
    assert Explorations.of(TRACES, items(2, 4, 3, 9, 8), calls=False, oracle_ablation=None).retrieved == ((),) * 5


def test_results_and_users_survive_their_files(tmp_path):
    ablation = OracleAblation((1,) * 5, (0,) * 5, (2,) * 5, (-1,) * 5, (0,) * 5)
    explorations = Explorations.of(TRACES, items(2, 4, 3, 9, 8), True, ablation)
    result = CachedResult(
        "key", "plan", "print", tuple("abcde"), (0,) * 5, ((1, 2), (), (3,), (4,), (5,)), 0.5, "", {}, explorations
    )
    users = Users.of(toy_dataset(n_users=4), EvalConfig())
    assert sum(users.item_counts) == 4 * 10
    assert users.histories == (11,) * 4
    for record in (result, replace(result, explorations=None, seconds_per_user=None), users):
        record.save(tmp_path / "of" / "record.json")
        assert type(record).load(tmp_path / "of" / "record.json") == record
    assert Users.load(tmp_path / "absent.json") is None


def test_a_damaged_result_is_named(tmp_path):
    path = tmp_path / "part.json"
    for text in (json.dumps({"key": "x"})[:-3], json.dumps({"key": "x", "explorations": None}), "[]"):
        path.write_text(text)
        for kind in (CachedResult, Users):
            with pytest.raises(DeepRecError, match=r"part\.json is damaged, or of another version"):
                kind.load(path)


# Resuming


@pytest.fixture
def explorer():
    """The scripted explorer over popularity; `asked` lists the users it explored for."""
    dataset = toy_dataset(n_users=8)
    retriever = PopularityRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    config = ExploreConfig(answer_size=3, items_per_call=4, batch_size=3)
    explorer = Explorer(ScriptedPolicy(3), retriever, dataset.catalog, config)
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


def explored(path, explorer, tick=lambda done: None):
    return TraceLog(path).explore(explorer.tasks, stream(explorer), tick)


@pytest.mark.parametrize("stop_after", [0, 1, 5, 7])
def test_interrupted_and_resumed_gives_the_same_traces(tmp_path, explorer, stop_after):
    unbroken = explorer.run(explorer.tasks)
    path = tmp_path / "traces.jsonl"
    with pytest.raises(KeyboardInterrupt):
        TraceLog(path).explore(explorer.tasks, stream(explorer, stop_after), lambda done: None)
    kept = {entry["trace"]["task"] for entry in JsonLines(path) if "trace" in entry}
    assert len(kept) == stop_after
    explorer.asked.clear()
    ticks = []
    assert explored(path, explorer, ticks.append) == unbroken
    assert explorer.asked == [task.id for task in explorer.tasks if task.id not in kept]
    assert ticks == list(range(stop_after, 9))
    explorer.asked.clear()
    assert explored(path, explorer) == unbroken
    assert explorer.asked == []


def test_seconds_are_those_of_all_sessions(tmp_path, explorer):
    path = tmp_path / "traces.jsonl"
    assert TraceLog(path).seconds_per_user is None
    log = JsonLines(path)
    log.append({"seconds": 6.0, "explored": 2})
    log.append({"seconds": 1.0, "explored": 5})
    assert TraceLog(path).seconds_per_user == 1.0
    found = TraceLog(path)
    found.explore(explorer.tasks, stream(explorer), lambda done: None)
    assert 7 / 15 < found.seconds_per_user < 1
    assert TraceLog(path).seconds_per_user == pytest.approx(found.seconds_per_user)


def test_a_log_without_a_file_keeps_nothing_behind(explorer):
    unbroken = explorer.run(explorer.tasks)
    assert explored(None, explorer) == explored(None, explorer) == unbroken
    assert len(explorer.asked) == 16


def test_a_torn_line_is_explored_again(tmp_path, explorer):
    path = tmp_path / "traces.jsonl"
    unbroken = explored(path, explorer)
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if b"trace" in line]
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    explorer.asked.clear()
    assert explored(path, explorer) == unbroken
    assert len(explorer.asked) == 1
    log = JsonLines(path)
    assert len(list(log)) == 8 + 1
    assert log.dropped == 1


def test_failed_explorations_are_an_error_and_explored_again(tmp_path, explorer):
    unbroken, path = explorer.run(explorer.tasks), tmp_path / "traces.jsonl"
    failed = [replace(each, stop=Stop.FAILED, error="no server") for each in unbroken[:3]] + unbroken[3:]
    with pytest.raises(DeepRecError, match=r"3 of 8 explorations failed \(first: no server\)"):
        TraceLog(path).explore(explorer.tasks, lambda tasks: enumerate(failed), lambda done: None)
    assert explored(path, explorer) == unbroken
    assert explorer.asked == [task.id for task in explorer.tasks[:3]]


def test_nothing_missing_asks_for_nothing(tmp_path):
    path = tmp_path / "traces.jsonl"
    assert TraceLog(path).explore([], lambda tasks: pytest.fail("explored"), lambda done: None) == []
    assert not path.exists()
