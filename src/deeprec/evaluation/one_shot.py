"""A language model that is asked once: it ranks given candidates, or writes titles from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from deeprec.retrieval.retriever import Hit, Retriever, queries_of

CANDIDATES = 20

Similarity = Callable[[Sequence[str]], NDArray[np.float32]]
"""Of each of N texts to each title of the catalogue (N, I)."""

_Answer = tuple[tuple[Line, ...], tuple[Fault, ...]]
_STOPS = {
    Finish.END: Stop.END_OF_TEXT,
    Finish.NO_ROOM: Stop.CONTEXT_LIMIT,
    Finish.FILTERED: Stop.FILTERED,
    Finish.UNEXPLAINED: Stop.UNEXPLAINED,
    Finish.FAILED: Stop.FAILED,
}


@dataclass
class _Question:
    """A prompt that ends with `ONE_SHOT_START`, and what the policy writes."""

    task: Task
    prompt: str
    read: Callable[[str, bool], _Answer]  # of the text up to the answer's end, and of whether that end is there
    turns: tuple[Turn, ...] = ()
    constraint: Constraint | None = None
    context: tuple[int, ...] = ()
    room: int = 0  # new tokens at most
    chunks: list[Chunk] = field(default_factory=list)


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

    def question(task: Task, hits: Sequence[Hit]) -> _Question:
        turn, offered = Turn("", "", tuple(hits)), [hit.item for hit in hits]

        def read(body: str, closed: bool) -> _Answer:
            # An answer that is cut off is none, as in an exploration; its last line may name another item.
            if not closed:
                return (), (Fault.NO_ANSWER,)
            titles, faults = protocol.parse_lines(body, answer_size=config.answer_size)
            lines = resolve_lines(titles, catalog, offered, task.excluded)
            return lines, (*faults, *(line.fault for line in lines if line.fault is not None))

        shown = item_lines(catalog, task.history[-config.history :])
        prompt = protocol.rerank_prompt(shown, item_lines(catalog, offered), answer_size=config.answer_size)
        return _Question(task, prompt, read, (turn,), constraint_of(catalog, [turn], config, begun=ONE_SHOT_START))

    def questions(batch: Sequence[Task]) -> Iterable[_Question]:
        return map(question, batch, retriever.retrieve(queries_of(batch), candidates))

    yield from _ask(policy, questions, catalog, tasks, config)


def recall_titles(
    policy: Policy, similarity: Similarity, catalog: Catalog, tasks: Sequence[Task], config: ExploreConfig
) -> Iterator[tuple[int, Trace]]:
    """No tool and no candidates: the policy writes titles from memory, and each becomes an item of the catalogue.

    A title that is in the catalogue is that item, any other the item whose title's vector is nearest (the grounding of
    BIGRec; Bao et al., 2023), never an excluded one or that of an earlier line. Whole lines count also where the answer
    has no end. A trace has no turn.
    """

    def question(task: Task) -> _Question:
        def read(body: str, closed: bool) -> _Answer:
            whole = body if closed else body.rpartition("\n")[0]
            written, faults = protocol.parse_lines(whole, answer_size=config.answer_size)
            titles, taken, lines = written[: config.answer_size], set(task.excluded), []
            for title, scores_I in zip(titles, similarity(titles) if titles else (), strict=True):
                item = catalog.resolve(title).item
                if item is None or item in taken:
                    scores_I[list(taken)] = -np.inf
                    item = ItemIdx(int(scores_I.argmax()))
                taken.add(item)
                lines.append(Line(title, item, False, None))
            return tuple(lines), faults if closed else (*faults, Fault.NO_ANSWER)

        shown = item_lines(catalog, task.history[-config.history :])
        size, excludes = config.answer_size, task.exclude_history
        return _Question(task, protocol.titles_prompt(shown, answer_size=size, exclude_history=excludes), read)

    yield from _ask(policy, partial(map, question), catalog, tasks, config)


_Questions = Callable[[Sequence[Task]], Iterable[_Question]]


def _ask(
    policy: Policy, questions: _Questions, catalog: Catalog, tasks: Sequence[Task], config: ExploreConfig
) -> Iterator[tuple[int, Trace]]:
    """Each question is answered by one segment, or by none where its context has no room left."""
    limit = limits_of(config, catalog)["segment_tokens"]
    for start in range(0, len(tasks), config.batch_size):
        batch = dict(enumerate(questions(tasks[start : start + config.batch_size]), start))
        asked = {f"one-shot:{position}": question for position, question in batch.items()}
        requests = []
        for key, question in asked.items():
            question.context = tuple(policy.encode(question.prompt, first=True))
            question.room = min(limit, config.context_tokens - len(question.context))
            if question.room > 0:
                given = (key, question.context, (END_ANSWER,), question.room)
                requests.append(Request(*given, constraint=question.constraint))
            else:
                question.chunks.append(Chunk(key, (), (), Finish.NO_ROOM))
        try:
            policy.submit(requests)
            while chunks := policy.step():
                for chunk in chunks:
                    asked[chunk.key].chunks.append(chunk)
        finally:
            policy.release(list(asked))
        for position, question in batch.items():
            yield position, _trace(policy, question, question.room < limit, config.answer_size)


def _trace(policy: Policy, question: _Question, cut_short: bool, answer_size: int) -> Trace:
    """`cut_short` says whether the context has less room than a segment may take."""
    chunks, task = question.chunks, question.task
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    logprobs = tuple(value for chunk in chunks for value in chunk.logprobs)
    text = policy.decode([*policy.encode(ONE_SHOT_START), *tokens])  # some decoders drop a space at the very beginning
    body, closed, _ = text.partition(END_ANSWER)
    answer, faults = question.read(body, bool(closed))
    finish = chunks[-1].finish or Finish.LENGTH
    if finish is Finish.LENGTH and cut_short:
        finish = Finish.NO_ROOM
    used = [chunk.usage for chunk in chunks if chunk.usage is not None]
    asked = Segment(Author.ENVIRONMENT, question.context, (), question.prompt)
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
        answer_size=answer_size,
        error=chunks[-1].error,
        usage=sum(used, Usage()) if used else None,
    )
