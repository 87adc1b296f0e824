"""Constrained answers: whatever the logits and the tokenizer, they parse to titles of the pool."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deeprec import assets
from deeprec.config import ExploreConfig, PolicyConfig, load_config
from deeprec.data.catalog import neutralise
from deeprec.errors import DeepRecError
from deeprec.evaluation.one_shot import rerank
from deeprec.explore.explorer import Explorer, seed_of
from deeprec.explore.policy import Constraint, Finish, Request
from deeprec.explore.protocol import ANSWER, END_ANSWER, END_THINK, STOPS, Answer, call_text, parse
from deeprec.explore.trace import Stop, Trace
from deeprec.policies import transformers
from deeprec.policies.constrained import ConstrainedSampler, TokenMatchers
from deeprec.policies.loading import load_policy
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.policies.tokenizer import TokenizerCodec
from deeprec.policies.transformers import TransformersPolicy
from deeprec.testing import write
from tiny_models import AWKWARD, bytes_tokenizer, tiny
from toys import RecordingRetriever, toy_dataset

pytest.importorskip("llguidance")

DATASET = toy_dataset()
TASKS = DATASET.tasks("test")
CONFIG = ExploreConfig(answer_size=3, items_per_call=4, history=3, max_calls=2, segment_tokens=2000, answer="pool")
OPENING = f"I see.\n{END_THINK}\n{ANSWER}"


@functools.cache
def merging_tokenizer() -> Any:
    """Tokens over every border: of the tags, the lines, the numbers and characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(">", "Ċ"), (">", "."), (">Ċ", "1"), ("Ċ", "Ċ"), ("<", "/"), (">", "</"), ("Ċ", "</"), ("Ċ", "2")]
    merges += [("1", "."), (".", "Ġ"), ("1.", "Ġ"), ("1.Ġ", "A"), ("Ċ2", "."), ("A", "l"), ("e", "n"), ("en", "Ċ")]
    merges += [(")", "Ċ"), ("Ã", "©"), ("å", "į"), ("Ġ", "("), ("(", "1"), ("9", ")Ċ")]
    vocab = [*letters, *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE(vocab={token: position for position, token in enumerate(vocab)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")


@functools.cache
def pieces_tokenizer() -> Any:
    """Of SentencePiece's kind: a mark for spaces, and bytes for what it has no pieces for."""
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *map(chr, range(33, 127)),
        "▁",
        "é",
        "Al",
        "▁(",
        "▁A",
    ]
    vocab = {piece: position for position, piece in enumerate(pieces)}
    merges = [("A", "l"), ("▁", "("), ("▁", "A")]
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


@functools.cache
def smollm2_tokenizer() -> Any:
    folder = assets.locate("smollm2-135m-instruct")
    if folder is None:
        pytest.skip("SmolLM2 is not in the asset cache")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


TOKENIZERS = (bytes_tokenizer, merging_tokenizer, pieces_tokenizer, smollm2_tokenizer)


@functools.cache
def matchers(tokenizer: Callable[[], Any]) -> TokenMatchers:
    return TokenMatchers(TokenizerCodec(tokenizer()))


def sampler_of(made: TokenMatchers, titles: Sequence[str], lines: int) -> ConstrainedSampler:
    return ConstrainedSampler(Constraint(ANSWER, END_ANSWER, tuple(titles), lines), made)


def write_text(sampler: ConstrainedSampler, text: str) -> list[int]:
    """The sampler writes a text, with the tokens that its tokenizer has for it."""
    tokens = sampler.matchers.codec.encode(text)
    for token in tokens:
        assert sampler.pick(torch.zeros(len(sampler.matchers.codec.tokenizer)), lambda _, token=token: token) == token
    return tokens


def write_by_chance(sampler: ConstrainedSampler, seed: int, scale: float, begun: str = "") -> str:
    """What stands after the tag, up to the stop: what the context began, and what a model with such logits writes."""
    codec, generator = sampler.matchers.codec, torch.Generator().manual_seed(seed)
    tokens = codec.encode(begun)
    while END_ANSWER not in (text := codec.decode(tokens)):
        assert len(tokens) < 5000
        scores_V = scale * torch.randn(len(codec.tokenizer), generator=generator)
        draw = functools.partial(transformers._draw, top_p=0.9, generator=None if seed % 2 else generator)
        tokens.append(sampler.pick(scores_V.log_softmax(-1), draw))
    return text


titles_of = st.lists(
    st.one_of(st.sampled_from(AWKWARD), st.text(min_size=1, max_size=12).map(neutralise)).filter(bool), max_size=8
)


@given(
    st.sampled_from(TOKENIZERS), titles_of, st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 9.0])
)
@example(bytes_tokenizer, list(AWKWARD), 10, 0, 1.0)
@example(merging_tokenizer, [*AWKWARD, *AWKWARD], 20, 1, 1.0)
@example(pieces_tokenizer, list(AWKWARD), 4, 2, 1.0)
@settings(max_examples=150)
def test_whatever_the_logits_the_answer_is_of_the_pool(
    tokenizer: Callable[[], Any], titles: list[str], lines: int, seed: int, scale: float
) -> None:
    sampler = sampler_of(matchers(tokenizer), titles, lines)
    codec = sampler.matchers.codec
    assume(all(codec.decode(codec.encode(title)) == title for title in titles))
    write_text(sampler, OPENING)
    text = OPENING + write_by_chance(sampler, seed, scale)
    parsed = parse(text, answer_size=min(lines, len(titles)), after_items=True)
    assert isinstance(parsed, Answer)
    assert parsed.faults == ()
    assert not Counter(parsed.titles) - Counter(titles)
    assert text.endswith(f"\n{END_ANSWER}")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_order_can_be_written_as_the_model_would_write_it(tokenizer: Callable[[], Any]) -> None:
    """With the tokens that the tokenizer itself has for each line."""
    made = matchers(tokenizer)
    for titles in (AWKWARD, AWKWARD[::-1]):
        sampler = sampler_of(made, AWKWARD, len(AWKWARD))
        write_text(sampler, OPENING)
        assert sampler.grammar.choices
        for line in ["\n", *(f"{n}. {title}\n" for n, title in enumerate(titles, 1)), END_ANSWER]:
            for token in made.codec.encode(line):
                seen: list[torch.Tensor] = []
                sampler.pick(torch.zeros(len(made.codec.tokenizer)), lambda row, t=token, s=seen: s.append(row) or t)  # type: ignore[func-returns-value]
                assert seen[0][token] > -torch.inf, line
        assert not sampler.grammar.choices


