"""Grouped attention gives what the attention of transformers gives."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from deeprec.policies import attention
from deeprec.policies.attention import GROUPED, group


@pytest.fixture(params=[1, 2, 4], ids="{} key heads".format)
def models(request: pytest.FixtureRequest) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The same weights twice: with our attention, and with transformers'."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=request.param,
    )
    plain = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    ours = LlamaForCausalLM._from_config(copy.deepcopy(config), attn_implementation=GROUPED).eval()
    ours.load_state_dict(plain.state_dict())
    return ours, plain


MASKS = {
    "none": None,
    "padded on the right": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
    "a mask per row": torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + torch.eye(6) > 0.4,
}


@pytest.mark.parametrize("mask", MASKS)
def test_logits_and_gradients_are_the_same(models: tuple[LlamaForCausalLM, LlamaForCausalLM], mask: str) -> None:
    tokens_BT = torch.randint(64, (2, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (model(tokens_BT, attention_mask=MASKS[mask]).logits[:, :4] for model in models)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    found = []
    for model in models:
        logits_BTV = model(tokens_BT, attention_mask=MASKS[mask]).logits[:, :4]
        logits_BTV.square().mean().backward()
        grad = model.model.layers[0].self_attn.k_proj.weight.grad
        assert grad is not None
        found.append((logits_BTV.detach(), grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert found[0][0].std() > 0.01


def test_only_a_model_that_takes_its_attention_from_outside_gets_it(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    plain = models[1]
    plain._supports_attention_backend = False
    group(plain)
    assert plain.config._attn_implementation == "sdpa"
    plain._supports_attention_backend = True
    group(plain)
    assert plain.config._attn_implementation == GROUPED


def test_many_tokens_are_not_grouped(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *args, **options: asked.append(1) or sdpa(*args, **options)
    )
    sdpa = sdpa_attention_forward
    with torch.no_grad():
        for length in (6, 300):
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
            models[0](torch.zeros((1, length), dtype=torch.long), attention_mask=mask)
    layers = models[0].config.num_hidden_layers
    assert len(asked) == (layers if models[0].config.num_key_value_heads < 4 else 2 * layers)
