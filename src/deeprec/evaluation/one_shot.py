"""What exploration is compared with: a language model that is asked once, and lists that are fused by rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.evaluation.evaluate import rankings_of
from deeprec.explore import protocol
from deeprec.explore.environment import constraint_of, item_lines, resolve_lines, segment_tokens_of
from deeprec.explore.policy import Chunk, Constraint, Finish, Policy, Request, Usage
from deeprec.explore.protocol import END_ANSWER, ONE_SHOT_START, Fault
from deeprec.explore.trace import Author, Line, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Retriever, queries_of

CANDIDATES = 20
_FUSED = 100
"""Items of each list that is fused."""
_DAMPING = 60
"""Of reciprocal-rank fusion, as in its source."""

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors (N, E) of unit length."""

_Read = Callable[[str, bool], tuple[tuple[Line, ...], tuple[Fault, ...]]]
"""Lines and faults of what the policy wrote up to the end of the answer, and of whether that end was there."""

_STOPS = {Finish.END: Stop.END_OF_TEXT, Finish.NO_ROOM: Stop.CONTEXT_LIMIT, Finish.FAILED: Stop.FAILED}


def fused(
    retriever: Retriever, tasks: Sequence[Task], traces: Sequence[Trace], k: int, preference_weight: float
) -> list[list[ItemIdx]]:
    """The best `k` items by reciprocal-rank fusion (Cormack et al., SIGIR 2009) of what each trace asks for, each time
    of the whole catalogue but the history. Of equals the first found comes first."""
    asking = [task for task, trace in zip(tasks, traces, strict=True) for _ in trace.turns]
    words = iter([turn.preference for trace in traces for turn in trace.turns])  # asked for in this order
    lists = iter(rankings_of(retriever, asking, _FUSED, lambda _: next(words), preference_weight))
    rankings = []
    for trace in traces:
        scores: defaultdict[ItemIdx, float] = defaultdict(float)
        for ranking in islice(lists, len(trace.turns)):
            for position, item in enumerate(ranking, start=1):
                scores[item] += 1 / (_DAMPING + position)
        rankings.append(sorted(scores, key=scores.__getitem__, reverse=True)[:k])
    return rankings


def rerank(
    policy: Policy,
    retriever: Retriever,
    catalog: Catalog,
    tasks: Sequence[Task],
    config: ExploreConfig,
    candidates: int = CANDIDATES,
) -> Iterator[tuple[int, Trace]]:
    """One-shot reranking: the policy sees the history and the retriever's best items, and ranks them.

    With `config.answer = "pool"` it can write nothing but their titles. A trace has one turn without a preference,
    which holds the candidates. Yields `(place of the task, trace)`.
    """
    size, room = config.answer_size, segment_tokens_of(config, catalog)

    def read_of(task: Task, turn: Turn) -> _Read:
        def read(body: str, closed: bool) -> tuple[tuple[Line, ...], tuple[Fault, ...]]:
            # An answer that was cut off is none, as in an exploration; its last line may name another item.
            titles, faults = protocol.parse_lines(body, answer_size=size) if closed else ((), (Fault.NO_ANSWER,))
            lines = resolve_lines(titles, catalog, [hit.item for hit in turn.hits], task.history)
            return lines, (*faults, *(line.fault for line in lines if line.fault is not None))

        return read

    for start in range(0, len(tasks), config.batch_size):
        batch = tasks[start : start + config.batch_size]
        queries = queries_of(batch)
        turns = [Turn("", "", tuple(hits)) for hits in retriever.retrieve(queries, candidates)]
        prompts = [
            protocol.rerank_prompt(
                item_lines(catalog, task.history[-config.history :]),
                item_lines(catalog, [hit.item for hit in turn.hits]),
                answer_size=size,
            )
            for task, turn in zip(batch, turns, strict=True)
        ]
        reads = list(map(read_of, batch, turns))
        held = [constraint_of(catalog, [turn], config, begun=ONE_SHOT_START) for turn in turns]
        traces = _one_shot(policy, batch, prompts, [(turn,) for turn in turns], reads, held, config, room, start)
        yield from enumerate(traces, start)