@pytest.mark.parametrize(("after", "kept"), [(">Ċ", True), (">", True), (">.", False), ("></", False), (">Ċ1", True)])
def test_a_token_that_opens_the_answer_brings_nothing_but_its_beginning(after: str, kept: bool) -> None:
    tokenizer = merging_tokenizer()
    sampler = sampler_of(matchers(merging_tokenizer), AWKWARD, 3)
    write_text(sampler, OPENING.removesuffix(">"))
    wanted, next_best = tokenizer.convert_tokens_to_ids([after, ">Ċ"])
    scores_V = torch.zeros(len(tokenizer))
    scores_V[next_best], scores_V[wanted] = 8.0, 9.0
    assert sampler.pick(scores_V, lambda row_V: int(row_V.argmax())) == (wanted if kept else next_best)
    assert (
        parse(
            OPENING.removesuffix(">")
            + tokenizer.decode([wanted if kept else next_best])
            + write_by_chance(sampler, 0, 1.0),
            answer_size=3,
            after_items=True,
        ).faults
        == ()
    )


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_an_answer_that_the_context_has_begun(tokenizer: Callable[[], Any]) -> None:
    made = matchers(tokenizer)
    sampler = ConstrainedSampler(Constraint(ANSWER, END_ANSWER, AWKWARD, 3, begun="1."), made)
    parsed = parse(f"{OPENING}\n{write_by_chance(sampler, 1, 1.0, begun='1.')}", answer_size=3, after_items=True)
    assert isinstance(parsed, Answer)
    assert parsed.faults == ()
    assert set(parsed.titles) <= set(AWKWARD)


def test_a_random_model_reranks_the_candidates_if_constrained() -> None:
    tokenizer = bytes_tokenizer()
    for answer, well_formed in (("pool", True), ("free", False)):
        policy = TransformersPolicy(tiny(tokenizer), tokenizer)
        config = CONFIG.model_copy(update={"answer": answer, "segment_tokens": 400})
        traces = [trace for _, trace in rerank(policy, RecordingRetriever(40), DATASET.catalog, TASKS[:2], config)]
        assert [trace.well_formed for trace in traces] == [well_formed] * 2
        assert [len(trace.raw_ranking) for trace in traces] == [3 * well_formed] * 2


