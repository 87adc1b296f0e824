"""The in-process language model: what it records is what the bare model says, whatever the cache went through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
)

from deeprec import assets
from deeprec.config import ExploreConfig, PolicyConfig
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore import environment
from deeprec.explore.explorer import Explorer, seed_of
from deeprec.explore.policy import Chunk, Finish, Request
from deeprec.explore.protocol import answer_text, call_text
from deeprec.explore.trace import Author, Stop, Trace
from deeprec.policies import transformers
from deeprec.policies.attention import GROUPED
from deeprec.policies.transformers import TransformersPolicy, pick_device, pick_dtype
from deeprec.testing import TEXTS, PolicyContract, request, write
from tiny_models import bytes_tokenizer, tiny
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
TASKS = DATASET.tasks("test")
SMOLLM2 = "smollm2-135m-instruct"
ALIKE = 1e-4


@functools.cache
def smollm2_tokenizer() -> Any:
    folder = assets.locate(SMOLLM2)
    if folder is None:
        pytest.skip(f"{SMOLLM2} is not in the asset cache")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is fastest on one thread, all the more when tests run in parallel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[bytes_tokenizer, smollm2_tokenizer], ids=["bytes", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def fresh(tokenizer: Any) -> Callable[[], TransformersPolicy]:
    return lambda: TransformersPolicy(tiny(tokenizer), tokenizer)


@pytest.fixture
def policy(fresh: Callable[[], TransformersPolicy]) -> TransformersPolicy:
    return fresh()


class TestTiny(PolicyContract):
    @pytest.fixture
    def policy(self, fresh: Callable[[], TransformersPolicy]) -> TransformersPolicy:
        return fresh()


@torch.inference_mode()
def bare_logprobs(model: Any, tokens: Sequence[int], temperature: float = 1.0) -> list[float]:
    """The logprob of every token but the first, from one forward pass of the model without any cache."""
    logits_TV = model(torch.tensor([list(tokens)]), use_cache=False).logits[0, :-1].float() / (temperature or 1.0)
    return logits_TV.log_softmax(-1)[range(len(tokens) - 1), list(tokens[1:])].tolist()


def assert_exact(model: Any, context: Sequence[int], chunk: Chunk, temperature: float = 1.0) -> None:
    said = bare_logprobs(model, [*context, *chunk.tokens], temperature)[len(context) - 1 :]
    assert chunk.logprobs == pytest.approx(said, abs=ALIKE)


def assert_alike(chunk: Chunk, other: Chunk) -> None:
    assert (chunk.tokens, chunk.finish) == (other.tokens, other.finish)
    assert chunk.logprobs == pytest.approx(other.logprobs, abs=ALIKE)


def sampled(policy: TransformersPolicy, key: str, text: str, seed: int = 0, **options: Any) -> Request:
    settings = {"max_new_tokens": 12, "temperature": 1.0, **options}
    return Request(key, tuple(policy.encode(text, first=True)), (), seed=seed, **settings)


def steer(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch, tokens_of: Callable[[int], tuple[int, list[int]]]
) -> None:
    """Let the policy sample freely for a while in each segment, then force tokens, which the seed identifies.

    A small model never calls the tool by itself. The policy records logprobs of forced tokens like those of others.
    """
    draw, written = transformers._draw, {}

    def steered(logprobs_V: torch.Tensor, top_p: float, generator: torch.Generator) -> int:
        seed = generator.initial_seed()
        position = written[seed] = written.get(seed, -1) + 1
        free, then = tokens_of(seed)
        free_token = next(token for _ in range(99) if (token := draw(logprobs_V, top_p, generator)) not in policy.ends)
        return free_token if position < free else then[position - free]

    monkeypatch.setattr(transformers, "_draw", steered)


def explore_exactly(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch, tasks: Sequence[Task], config: ExploreConfig
) -> list[Trace]:
    """Explore with two calls and an answer, a few free tokens before each, and check every token and text."""
    texts = [call_text("", "war; drama"), call_text("", "Comedy 日本"), answer_text("", ["Film 0 (1970)"])]
    segments = [policy.encode(text) for text in texts]
    script = {}
    for position, task in enumerate(tasks):
        base = seed_of(config.seed, task.id, 0)
        for turn, tokens in enumerate(segments):
            script[base + 1 + 2 * turn] = (2 + (3 * position + 5 * turn) % 7, tokens)
    read: list[str] = []
    parse = environment.protocol.parse

    def reading(text: str, **options: Any) -> Any:
        read.append(text)
        return parse(text, **options)

    with monkeypatch.context() as patch:
        steer(policy, patch, script.__getitem__)
        patch.setattr(environment.protocol, "parse", reading)
        traces = Explorer(policy, RecordingRetriever(len(DATASET.catalog)), DATASET.catalog, config).run(tasks)
    assert policy.rows == []
    written = []
    for trace in traces:
        ids, by_policy, logprobs = trace.tokens()
        said = [0.0, *bare_logprobs(policy.model, ids, config.temperature)]
        pairs = [(a, b) for a, b, written in zip(logprobs, said, by_policy, strict=True) if written]
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=ALIKE)
        assert trace.policy_tokens == len(pairs) > 0
        for segment in trace.segments:
            assert policy.decode(segment.tokens) == segment.text
            assert len(segment.logprobs) == (len(segment.tokens) if segment.author is Author.POLICY else 0)
            if segment.author is Author.POLICY:
                written.append(segment.text)
    assert sorted(read) == sorted(written)
    return traces


EXPLORE = ExploreConfig(
    answer_size=1, items_per_call=3, history=3, max_calls=3, temperature=1.0, segment_tokens=200, guidance="rules"
)


@pytest.mark.parametrize(("size", "temperature"), [(1, 1.0), (3, 0.7)])
def test_explorations_are_token_exact(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch, size: int, temperature: float
) -> None:
    config = EXPLORE.model_copy(update={"temperature": temperature, "batch_size": size})
    traces = explore_exactly(policy, monkeypatch, TASKS[:5], config)
    assert sum(trace.stop is Stop.ANSWERED for trace in traces) >= 4
    assert sum(len(trace.turns) == 2 for trace in traces) >= 4


@pytest.mark.llm
@pytest.mark.timeout(300)
def test_the_real_model_is_token_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    smollm2_tokenizer()
    policy = TransformersPolicy.load(
        PolicyConfig(model=SMOLLM2, adapter="none", dtype="float32", device="cpu"), offline=True
    )
    traces = explore_exactly(policy, monkeypatch, TASKS[:2], EXPLORE)
    assert [trace.stop for trace in traces] == [Stop.ANSWERED] * 2
    # Left to itself, whatever it writes.
    config = EXPLORE.model_copy(update={"temperature": 0.0, "segment_tokens": 12})
    for trace in Explorer(policy, RecordingRetriever(40), DATASET.catalog, config).run(TASKS[:2]):
        ids, by_policy, logprobs = trace.tokens()
        said = [0.0, *bare_logprobs(policy.model, ids)]
        assert logprobs == pytest.approx(
            [b if written else 0 for b, written in zip(said, by_policy, strict=True)], abs=ALIKE
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5, 1.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(policy: TransformersPolicy, temperature: float) -> None:
    asked = sampled(policy, "a", TEXTS[0], temperature=temperature)
    assert_exact(policy.model, asked.context, write(policy, [asked])["a"], temperature)


def test_greedy_takes_the_likeliest(policy: TransformersPolicy) -> None:
    asked = request(policy, "a")
    tokens = write(policy, [asked])["a"].tokens
    with torch.inference_mode():
        logits_TV = policy.model(torch.tensor([[*asked.context, *tokens]]), use_cache=False).logits[0]
    assert logits_TV.argmax(-1).tolist()[len(asked.context) - 1 : -1] == list(tokens)


def test_turns_on_a_kept_cache_equal_a_fresh_start(fresh: Callable[[], TransformersPolicy]) -> None:
    kept = fresh()
    contexts = {key: list(kept.encode(text, first=True)) for key, text in zip("abc", TEXTS, strict=True)}
    for turn, limits in enumerate([(3, 9, 5), (8, 2, 6), (4, 4, 9)]):
        asked = [
            Request(key, tuple(context), (), limit, temperature=1.0, seed=10 * turn + limit)
            for (key, context), limit in zip(contexts.items(), limits, strict=True)
        ]
        written = write(kept, asked)
        for wanted in asked:
            chunk = written[wanted.key]
            assert_alike(chunk, write(fresh(), [wanted])[wanted.key])
            assert_exact(kept.model, wanted.context, chunk)
            more = kept.encode(f"\n\nTurn {turn} of {wanted.key} 日本:\n" * (1 + turn))
            contexts[wanted.key] += [*chunk.tokens, *more]


def test_only_new_tokens_are_encoded(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    forward = policy._forward

    def counting(rows: slice, tokens: list[list[int]], *rest: Any, **options: Any) -> torch.Tensor:
        widths.append(len(tokens[0]))
        return forward(rows, tokens, *rest, **options)

    monkeypatch.setattr(policy, "_forward", counting)
    monkeypatch.setattr(transformers, "_LOOKUP_TOKENS", 0)
    asked = request(policy, "a", limit=3)
    chunk = write(policy, [asked])["a"]
    assert widths == [len(asked.context) - 1, 1, 1, 1]
    widths.clear()
    more = policy.encode("\nmore\n")
    write(policy, [Request("a", (*asked.context, *chunk.tokens, *more), (), 2)])
    # The last token of the turn before was never encoded; the last of the context is always decoded.
    assert widths == [len(more), 1, 1]


def test_guesses_change_the_steps_and_nothing_else(
    fresh: Callable[[], TransformersPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explorations that copy what they have read, beside one that does not."""

    def explored(guessed: int) -> tuple[list[Trace], int]:
        monkeypatch.setattr(transformers, "_LOOKUP_TOKENS", guessed)
        policy, steps = fresh(), 0
        step = policy.step

        def counting() -> list[Chunk]:
            nonlocal steps
            steps += 1
            return step()

        monkeypatch.setattr(policy, "step", counting)
        return explore_exactly(policy, monkeypatch, TASKS[:3], EXPLORE), steps

    (plain, many), (guessed, few) = explored(0), explored(8)
    assert few < 0.7 * many
    for trace, other in zip(plain, guessed, strict=True):
        assert (trace.stop, trace.tokens()[:2]) == (other.stop, other.tokens()[:2])