def recall_titles(
    policy: Policy,
    encode: Encode,
    titles_IE: NDArray[np.float32],
    catalog: Catalog,
    tasks: Sequence[Task],
    config: ExploreConfig,
) -> Iterator[tuple[int, Trace]]:
    """No tool and no candidates: the policy writes titles from memory, and each becomes an item of the catalogue.

    A title that is in the catalogue is that item, any other the item whose title's vector is nearest (as BIGRec grounds
    them; Bao et al., 2023); the history, and items of earlier lines, are passed over. Whole lines count also where the
    answer has no end. A trace has no turn.

    Args:
        titles_IE: vectors of the catalogue's titles, by the same encoder.
    """
    size, room = config.answer_size, segment_tokens_of(config, catalog)

    def read_of(task: Task) -> _Read:
        def read(body: str, closed: bool) -> tuple[tuple[Line, ...], tuple[Fault, ...]]:
            whole = body if closed else body.rpartition("\n")[0]
            written, faults = protocol.parse_lines(whole, answer_size=size)
            lines = _nearest(written[:size], task, catalog, encode, titles_IE)
            return lines, faults if closed else (*faults, Fault.NO_ANSWER)

        return read

    for start in range(0, len(tasks), config.batch_size):
        batch = tasks[start : start + config.batch_size]
        prompts = [
            protocol.titles_prompt(item_lines(catalog, task.history[-config.history :]), answer_size=size)
            for task in batch
        ]
        reads, none = list(map(read_of, batch)), [None] * len(batch)
        traces = _one_shot(policy, batch, prompts, [()] * len(batch), reads, none, config, room, start)
        yield from enumerate(traces, start)


def _nearest(
    titles: Sequence[str], task: Task, catalog: Catalog, encode: Encode, titles_IE: NDArray[np.float32]
) -> tuple[Line, ...]:
    if not titles:
        return ()
    taken = set(task.history)
    lines = []
    for title, scores_I in zip(titles, encode(titles) @ titles_IE.T, strict=True):
        item = catalog.resolve(title).item
        if item is None or item in taken:
            scores_I[list(taken)] = -np.inf
            item = ItemIdx(int(scores_I.argmax()))
        taken.add(item)
        lines.append(Line(title, item, False, None))
    return tuple(lines)


def _one_shot(
    policy: Policy,
    tasks: Sequence[Task],
    prompts: Sequence[str],
    turns: Sequence[tuple[Turn, ...]],
    reads: Sequence[_Read],
    held: Sequence[Constraint | None],
    config: ExploreConfig,
    room: int,
    start: int,
) -> list[Trace]:
    """A batch of prompts that end with `ONE_SHOT_START`, each answered by one segment of at most `room` tokens, or by
    none where the context has no room left; `start` numbers the first."""
    contexts = [policy.encode(prompt, first=True) for prompt in prompts]
    keys = [f"one-shot:{start + position}" for position in range(len(tasks))]
    rooms = [min(room, config.context_tokens - len(context)) for context in contexts]
    written: dict[str, list[Chunk]] = {
        key: [] if left > 0 else [Chunk(key, (), (), Finish.NO_ROOM)] for key, left in zip(keys, rooms, strict=True)
    }
    try:
        policy.submit(
            [
                Request(key, tuple(context), (END_ANSWER,), left, constraint=constraint)
                for key, context, left, constraint in zip(keys, contexts, rooms, held, strict=True)
                if left > 0
            ]
        )
        while chunks := policy.step():
            for chunk in chunks:
                written[chunk.key].append(chunk)
    finally:
        policy.release(keys)
    traces = []
    for position, (task, key) in enumerate(zip(tasks, keys, strict=True)):
        tokens = tuple(token for chunk in written[key] for token in chunk.tokens)
        logprobs = tuple(value for chunk in written[key] for value in chunk.logprobs)
        asked = Segment(Author.ENVIRONMENT, tuple(contexts[position]), (), prompts[position])
        # Behind its beginning: some decoders drop a space at the very beginning.
        whole = policy.decode([*policy.encode(ONE_SHOT_START), *tokens])
        said = Segment(Author.POLICY, tokens, logprobs, whole.removeprefix(ONE_SHOT_START))
        body, closed, _ = whole.partition(END_ANSWER)
        answer, faults = reads[position](body, bool(closed))
        last = written[key][-1]
        finish = last.finish or Finish.LENGTH
        if finish is Finish.LENGTH and rooms[position] < room:
            finish = Finish.NO_ROOM
        used = [chunk.usage for chunk in written[key] if chunk.usage is not None]
        traces.append(
            Trace(
                task=task.id,
                user=task.user,
                history=task.history,
                segments=(asked, said),
                turns=turns[position],
                thought="",
                answer=answer,
                fallback=(),
                stop=Stop.ANSWERED if closed else _STOPS.get(finish, Stop.SEGMENT_LIMIT),
                faults=faults,
                answer_size=config.answer_size,
                error=last.error,
                usage=sum(used, Usage()) if used else None,
            )
        )
    return traces