def test_titles_that_no_token_can_write_are_left_out() -> None:
    tokenizer = smollm2_tokenizer()
    sampler = sampler_of(matchers(smollm2_tokenizer), ("A \U00040000 rare one", "B"), 5)
    assert tokenizer.decode(tokenizer.encode("\U00040000")) != "\U00040000"
    write_text(sampler, OPENING)
    assert write_by_chance(sampler, 0, 1.0) == f"\n1. B\n{END_ANSWER}"


def test_without_titles_the_answer_is_closed_at_once() -> None:
    sampler = sampler_of(matchers(bytes_tokenizer), (), 3)
    write_text(sampler, f"{OPENING}\n")
    assert write_by_chance(sampler, 0, 1.0) == END_ANSWER


def test_many_long_titles_are_no_matter() -> None:
    titles = [f"{n} {'long ' * 20}{n % 7}" for n in range(300)]
    sampler = sampler_of(matchers(bytes_tokenizer), titles, 2)
    write_text(sampler, OPENING)
    assert parse(OPENING + write_by_chance(sampler, 3, 1.0), answer_size=2, after_items=False).faults == ()


def steer_to_answers(monkeypatch: pytest.MonkeyPatch, policy: TransformersPolicy, config: ExploreConfig) -> None:
    """The policy thinks freely before it makes both calls and opens the answer; the answer is free again."""
    script = {}
    for position, task in enumerate(TASKS[:4]):
        base = seed_of(config.seed, task.id, 0)
        for turn, text in enumerate([call_text("", "war"), call_text("", "Comedy"), OPENING]):
            script[base + 1 + 2 * turn] = (2 + (3 * position + 5 * turn) % 7, policy.encode(text))
    draw, written = transformers._draw, Counter[int]()
    taboo = {*policy.ends, *policy.encode("<|/>")}

    def steered(logprobs_V: torch.Tensor, top_p: float, generator: torch.Generator) -> int:
        seed = generator.initial_seed()
        free, then = script[seed]
        position = written[seed]
        written[seed] += 1
        if position < free:
            return next(token for _ in range(999) if (token := draw(logprobs_V, top_p, generator)) not in taboo)
        return then[position - free] if position < free + len(then) else draw(logprobs_V, top_p, generator)

    monkeypatch.setattr(transformers, "_draw", steered)


def explored(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, answers: Sequence[str], batch: int = 4, **more: Any
) -> list[Trace]:
    """Explorations of four tasks, each with its kind of answer; the catalogue has namesakes."""
    policy = TransformersPolicy(tiny(tokenizer), tokenizer)
    config = CONFIG.model_copy(update={"temperature": 1.0, "batch_size": batch, "segment_tokens": 300, **more})
    titles = [*DATASET.catalog.titles[:10], *AWKWARD, *DATASET.catalog.titles[20:38], "title", "Alien"]
    catalog = replace(DATASET.catalog, titles=tuple(titles))
    ways = dict(zip([task.id for task in TASKS[:4]], answers, strict=True))
    with monkeypatch.context() as patch:
        steer_to_answers(patch, policy, config)
        explorer = Explorer(policy, RecordingRetriever(40, never=range(10)), catalog, config)
        stream = explorer.stream(TASKS[:4], config_of=lambda task: config.model_copy(update={"answer": ways[task.id]}))
        traces = dict(stream)
    return [traces[position] for position in range(4)]


@pytest.mark.parametrize(("tokenizer", "guesses"), [(bytes_tokenizer, 3), (merging_tokenizer, 0)])
def test_free_and_constrained_rows_go_together(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Callable[[], Any], guesses: int
) -> None:
    monkeypatch.setattr(transformers, "_LOOKUP_TOKENS", guesses)
    mixed = explored(monkeypatch, tokenizer(), ["pool", "free", "pool", "free"])
    free = explored(monkeypatch, tokenizer(), ["free"] * 4)
    alone = explored(monkeypatch, tokenizer(), ["pool"] * 4, batch=1)
    for position, trace in enumerate(mixed):
        other = free[position] if position % 2 else alone[position]
        assert (trace.tokens()[:2], trace.stop) == (other.tokens()[:2], other.stop)
        assert trace.tokens()[2] == pytest.approx(other.tokens()[2], abs=1e-4)
        if not position % 2:
            assert trace.well_formed, trace.faults
            assert len(trace.raw_ranking) == CONFIG.answer_size
            assert all(line.retrieved for line in trace.answer)
        else:
            assert not trace.well_formed
        # What comes before the answer is the same, constrained or free.
        assert [s.tokens for s in trace.segments[:-1]] == [s.tokens for s in free[position].segments[:-1]]


