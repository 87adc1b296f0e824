"""The language model without exploration: one look at the TRM's best items, one ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Task
from deeprec.explore import protocol
from deeprec.explore.environment import item_lines, resolve_lines
from deeprec.explore.protocol import END_ANSWER, Fault
from deeprec.explore.trace import Author, Segment, Stop, Trace, Turn
from deeprec.policies.policy import Chunk, Finish, Policy, Request
from deeprec.trm.retriever import Query, Retriever

CANDIDATES = 20


def rerank(
    policy: Policy, retriever: Retriever, catalog: Catalog, tasks: Sequence[Task], config: ExploreConfig
) -> Iterator[tuple[int, Trace]]:
    """One-shot reranking: the policy sees the history and the retriever's top 20, and ranks them.

    A trace has one turn without a preference, which holds the candidates. Yields `(place of the task, trace)`.
    """
    for start in range(0, len(tasks), config.batch_size):
        batch = tasks[start : start + config.batch_size]
        queries = [Query(task.history, exclude=frozenset(task.history)) for task in batch]
        turns = [Turn("", "", tuple(hits)) for hits in retriever.retrieve(queries, CANDIDATES)]
        prompts = []
        for task, turn in zip(batch, turns, strict=True):
            history = item_lines(catalog, task.history[-config.history :])
            candidates = item_lines(catalog, [hit.item for hit in turn.hits])
            prompts.append(protocol.rerank_prompt(history, candidates, answer_size=config.answer_size))
        contexts = [policy.encode(prompt, first=True) for prompt in prompts]
        keys = [f"rerank:{start + place}" for place in range(len(batch))]
        policy.submit(
            [
                Request(key, tuple(context), (END_ANSWER,), config.segment_tokens)
                for key, context in zip(keys, contexts, strict=True)
            ]
        )
        written: dict[str, list[Chunk]] = {key: [] for key in keys}
        try:
            while chunks := policy.step():
                for chunk in chunks:
                    written[chunk.key].append(chunk)
        finally:
            policy.release(keys)
        for place, (task, turn, key) in enumerate(zip(batch, turns, keys, strict=True)):
            asked = Segment(Author.ENVIRONMENT, tuple(contexts[place]), (), prompts[place])
            tokens = tuple(token for chunk in written[key] for token in chunk.tokens)
            logprobs = tuple(value for chunk in written[key] for value in chunk.logprobs)
            said = Segment(Author.POLICY, tokens, logprobs, policy.decode(tokens))
            yield start + place, _trace(task, turn, (asked, said), written[key][-1], catalog, config)


def _trace(
    task: Task,
    turn: Turn,
    segments: tuple[Segment, Segment],
    last: Chunk,
    catalog: Catalog,
    config: ExploreConfig,
) -> Trace:
    body, closed, _ = f"{protocol.RERANK_START}{segments[1].text}".partition(END_ANSWER)
    # An answer that was cut off is none, as in an exploration; its last line may name another item.
    titles, faults = protocol.parse_lines(body, answer_size=config.answer_size) if closed else ((), (Fault.NO_ANSWER,))
    lines = resolve_lines(titles, catalog, [hit.item for hit in turn.hits], task.history)
    stops = {Finish.END: Stop.END_OF_TEXT, Finish.NO_ROOM: Stop.CONTEXT_LIMIT, Finish.FAILED: Stop.FAILED}
    stop = Stop.ANSWERED if closed else stops.get(last.finish or Finish.LENGTH, Stop.SEGMENT_LIMIT)
    return Trace(
        task=task.id,
        user=task.user,
        history=task.history,
        segments=segments,
        turns=(turn,),
        thought="",
        answer=lines,
        spare=(),
        stop=stop,
        faults=(*faults, *(line.fault for line in lines if line.fault is not None)),
        answer_size=config.answer_size,
        error=last.error,
    )
