"""The real vLLM: the contract of policies, transformers' log-probabilities, and a training of two steps a stage.

vLLM needs a separate environment; CONTRIBUTING.md says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

from deeprec.config import PolicyConfig, load_config  # noqa: E402
from deeprec.data.sources import load_dataset  # noqa: E402
from deeprec.explore.policy import Request  # noqa: E402
from deeprec.policies.transformers import TransformersPolicy  # noqa: E402
from deeprec.policies.vllm import VllmPolicy  # noqa: E402
from deeprec.testing import PolicyContract, write  # noqa: E402
from deeprec.training.run import train_policy  # noqa: E402
from deeprec.training.sampling import VllmSampler  # noqa: E402
from deeprec.training.trainer import adapted  # noqa: E402

# In bfloat16 the rest of a batch decides between tokens of nearly equal odds.
CONFIG = PolicyConfig(dtype="float32", adapter="none")
TEXT = "The user liked Toy Story (1995) and Fargo (1996). After these, a good choice is"


@pytest.fixture(scope="module")
def engine() -> VllmPolicy:
    return VllmPolicy.load(CONFIG, lora_rank=8, max_model_len=1024, enforce_eager=True)


@pytest.fixture(scope="module")
def ours() -> TransformersPolicy:
    return TransformersPolicy.load(CONFIG)


def written(policy: Any, key: str, text: str, **more: Any) -> tuple[list[int], list[float]]:
    chunk = write(policy, [Request(key, tuple(policy.encode(text, first=True)), (), 24, **more)])[key]
    policy.release([key])
    return list(chunk.tokens), list(chunk.logprobs)


def logprobs_by_transformers(model: Any, policy: VllmPolicy, tokens: list[int]) -> torch.Tensor:
    context = policy.encode(TEXT, first=True)
    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *tokens]])).logits[0, len(context) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(tokens)), tokens]


class TestContract(PolicyContract):
    @pytest.fixture
    def policy(self, engine: VllmPolicy) -> VllmPolicy:
        return VllmPolicy(engine.llm)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_its_logprobs_are_those_of_transformers(engine, ours, temperature):
    engine.lora = None
    tokens, logprobs = written(engine, "a", TEXT, temperature=temperature, seed=3)
    expected = logprobs_by_transformers(ours.model, engine, tokens)
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("rank", [8, 0])
def test_weights_of_a_step_reach_it(engine, rank):
    if rank == 0:
        engine = VllmPolicy.load(CONFIG, max_model_len=1024, enforce_eager=True)
    model = adapted(TransformersPolicy.load(CONFIG).model, rank)
    engine.lora = None
    untrained = written(engine, "before", TEXT)[0]
    for name, weight in model.named_parameters():
        if "lora_B" in name or (rank == 0 and "down_proj" in name):
            torch.nn.init.normal_(weight, std=0.2 if rank else 0.02)
    sampler = VllmSampler(engine)
    tokens, logprobs = written(sampler(model, engine.tokenizer), "after", TEXT)
    assert tokens != untrained
    expected = logprobs_by_transformers(model, engine, tokens)
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-3, rtol=1e-3)
    engine.lora = None


STAGE = '{name="%s",share=0.1,steps=2,rewards={format=1.0,diversity=1.0,pointwise=1.0}}'


def test_two_steps_of_two_stages(tmp_path: Path) -> None:
    settings = [
        "policy.kind=vllm",
        "policy.dtype=bfloat16",
        "trm.epochs=1",
        "explore.context_tokens=2048",
        "explore.segment_tokens=64",
        "train.tasks_per_step=1",
        "train.group_size=2",
        "train.lora_rank=8",
        "train.sft.demonstrations=0",
        f"train.stages=[{STAGE % 'one'},{STAGE % 'two'}]",
    ]
    config = load_config(None, settings)
    folder = train_policy(load_dataset(config.data), config, tmp_path)
    assert folder.name == "two"
    assert (folder / "adapter_model.safetensors").exists()