def test_a_segment_ends_where_it_must_amid_guesses(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text that was read before, and so is guessed, no token is written past a stop, an end or a limit."""
    text = policy.encode("A film; another film; stop here, go on; ")
    context = [*policy.encode(TEXTS[0], first=True), *text]
    end = policy.tokenizer.eos_token_id
    for position, (tokens, stops, limit, finish, length) in enumerate(
        [
            (text, ("stop",), 99, Finish.STOP, None),
            ([*text[:9], end, *text[9:]], (), 99, Finish.END, 10),
            (text, (), 6, Finish.LENGTH, 6),
        ]
    ):
        with monkeypatch.context() as patch:
            steer(policy, patch, lambda seed, tokens=tokens: (0, tokens))
            asked = Request(str(position), (*context, *tokens[:9], *context), stops, limit, 1.0)
            chunk = write(policy, [asked])[str(position)]
        assert chunk.finish is finish
        assert chunk.tokens == tuple(tokens[: len(chunk.tokens)])
        assert length in (None, len(chunk.tokens))
        assert policy.decode(chunk.tokens).endswith("stop") or not stops
        assert_exact(policy.model, asked.context, chunk)


def test_guesses_stay_within_the_context(
    fresh: Callable[[], TransformersPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is full but for a few positions, beside another: no position is beyond the model's."""
    policy = fresh()
    policy.context_limit = 40
    widest = 0
    forward = policy._forward

    def watching(rows: slice, tokens: list[list[int]], starts: list[int], keep: int) -> torch.Tensor:
        nonlocal widest
        widest = max(widest, max(starts) + len(tokens[0]) - 1)
        return forward(rows, tokens, starts, keep)

    policy._forward = watching  # type: ignore[method-assign]
    a, b = policy.encode("a b")[:2]
    with monkeypatch.context() as patch:
        steer(policy, patch, lambda seed: (0, [a, b] * 20))
        rows = {"long": ([a, b] * 18, 4), "short": ([a, b] * 10, 20)}
        asked = [
            Request(key, tuple(context), (), limit, 1.0, seed=n)
            for n, (key, (context, limit)) in enumerate(rows.items())
        ]
        written = write(policy, asked)
    assert [len(written[key].tokens) for key in rows] == [4, 20]
    assert widest <= 39


def test_long_contexts_are_encoded_in_pieces(
    fresh: Callable[[], TransformersPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh()
    asked = [request(first, key, text) for key, text in zip("abc", TEXTS, strict=True)]
    whole = write(first, asked)
    monkeypatch.setattr(transformers, "_PREFILL_TOKENS", 7)
    for key, chunk in write(fresh(), asked).items():
        assert_alike(chunk, whole[key])


def test_a_shared_prefix_is_copied_and_changes_nothing(
    fresh: Callable[[], TransformersPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = "Recommend 10 films.\n" * 3
    policy, copies = fresh(), []
    copy = policy.cache.copy

    def counting(source: int, target: int, length: int) -> None:
        copies.append(length)
        copy(source, target, length)

    monkeypatch.setattr(policy.cache, "copy", counting)
    asked = [sampled(policy, str(seed), f"{shared}{'x' * seed}User {seed}", seed) for seed in (0, 1, 2, 2)]
    asked[3] = Request("same as 2", *[getattr(asked[2], name) for name in ("context", "stops", "max_new_tokens")], 1.0)
    written = write(policy, asked)
    assert len(copies) == 3
    assert min(copies) >= len(policy.encode(shared)) - 1
    assert max(copies) == len(asked[2].context) - 1
    for wanted in asked:
        assert_alike(written[wanted.key], write(fresh(), [wanted])[wanted.key])
        assert_exact(policy.model, wanted.context, written[wanted.key])


def test_rows_come_and_go(fresh: Callable[[], TransformersPolicy]) -> None:
    """Admitted at any time, of any length; waiting, continued and released in between."""
    policy = fresh()
    open_chunks: dict[str, list[Chunk]] = {}
    requests: dict[str, Request] = {}

    def submit(key: str, text: str, limit: int) -> None:
        requests[key] = sampled(policy, key, text, len(key) + limit, max_new_tokens=limit)
        policy.submit([requests[key]])

    def steps(count: int) -> None:
        for _ in range(count):
            for chunk in policy.step():
                open_chunks.setdefault(chunk.key, []).append(chunk)

    submit("a", TEXTS[0], 20)
    steps(3)
    submit("bb", TEXTS[1] * 2, 4)
    steps(2)
    submit("ccc", "x", 9)
    steps(4)  # bb waits now
    submit("dddd", TEXTS[2], 8)
    policy.release(["bb"])
    submit("eeeee", TEXTS[1], 3)
    steps(1)
    policy.release(["ccc"])
    submit("ffffff", TEXTS[0] + "And more", 5)
    steps(30)
    assert policy.step() == []
    for key, chunks in open_chunks.items():
        tokens = tuple(token for chunk in chunks for token in chunk.tokens)
        logprobs = tuple(value for chunk in chunks for value in chunk.logprobs)
        alone = write(fresh(), [requests[key]])[key]
        assert tokens == alone.tokens[: len(tokens)]
        assert logprobs == pytest.approx(alone.logprobs[: len(tokens)], abs=ALIKE)
        assert key == "ccc" or len(tokens) == len(alone.tokens)
    assert set(open_chunks) == set(requests)


def test_the_cache_grows_in_length_and_rows(fresh: Callable[[], TransformersPolicy]) -> None:
    policy = fresh()
    rows, positions = policy.cache.capacity
    token = policy.encode("x")[0]
    asked = {}
    for number in range(5):
        # The first starts just below the end of the cache and writes past it; others are short, one is very long.
        length = (positions - 4, 5, 30, 3 * positions, positions + 1)[number]
        text = [*policy.encode(f"{number}"), *[token] * length]
        asked[str(number)] = Request(str(number), tuple(text[:length]), (), 12, temperature=1.0, seed=number)
    chunks: dict[str, list[Chunk]] = {key: [] for key in asked}
    for wanted in asked.values():
        policy.submit([wanted])
        for _ in range(2):
            for chunk in policy.step():
                chunks[chunk.key].append(chunk)
    while new := policy.step():
        for chunk in new:
            chunks[chunk.key].append(chunk)
    assert policy.cache.capacity[0] >= 5 > rows
    assert policy.cache.capacity[1] >= 3 * positions + 12
    for key, wanted in asked.items():
        tokens = tuple(token for chunk in chunks[key] for token in chunk.tokens)
        logprobs = tuple(value for chunk in chunks[key] for value in chunk.logprobs)
        assert_exact(policy.model, wanted.context, Chunk(key, tokens, logprobs))
        assert tokens == write(fresh(), [wanted])[key].tokens


def test_a_key_may_start_anew(fresh: Callable[[], TransformersPolicy]) -> None:
    policy = fresh()
    write(policy, [request(policy, "a", TEXTS[0])])
    for text in (TEXTS[1], TEXTS[0][:20], TEXTS[0] + TEXTS[2]):
        asked = request(policy, "a", text)
        assert_alike(write(policy, [asked])["a"], write(fresh(), [asked])["a"])


def test_seeds_decide_and_not_the_batch(fresh: Callable[[], TransformersPolicy]) -> None:
    policy = fresh()
    asked = [sampled(policy, f"{position}", TEXTS[position % 3], seed=position // 3) for position in range(6)]
    together = write(policy, asked)
    for wanted in asked:
        assert_alike(together[wanted.key], write(fresh(), [wanted])[wanted.key])
    assert together["0"].tokens != together["3"].tokens


def test_top_p_leaves_the_unlikely_out(policy: TransformersPolicy) -> None:
    probabilities_V = torch.tensor([0.05, 0.5, 0.15, 0.3])
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((0.01, {1}), (0.49, {1}), (0.6, {1, 3}), (0.79, {1, 3}), (0.9, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        drawn = [transformers._draw(probabilities_V.log(), top_p, generator) for _ in range(300)]
        assert set(drawn) == kept
    greedy = write(policy, [request(policy, "a")])["a"]
    policy.release(["a"])
    narrow = sampled(policy, "a", TEXTS[0], top_p=1e-6)
    chunk = write(policy, [narrow])["a"]
    assert chunk.tokens == greedy.tokens
    assert_exact(policy.model, narrow.context, chunk)  # before top_p
    policy.release(["a"])
    assert write(policy, [sampled(policy, "a", TEXTS[0])])["a"].tokens != greedy.tokens


def test_draws_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs_V = torch.tensor([0.2, 0.7, 0.1]).log()
    drawn = torch.tensor([transformers._draw(logprobs_V, 1.0, generator) for _ in range(3000)])
    assert (drawn.bincount() / 3000).tolist() == pytest.approx([0.2, 0.7, 0.1], abs=0.03)


def written_by_force(
    policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch, tokens: list[int], stops: tuple[str, ...], limit: int
) -> Chunk:
    steer(policy, monkeypatch, lambda seed: (0, tokens))
    asked = sampled(policy, "a", TEXTS[0], max_new_tokens=limit)
    return write(policy, [Request("a", asked.context, stops, limit, 1.0)])["a"]


def test_a_stop_of_many_tokens_is_found(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = policy.encode("Thus: 日本🎬 end; not 日本 or 🎬end")
    stops = ("never", "日本🎬 end")
    chunk = written_by_force(policy, monkeypatch, tokens, stops, 99)
    assert chunk.finish is Finish.STOP
    assert policy.decode(chunk.tokens).startswith("Thus: 日本🎬 end")
    assert stops[1] not in policy.decode(chunk.tokens[:-1])


def test_the_end_token_ends_it_and_is_kept(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*policy.encode("Hm."), policy.tokenizer.eos_token_id, *policy.encode("more")]
    chunk = written_by_force(policy, monkeypatch, tokens, (), 99)
    assert chunk.finish is Finish.END
    assert policy.decode(chunk.tokens) == "Hm.<|im_end|>"
    assert_exact(policy.model, policy.encode(TEXTS[0], first=True), chunk)


def test_a_stop_on_the_last_token_is_a_stop(policy: TransformersPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = policy.encode("Hm. stop")
    assert written_by_force(policy, monkeypatch, tokens, ("stop",), len(tokens)).finish is Finish.STOP


def test_time_is_kept_for_prefill_and_decode(policy: TransformersPolicy) -> None:
    assert policy.seconds == {"prefill": 0, "decode": 0}
    write(policy, [request(policy, "a")])
    assert all(value > 0 for value in policy.seconds.values())


def test_a_model_folder_is_loaded(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tiny(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = TransformersPolicy.load(PolicyConfig(model=str(tmp_path), dtype="float32", device="cpu"), offline=True)
    assert policy.model.config._attn_implementation == GROUPED
    asked = request(policy, "a")
    assert_alike(write(policy, [asked])["a"], write(TransformersPolicy(tiny(tokenizer), tokenizer), [asked])["a"])
    with pytest.raises(DeepRecError, match=r"adapter"):
        TransformersPolicy.load(PolicyConfig(model=str(tmp_path), adapter=str(tmp_path), device="cpu"), offline=True)


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeepRecError, match=rf"can't be loaded.*{SMOLLM2}"):
        TransformersPolicy.load(PolicyConfig(model=str(tmp_path / "none"), device="cpu"), offline=True)


@pytest.mark.parametrize("kinds", [None, ["full_attention", "sliding_attention"]])
def test_sliding_attention_is_refused(kinds: list[str] | None) -> None:
    """The KV cache keeps everything: a model with a sliding window would read more than it was trained to."""
    config = MistralConfig(
        vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, sliding_window=4
    )
    if kinds is not None:
        config.layer_types = kinds
    with pytest.raises(DeepRecError, match=r"mistral.*sliding_attention"):
        TransformersPolicy(MistralForCausalLM(config), bytes_tokenizer())


def test_devices_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(DeepRecError, match="is no device"):
        pick_device("abacus")
    with pytest.raises(DeepRecError, match="sees no GPU"):
        pick_device("cuda:1")
    cpu = torch.device("cpu")
    assert (pick_dtype("float32", cpu), pick_dtype("bfloat16", cpu)) == (torch.float32, torch.bfloat16)
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_any_model_and_its_tokenizer_make_a_policy() -> None:
    tokenizer = bytes_tokenizer()
    model = AutoModelForCausalLM.from_config(tiny(tokenizer).config).eval()
    policy = TransformersPolicy(model, tokenizer)
    asked = request(policy, "a")
    assert_exact(model, asked.context, write(policy, [asked])["a"])
