"""A language model that is asked once: it ranks given candidates, or writes titles from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx
from deeprec.data.dataset import Task
from deeprec.explore import protocol
from deeprec.explore.environment import constraint_of, item_lines, resolve_lines
from deeprec.explore.policy import Chunk, Constraint, Finish, Policy, Request, Usage
from deeprec.explore.protocol import END_ANSWER, ONE_SHOT_START, Fault
from deeprec.explore.settings import limits_of
from deeprec.explore.trace import Author, Line, Segment, Stop, Trace, Turn
from deeprec.retrieval.retriever import Retriever, queries_of

CANDIDATES = 20

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors (N, E) of unit length."""

_STOPS = {Finish.END: Stop.END_OF_TEXT, Finish.NO_ROOM: Stop.CONTEXT_LIMIT, Finish.FAILED: Stop.FAILED}


@dataclass(frozen=True)
class _Question:
    """A prompt that ends with `ONE_SHOT_START`.

    Attributes:
        read: lines and faults of the text up to the end of the answer, and of whether that end is there.
    """

    task: Task
    prompt: str
    read: Callable[[str, bool], tuple[tuple[Line, ...], tuple[Fault, ...]]]
    turns: tuple[Turn, ...] = ()
    constraint: Constraint | None = None


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
    which holds the candidates. Yields `(position of the task, trace)`.
    """

    def question(task: Task, turn: Turn) -> _Question:
        def read(body: str, closed: bool) -> tuple[tuple[Line, ...], tuple[Fault, ...]]:
            # An answer that is cut off is none, as in an exploration; its last line may name another item.
            titles, faults = (
                protocol.parse_lines(body, answer_size=config.answer_size) if closed else ((), (Fault.NO_ANSWER,))
            )
            lines = resolve_lines(titles, catalog, [hit.item for hit in turn.hits], task.history)
            return lines, (*faults, *(line.fault for line in lines if line.fault is not None))

        shown, offered = task.history[-config.history :], [hit.item for hit in turn.hits]
        prompt = protocol.rerank_prompt(
            item_lines(catalog, shown), item_lines(catalog, offered), answer_size=config.answer_size
        )
        return _Question(task, prompt, read, (turn,), constraint_of(catalog, [turn], config, begun=ONE_SHOT_START))

    for start in range(0, len(tasks), config.batch_size):
        batch = tasks[start : start + config.batch_size]
        turns = [Turn("", "", tuple(hits)) for hits in retriever.retrieve(queries_of(batch), candidates)]
        yield from _ask(policy, list(map(question, batch, turns)), catalog, config, start)


def recall_titles(
    policy: Policy,
    encode: Encode,
    titles_IE: NDArray[np.float32],
    catalog: Catalog,
    tasks: Sequence[Task],
    config: ExploreConfig,
) -> Iterator[tuple[int, Trace]]:
    """No tool and no candidates: the policy writes titles from memory, and each becomes an item of the catalogue.

    A title that is in the catalogue is that item, any other the item whose title's vector is nearest (the grounding of
    BIGRec; Bao et al., 2023), never one of the history or of an earlier line. Whole lines count also where the answer
    has no end. A trace has no turn.

    Args:
        titles_IE: vectors of the catalogue's titles, by the same encoder.
    """

    def question(task: Task) -> _Question:
        def read(body: str, closed: bool) -> tuple[tuple[Line, ...], tuple[Fault, ...]]:
            whole = body if closed else body.rpartition("\n")[0]
            written, faults = protocol.parse_lines(whole, answer_size=config.answer_size)
            lines = _nearest(written[: config.answer_size], task, catalog, encode, titles_IE)
            return lines, faults if closed else (*faults, Fault.NO_ANSWER)

        shown = item_lines(catalog, task.history[-config.history :])
        return _Question(task, protocol.titles_prompt(shown, answer_size=config.answer_size), read)

    for start in range(0, len(tasks), config.batch_size):
        batch = tasks[start : start + config.batch_size]
        yield from _ask(policy, list(map(question, batch)), catalog, config, start)


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


def _ask(
    policy: Policy, questions: Sequence[_Question], catalog: Catalog, config: ExploreConfig, start: int
) -> Iterator[tuple[int, Trace]]:
    """Each question is answered by one segment, or by none where its context has no room left. `start` numbers the
    first of the batch."""
    contexts = [policy.encode(question.prompt, first=True) for question in questions]
    keys = [f"one-shot:{start + position}" for position in range(len(questions))]
    limit = limits_of(config, catalog)["segment_tokens"]
    rooms = [min(limit, config.context_tokens - len(context)) for context in contexts]
    written: dict[str, list[Chunk]] = {
        key: [] if room > 0 else [Chunk(key, (), (), Finish.NO_ROOM)] for key, room in zip(keys, rooms, strict=True)
    }
    try:
        policy.submit(
            [
                Request(key, tuple(context), (END_ANSWER,), room, constraint=question.constraint)
                for key, context, room, question in zip(keys, contexts, rooms, questions, strict=True)
                if room > 0
            ]
        )
        while chunks := policy.step():
            for chunk in chunks:
                written[chunk.key].append(chunk)
    finally:
        policy.release(keys)
    for position, (question, key) in enumerate(zip(questions, keys, strict=True)):
        cut_short = rooms[position] < limit
        yield start + position, _trace(policy, question, contexts[position], written[key], cut_short, config)


def _trace(
    policy: Policy,
    question: _Question,
    context: Sequence[int],
    chunks: Sequence[Chunk],
    cut_short: bool,
    config: ExploreConfig,
) -> Trace:
    """`cut_short` says whether the context has less room than a segment may take."""
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    logprobs = tuple(value for chunk in chunks for value in chunk.logprobs)
    # Decoded behind its beginning: some decoders drop a space at the very beginning.
    text = policy.decode([*policy.encode(ONE_SHOT_START), *tokens])
    body, closed, _ = text.partition(END_ANSWER)
    answer, faults = question.read(body, bool(closed))
    finish = chunks[-1].finish or Finish.LENGTH
    if finish is Finish.LENGTH and cut_short:
        finish = Finish.NO_ROOM
    used = [chunk.usage for chunk in chunks if chunk.usage is not None]
    task, asked = question.task, Segment(Author.ENVIRONMENT, tuple(context), (), question.prompt)
    return Trace(
        task=task.id,
        user=task.user,
        history=task.history,
        segments=(asked, Segment(Author.POLICY, tokens, logprobs, text.removeprefix(ONE_SHOT_START))),
        turns=question.turns,
        thought="",
        answer=answer,
        fallback=(),
        stop=Stop.ANSWERED if closed else _STOPS.get(finish, Stop.SEGMENT_LIMIT),
        faults=faults,
        answer_size=config.answer_size,
        error=chunks[-1].error,
        usage=sum(used, Usage()) if used else None,
    )