def test_logprobs_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bytes_tokenizer()
    for trace in explored(monkeypatch, tokenizer, ["pool"] * 4)[:2]:
        tokens, by_policy, logprobs = trace.tokens()
        with torch.inference_mode():
            logits_TV = tiny(tokenizer)(torch.tensor([tokens]), use_cache=False).logits[0, :-1].float()
        said = [0.0, *logits_TV.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].tolist()]
        assert [a for a, by in zip(logprobs, by_policy, strict=True) if by] == pytest.approx(
            [b for b, by in zip(said, by_policy, strict=True) if by], abs=1e-4
        )


def test_a_small_pool_ends_the_answer_early_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = explored(monkeypatch, bytes_tokenizer(), ["pool"] * 4, answer_size=9, segment_tokens=900)
    for trace in traces:
        assert trace.stop is Stop.ANSWERED
        assert len(trace.answer) == len(trace.pool) == 8 or trace.well_formed


def test_greedily_too() -> None:
    """The likeliest of those that may come."""
    tokenizer = bytes_tokenizer()
    policy = TransformersPolicy(tiny(tokenizer), tokenizer)
    context = policy.encode("Hm", first=True)
    free = write(policy, [Request("free", context, (), 40)])["free"].tokens
    text = [policy.decode([token]) for token in free]
    position = next(n for n, char in enumerate(text) if char.isalpha() and char.isascii() and char not in text[:n])
    constraint = Constraint(text[position], END_ANSWER, AWKWARD, 3)
    chunk = write(policy, [Request("a", context, STOPS, 900, constraint=constraint)])["a"]
    assert chunk.finish is Finish.STOP
    assert chunk.tokens[: position + 1] == free[: position + 1]
    answer = chunk.tokens[position + 1 :]
    assert parse(f"{OPENING}{policy.decode(answer)}", answer_size=3, after_items=True).faults == ()
    first = len(policy.encode("\n1. "))
    with torch.inference_mode():
        read = [*context, *chunk.tokens[: position + 1 + first]]
        logits_V = policy.model(torch.tensor([read]), use_cache=False).logits[0, -1]
    assert answer[first] == max({policy.encode(title)[0] for title in AWKWARD}, key=lambda t: float(logits_V[t]))


def test_the_script_writes_what_it_writes() -> None:
    config = CONFIG.model_copy(update={"max_calls": 3})
    free = config.model_copy(update={"answer": "free"})
    policy = TextPolicy(ScriptedWriter(config.answer_size))
    traces = [Explorer(policy, RecordingRetriever(40), DATASET.catalog, c).run(TASKS[:3]) for c in (config, free)]
    assert traces[0] == traces[1]


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_a_policy_that_cannot_is_refused_before_it_is_loaded(kind: str) -> None:
    config = load_config(overrides=[f"policy.kind={kind}", "explore.answer=pool"])
    with pytest.raises(DeepRecError, match=rf"policy\.kind='{kind}'.*explore\.answer"):
        load_policy(config)


def test_a_servers_policy_refuses_a_constraint() -> None:
    pytest.importorskip("openai")
    from deeprec.policies.openai import OpenAIPolicy

    policy: Any = OpenAIPolicy(None, "m")  # type: ignore[arg-type]
    with pytest.raises(DeepRecError, match="can't restrict answers"):
        policy.submit([Request("a", (), (), 1, constraint=Constraint(ANSWER, END_ANSWER, AWKWARD, 3))])
    assert policy.step() == []


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(DeepRecError, match=r"'\.\[constrained\]'"):
        TokenMatchers(TokenizerCodec(bytes_tokenizer()))


@pytest.mark.llm
@pytest.mark.timeout(300)
def test_the_real_model_answers_from_the_pool() -> None:
    smollm2_tokenizer()
    policy = TransformersPolicy.load(PolicyConfig(adapter="none", dtype="float32", device="cpu"), offline=True)
    context = policy.encode(f"The user likes space.\n{END_THINK}\n{ANSWER}"[:-1], first=True)
    constraint = Constraint("\n", END_ANSWER, AWKWARD, 3)
    chunk = write(policy, [Request("a", context, STOPS, 200, constraint=constraint)])["a"]
    answer = policy.decode(chunk.tokens).partition("\n")[2]
    assert parse(f"{OPENING}\n{answer}", answer_size=3, after_items=True).faults == ()
