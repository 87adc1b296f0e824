"""The real OpenVINO GenAI with the real SmolLM2: the contract of policies, and what transformers says of the same."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from deeprec import assets
from deeprec.config import PolicyConfig, load_config
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Constraint, Finish, Request
from deeprec.explore.protocol import ANSWER, END_ANSWER, END_THINK, STOPS, Answer, parse
from deeprec.policies.adapters import SHIPPED
from deeprec.policies.loading import load_policy
from deeprec.policies.openvino import OpenVinoPolicy
from deeprec.policies.transformers import TransformersPolicy
from deeprec.testing import PolicyContract, request, write
from tiny_models import AWKWARD
from toys import RecordingRetriever, toy_dataset

pytestmark = pytest.mark.llm

SMOLLM2 = "smollm2-135m-instruct"
# In bfloat16 the rest of a batch decides between tokens of nearly equal odds.
CONFIG = PolicyConfig(kind="openvino", dtype="float32", adapter="none")
ALIKE = 2e-2
"""Of log-probabilities: OpenVINO's weights have 16 bits."""
TEXT = "The user liked Toy Story (1995) and Fargo (1996). After these, a good choice is"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So small a model is fastest on one thread, all the more when tests run in parallel."""
    if assets.locate(SMOLLM2) is None:
        pytest.skip(f"{SMOLLM2} is not in the asset cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine(one_thread: None) -> OpenVinoPolicy:
    return OpenVinoPolicy.load(CONFIG, offline=True, rows=4, tokens=512)


class TestContract(PolicyContract):
    @pytest.fixture
    def policy(self, engine: OpenVinoPolicy) -> OpenVinoPolicy:
        policy = OpenVinoPolicy(engine.pipeline, engine.tokenizer, engine.context_limit, None)
        policy.ends = engine.ends
        return policy


def test_its_logprobs_are_those_of_transformers(engine: OpenVinoPolicy) -> None:
    ours = TransformersPolicy.load(PolicyConfig(dtype="float32", adapter="none"), offline=True)
    context = engine.encode(TEXT, first=True)
    assert context == ours.encode(TEXT, first=True)
    chunk = write(engine, [Request("a", tuple(context), (), 24)])["a"]
    with torch.inference_mode():
        logits = ours.model(torch.tensor([[*context, *chunk.tokens]])).logits[0, len(context) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(chunk.tokens)), list(chunk.tokens)]
    torch.testing.assert_close(torch.tensor(chunk.logprobs), expected, atol=ALIKE, rtol=0)
    assert (logits.max(-1).values - logits.gather(-1, torch.tensor(chunk.tokens)[:, None])[:, 0]).max() < ALIKE


def test_with_the_shipped_adapter_it_explores_as_transformers_does() -> None:
    """Whole explorations: adapter, prompt defaults, stops, and contexts that grow over turns."""
    dataset = toy_dataset()
    traces = {}
    for kind in ("openvino", "transformers"):
        config = load_config(
            None, [f"policy.kind={kind}", "policy.dtype=float32", "explore.context_tokens=1024", "explore.batch_size=2"]
        )
        policy: Any = load_policy(config, offline=True)
        assert policy.prompt_defaults is not None
        retriever = RecordingRetriever(len(dataset.catalog))
        traces[kind] = Explorer(policy, retriever, dataset.catalog, config.explore).run(dataset.tasks("test")[:2])
    for ours, theirs in zip(traces["openvino"], traces["transformers"], strict=True):
        assert ours.turns
        assert [segment.tokens for segment in ours.segments] == [segment.tokens for segment in theirs.segments]
        assert ours.raw_ranking == theirs.raw_ranking


TITLES = (*AWKWARD, "Amélie (2001)", "Amélie (2001)")


def test_answers_are_constrained_beside_free_ones(engine: OpenVinoPolicy) -> None:
    """The opening is a token that the model writes by itself and that occurs once; the three ways end or cut it."""
    context = tuple(engine.encode(TEXT, first=True))
    free = write(engine, [Request("free", context, (), 30)])["free"].tokens
    texts = [engine.decode([token]) for token in free]
    position = next(n for n, text in enumerate(texts) if n and len(text) > 2 and text not in "".join(texts[:n]))
    ways = {"whole": (texts[position], len(TITLES)), "part": (texts[position][:-1], 3), "more": (texts[position], 20)}
    requests = [
        Request(key, context, STOPS, 400, constraint=Constraint(opening, END_ANSWER, TITLES, lines))
        for key, (opening, lines) in ways.items()
    ]
    chunks = write(engine, [*requests, Request("free", context, (), 30)])
    for key, (opening, lines) in ways.items():
        assert chunks[key].finish is Finish.STOP
        assert chunks[key].tokens[:position] == free[:position]
        before, _, answer = engine.decode(chunks[key].tokens).partition(f"{opening}\n")
        assert before == engine.decode(free[:position])
        parsed = parse(f"{END_THINK}\n{ANSWER}\n{answer}", answer_size=min(lines, len(TITLES)), after_items=True)
        assert isinstance(parsed, Answer)
        assert not Counter(parsed.titles) - Counter(TITLES)
        assert len(parsed.titles) == min(lines, len(TITLES))
    assert chunks["free"].tokens == free
    assert write(engine, requests[:1])["whole"].tokens == chunks["whole"].tokens
    assert not engine.pipeline.has_non_finished_requests()


def test_what_it_can_not_do_is_refused_in_a_sentence(engine: OpenVinoPolicy) -> None:
    with pytest.raises(DeepRecError, match=r"greedy: set explore\.temperature=0"):
        engine.submit([Request("a", tuple(engine.encode(TEXT)), (), 4, temperature=0.5)])
    with pytest.raises(DeepRecError, match=r"policy\.device='cuda'"):
        OpenVinoPolicy.load(CONFIG.model_copy(update={"device": "cuda"}), offline=True)
    assert engine.step() == []
    with pytest.raises(DeepRecError, match=r"greedy: set explore\.temperature=0"):
        load_policy(load_config(None, ["policy.kind=openvino", "explore.temperature=0.5"]))


def test_a_context_that_the_cache_has_no_room_for_fails_and_others_are_written() -> None:
    policy = OpenVinoPolicy.load(CONFIG, offline=True, rows=1, tokens=64)
    policy.submit([request(policy, "a", "Toy Story (1995)\n" * 40)])
    chunks = policy.step()
    assert [chunk.finish for chunk in chunks if chunk.key == "a"] == [Finish.FAILED]
    assert "no room" in (chunks[0].error or "")
    again = write(policy, [request(policy, "b", "Toy Story")])["b"]
    assert again.tokens
    assert all(-math.inf < value <= 0 for value in again.logprobs)


@pytest.mark.parametrize("unusual", [{"use_dora": True}, {"alpha_pattern": {"q_proj": 4}}, {"lora_bias": True}])
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, unusual: dict[str, Any]) -> None:
    known = json.loads((SHIPPED / SMOLLM2 / "adapter_config.json").read_text())
    shutil.copytree(SHIPPED / SMOLLM2, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps(known | unusual))
    with pytest.raises(DeepRecError, match="no plain LoRA"):
        OpenVinoPolicy.load(CONFIG.model_copy(update={"adapter": str(tmp_path)}), offline=True)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """OpenVINO itself would warn, and explore without it."""
    shutil.copytree(SHIPPED / SMOLLM2, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        weights = {name.replace("layers.3.", "layers.33."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(DeepRecError, match=r"does not fit .*: it has no model\.layers\.33\."):
        OpenVinoPolicy.load(CONFIG.model_copy(update={"adapter": str(tmp_path / "adapter")}), offline=True)
