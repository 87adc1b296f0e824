"""For tests, ours and yours: contracts that implementations of our interfaces inherit.

A contract is a class of tests. Inherit it under a name that pytest collects, define the fixtures it names, and every
method runs against your implementation:

    class TestMyRetriever(RetrieverContract):
        @pytest.fixture
        def n_items(self) -> int: ...

        @pytest.fixture
        def retriever(self, n_items: int) -> Retriever: ...

The module itself needs no pytest. `pytest.register_assert_rewrite("deeprec.testing")` in a conftest, before the first
import, makes failures show their values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deeprec.data.catalog import ItemIdx
from deeprec.data.item_set import ItemSet
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Constraint, Finish, Policy, PromptDefaults, Request
from deeprec.explore.protocol import ANSWER, END_ANSWER
from deeprec.retrieval.retriever import Hit, Query, Retriever


class RetrieverContract:
    """What every `Retriever` must do. Fixtures: `retriever`, and `n_items`, the size of its catalogue (at least 8)."""

    def test_it_declares_what_it_offers(self, retriever: Retriever, n_items: int) -> None:
        assert Retriever in type(retriever).__mro__, "subclass deeprec.retrieval.retriever.Retriever"
        assert retriever.catalog is None or len(retriever.catalog) == n_items
        assert retriever.preference_weight is None or 0 <= retriever.preference_weight <= 1

    def test_gives_k_hits_unless_the_catalogue_is_exhausted(self, retriever: Retriever, n_items: int) -> None:
        queries = _queries(n_items)
        for k in (1, 5, n_items, n_items + 7):
            counts = [len(hits) for hits in retriever.retrieve(queries, k)]
            wanted = [min(k, len(_allowed(query, n_items))) for query in queries]
            assert counts == wanted, f"k={k}: {counts} hits instead of {wanted}"

    def test_gives_the_best_first(self, retriever: Retriever, n_items: int) -> None:
        for hits in retriever.retrieve(_queries(n_items), n_items):
            scores = [hit.score for hit in hits]
            assert not any(math.isnan(score) for score in scores)
            assert scores == sorted(scores, reverse=True)

    def test_prefers_what_it_scores_best(self, retriever: Retriever, n_items: int) -> None:
        queries = _queries(n_items)
        for few, everything in zip(retriever.retrieve(queries, 3), retriever.retrieve(queries, n_items), strict=True):
            assert [h.item for h in few] == [h.item for h in everything[:3]]

    def test_gives_nothing_excluded_and_nothing_twice(self, retriever: Retriever, n_items: int) -> None:
        queries = _queries(n_items)
        for query, hits in zip(queries, retriever.retrieve(queries, n_items), strict=True):
            items = {hit.item for hit in hits}
            assert items <= _allowed(query, n_items)
            assert len(items) == len(hits)

    def test_gives_the_best_of_what_is_included(self, retriever: Retriever, n_items: int) -> None:
        """As if it had ranked everything and then left out the others."""
        history, some = _items(2, 5), frozenset(_items(*range(1, n_items, 2)))
        everything = retriever.retrieve([Query(history, "drama")], n_items)[0]
        hits, fewer, none = retriever.retrieve(
            [
                Query(history, "drama", include=some),
                Query(history, "drama", frozenset(_items(1, 2)), include=some),
                Query(history, "drama", include=()),
            ],
            n_items,
        )
        _assert_same(hits, [hit for hit in everything if hit.item in some])
        assert [hit.item for hit in fewer] == [hit.item for hit in hits if hit.item != 1]
        assert none == []

    def test_gives_valid_plain_numbers(self, retriever: Retriever, n_items: int) -> None:
        for hit in (hit for hits in retriever.retrieve(_queries(n_items), 5) for hit in hits):
            assert isinstance(hit.item, int), f"{type(hit.item)} is no int: it can't be saved as JSON"
            assert isinstance(hit.score, float), f"{type(hit.score)} is no float: it can't be saved as JSON"
            assert 0 <= hit.item < n_items

    def test_an_answer_does_not_depend_on_the_batch(self, retriever: Retriever, n_items: int) -> None:
        queries = _queries(n_items)
        together = retriever.retrieve(queries, 5)
        backwards = retriever.retrieve(queries[::-1], 5)[::-1]
        for query, hits, again in zip(queries, together, backwards, strict=True):
            _assert_same(hits, again)
            _assert_same(hits, retriever.retrieve([query], 5)[0])

    def test_is_deterministic(self, retriever: Retriever, n_items: int) -> None:
        queries = _queries(n_items)
        assert retriever.retrieve(queries, 5) == retriever.retrieve(queries, 5)

    def test_an_empty_history_is_answered(self, retriever: Retriever, n_items: int) -> None:
        assert [len(hits) for hits in retriever.retrieve([Query(()), Query((), "war films")], 4)] == [4, 4]

    def test_no_queries_no_answers(self, retriever: Retriever) -> None:
        assert retriever.retrieve([], 5) == []

    def test_any_collection_can_be_excluded(self, retriever: Retriever, n_items: int) -> None:
        history, some = _items(0, 1), _items(0, 1, 5)
        collections: list[Collection[ItemIdx]] = [frozenset(some), set(some), list(some), some, dict.fromkeys(some)]
        answers = [retriever.retrieve([Query(history, exclude=exclude)], 5)[0] for exclude in collections]
        for hits in answers:
            _assert_same(hits, answers[0])
            assert not {hit.item for hit in hits} & set(some)

    def test_any_collection_can_be_included(self, retriever: Retriever, n_items: int) -> None:
        history, some = _items(0, 1), _items(5, 0, 1, 6)
        collections: list[Collection[ItemIdx]] = [
            frozenset(some), set(some), list(some), some * 2, dict.fromkeys(some), ItemSet.of(some)
        ]  # fmt: skip
        answers = [retriever.retrieve([Query(history, include=include)], 5)[0] for include in collections]
        for hits in answers:
            _assert_same(hits, answers[0])
            assert {hit.item for hit in hits} == set(some)

    def test_the_query_is_not_changed(self, retriever: Retriever, n_items: int) -> None:
        queries = [Query(_items(0, 1, 2), "drama", set(_items(0, 1, 2))), Query(_items(3), "", list(_items(3)))]
        queries.append(Query(_items(3), "", include=list(_items(5, 4, 4))))
        before = copy.deepcopy(queries)
        retriever.retrieve(queries, 5)
        assert queries == before


class PolicyContract:
    """What every `Policy` must do.

    Fixture: `policy`, new for each test, which writes at least four tokens (and four characters) after any context if
    its limit allows.
    """

    def test_it_declares_what_it_offers(self, policy: Policy) -> None:
        assert Policy in type(policy).__mro__, "subclass deeprec.explore.policy.Policy and inherit its defaults"
        assert policy.prompt_defaults is None or isinstance(policy.prompt_defaults, PromptDefaults)
        assert isinstance(policy.context_limit, int)
        assert policy.context_limit > 0
        for offered in (policy.supports_sampling, policy.supports_constraints, policy.forkable):
            assert isinstance(offered, bool)

    def test_it_accepts_what_it_supports_and_refuses_the_rest(self, policy: Policy) -> None:
        plain = request(policy, "a", limit=2)
        constraint = Constraint(ANSWER, END_ANSWER, ("A film (1990)",), 1)
        for supported, asked in (
            (policy.supports_sampling, replace(plain, temperature=0.7, top_p=0.9, seed=1)),
            (policy.supports_constraints, replace(plain, constraint=constraint)),
        ):
            if supported:
                assert write(policy, [asked])["a"].tokens
                policy.release(["a"])
                continue
            try:
                policy.submit([asked])
            except DeepRecError:
                assert policy.step() == []
            else:
                raise AssertionError(f"the policy declares no support, but accepts {asked}")

    def test_text_survives_encoding(self, policy: Policy) -> None:
        for text in TEXTS:
            assert policy.decode(policy.encode(text)) == text
            assert policy.decode(policy.encode(text, first=True)).endswith(text)
        assert policy.encode("") == []

    def test_nothing_open_gives_nothing(self, policy: Policy) -> None:
        assert policy.step() == []
        write(policy, [request(policy, "a")])
        assert policy.step() == []

    def test_a_request_ends_with_one_finish_and_goes_on_when_asked(self, policy: Policy) -> None:
        first = request(policy, "a")
        written = write(policy, [first])["a"]
        assert written.tokens
        longer = (*first.context, *written.tokens, *policy.encode("\nAnd then?\n"))
        again = write(policy, [Request("a", longer, (), 8)])["a"]
        assert 0 < len(again.tokens) <= 8
        policy.release(["a"])
        assert policy.step() == []

    def test_a_released_key_can_be_used_again(self, policy: Policy) -> None:
        before = write(policy, [request(policy, "a")])
        policy.release(["a"])
        write(policy, [request(policy, "a", TEXTS[1])])
        policy.release(["a"])
        _assert_alike(write(policy, [request(policy, "a")]), before)

    def test_the_token_limit_is_kept(self, policy: Policy) -> None:
        for limit in (1, 3):
            written = write(policy, [request(policy, f"at most {limit}", limit=limit)])[f"at most {limit}"]
            assert written.finish is Finish.LENGTH
            assert len(written.tokens) == limit

    def test_a_stop_ends_the_segment_with_the_token_that_completes_it(self, policy: Policy) -> None:
        text = policy.decode(write(policy, [request(policy, "free")])["free"].tokens)
        policy.release(["free"])
        # A stop that the policy will write: two characters from the middle, neither of them half a character.
        positions = [position for position in range(1, len(text) - 1) if "�" not in text[position : position + 2]]
        assert positions, f"the policy wrote {text!r}: too little for this test"
        stop = text[positions[len(positions) // 2] :][:2]
        written = write(policy, [request(policy, "stopped", stops=("\0never\0", stop))])["stopped"]
        assert written.finish is Finish.STOP
        assert stop in policy.decode(written.tokens)
        assert stop not in policy.decode(written.tokens[:-1])

    def test_a_stop_in_the_context_does_not_count(self, policy: Policy) -> None:
        stop = "§ no policy writes this §"
        asked = request(policy, "a", f"It was so: {stop}", stops=(stop,))
        assert write(policy, [asked])["a"].finish is not Finish.STOP

    def test_logprobs_are_absent_or_one_a_token(self, policy: Policy) -> None:
        for chunk in write(policy, requests(policy)).values():
            assert len(chunk.logprobs) in (0, len(chunk.tokens))
            assert all(-math.inf < value <= 0 for value in chunk.logprobs)

    def test_unknown_keys_can_be_released(self, policy: Policy) -> None:
        policy.release(["nobody"])
        alone = write(policy, [request(policy, "a")])["a"]
        policy.release(["nobody", "a", "a"])
        policy.release([])
        policy.submit([request(policy, "b")])
        policy.release(["nobody"])
        _assert_alike(write(policy), {"b": alone})

    def test_a_released_request_gets_no_more_chunks(self, policy: Policy) -> None:
        policy.submit(requests(policy))
        policy.release(["b"])
        assert set(write(policy)) == {"a", "c"}
        policy.release(["a", "c"])
        policy.submit([request(policy, "a")])
        policy.release(["a"])
        assert policy.step() == []

    def test_greedy_results_do_not_depend_on_the_batch(self, policy: Policy) -> None:
        alone = self._alone(policy)
        _assert_alike(write(policy, requests(policy)), alone)

    def test_requests_are_accepted_while_others_are_open(self, policy: Policy) -> None:
        alone = self._alone(policy)
        chunks: list[Chunk] = []
        for each in requests(policy):
            policy.submit([each])
            chunks += policy.step()
        _assert_alike(_join([*chunks, *_steps(policy)]), alone)

    def test_others_go_on_when_one_is_released(self, policy: Policy) -> None:
        alone = self._alone(policy)
        a, b, c = requests(policy)
        policy.submit([a])
        policy.step()
        policy.submit([b])
        policy.release(["a"])
        policy.submit([c])
        written = write(policy)
        assert set(written) == {"b", "c"}
        _assert_alike(written, alone)

    def test_new_ones_start_while_others_wait_for_the_tool(self, policy: Policy) -> None:
        alone = self._alone(policy)
        a, b, c = requests(policy)
        written = write(policy, [a]) | write(policy, [b])
        policy.release(["a"])
        _assert_alike(written | write(policy, [c]), alone)

    def test_seconds_grow_with_what_is_written(self, policy: Policy) -> None:
        before = dict(policy.seconds)
        write(policy, [request(policy, "a")])
        assert all(policy.seconds[name] >= value for name, value in before.items())
        assert sum(policy.seconds.values()) > sum(before.values())

    def _alone(self, policy: Policy) -> dict[str, Chunk]:
        alone: dict[str, Chunk] = {}
        for each in requests(policy):
            alone |= write(policy, [each])
            policy.release([each.key])
        return alone


TEXTS = (
    "User:\n1. Toy Story (1995)\n  - categories: Animation\n\nAssistant:\n",
    "Amélie — 千と千尋の神隠し 🎬 «naïve»\n",
    "<think>\tWhat  comes next?\r\n<|begin_of_preference|>war;  drama<|end_of_preference|>\n\n",
)


def request(policy: Policy, key: str, text: str = TEXTS[0], *, stops: tuple[str, ...] = (), limit: int = 12) -> Request:
    """A greedy request to continue `text`."""
    return Request(key, tuple(policy.encode(text, first=True)), stops, limit)


def requests(policy: Policy) -> list[Request]:
    """One request for each of `TEXTS`, with keys a, b and c."""
    return [request(policy, key, text) for key, text in zip("abc", TEXTS, strict=True)]


def write(policy: Policy, requests: Sequence[Request] = ()) -> dict[str, Chunk]:
    """Submit, step until nothing is open, and return what was written: one chunk per key."""
    policy.submit(requests)
    written = _join(_steps(policy))
    assert set(written) >= {request.key for request in requests}, "a request was never finished"
    return written


def _steps(policy: Policy) -> list[Chunk]:
    chunks: list[Chunk] = []
    for _ in range(10_000):
        new = policy.step()
        if not new:
            return chunks
        chunks += new
    raise AssertionError("the policy does not finish its requests")


def _join(chunks: Sequence[Chunk]) -> dict[str, Chunk]:
    joined: dict[str, Chunk] = {}
    for chunk in chunks:
        before = joined.get(chunk.key, Chunk(chunk.key, (), ()))
        assert before.finish is None, f"{chunk.key!r} went on after its finish"
        assert chunk.finish is not Finish.FAILED, f"the policy failed: {chunk.error}"
        tokens, logprobs = (*before.tokens, *chunk.tokens), (*before.logprobs, *chunk.logprobs)
        joined[chunk.key] = Chunk(chunk.key, tokens, logprobs, chunk.finish)
    for chunk in joined.values():
        assert chunk.finish is not None, f"{chunk.key!r} has no finish, but nothing is open"
    return joined


def _assert_alike(written: Mapping[str, Chunk], others: Mapping[str, Chunk]) -> None:
    for key, chunk in written.items():
        assert (chunk.tokens, chunk.finish) == (others[key].tokens, others[key].finish)
        assert np.allclose(chunk.logprobs, others[key].logprobs, rtol=0, atol=1e-4)


def _assert_same(hits: Sequence[Hit], others: Sequence[Hit]) -> None:
    assert [hit.item for hit in hits] == [hit.item for hit in others]
    assert np.allclose([hit.score for hit in hits], [hit.score for hit in others], rtol=0, atol=1e-4)


def _items(*numbers: int) -> tuple[ItemIdx, ...]:
    return tuple(map(ItemIdx, numbers))


def _queries(n_items: int) -> list[Query]:
    """Of every kind: short, long, empty and repeating histories, with and without preference and exclusions."""
    everything = _items(*range(n_items))
    return [
        Query(()),
        Query(_items(0)),
        Query(_items(0, 1, 2), exclude=frozenset(_items(0, 1, 2))),
        Query(_items(2, 1, 0), "drama; 1990s", frozenset(_items(0, 1, 2, n_items - 1))),
        Query(_items(3, 3, 3), "Amélie 🎬 <think>"),
        Query((), "something that no item is like"),
        Query(everything * 2, "war", frozenset(everything[2:])),
        Query(everything[:5], exclude=frozenset(everything)),
        Query(_items(0, 1), "war", frozenset(_items(0, 1)), include=frozenset(everything[1:-1])),
        Query((), include=_items(n_items - 1, 4)),
        Query(_items(4), "drama", frozenset(_items(4)), include=_items(4)),
    ]


def _allowed(query: Query, n_items: int) -> set[int]:
    """The items that may come back."""
    return set(range(n_items) if query.include is None else query.include) - set(query.exclude)
