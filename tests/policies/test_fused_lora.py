"""A fused adapter gives what peft's gives."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

peft = pytest.importorskip("peft")

from deeprec.config import PolicyConfig  # noqa: E402
from deeprec.policies.fused_lora import FusedLoRALinear, fuse  # noqa: E402
from deeprec.policies.transformers import TransformersPolicy  # noqa: E402
from tiny_models import bytes_tokenizer, tiny  # noqa: E402

TOKENS = torch.arange(3, 63)[None]


def adapted(dtype: torch.dtype, **options: Any) -> Any:
    """A model with an adapter that changes much."""
    torch.manual_seed(1)
    model = copy.deepcopy(tiny(bytes_tokenizer())).to(dtype)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS).logits.float()


def test_in_float32_nothing_changes():
    model = adapted(torch.float32)
    with model.disable_adapter():
        bare = logits(model)
    wanted = logits(model)
    fused = fuse(model)
    assert torch.equal(logits(model), wanted), "peft's model is as it was"
    assert fused.model.embed_tokens is model.base_model.model.model.embed_tokens, "the rest is shared"
    assert not isinstance(fused, peft.PeftModel)
    assert sum(isinstance(module, FusedLoRALinear) for module in fused.modules()) == 2 * 7
    assert (logits(fused) - wanted).abs().max() < 1e-4
    assert (wanted - bare).abs().max() > 1


def test_a_forward_that_a_trainer_put_in_its_place_stays_behind():
    """TRL gives the inner model one that is bound to it, and would run the layers that are not fused."""
    model = adapted(torch.float32)
    wanted, inner = logits(model), model.base_model.model

    def forward(*_, **__):
        raise AssertionError("bound to the model that is trained")

    inner.forward = forward
    assert (logits(fuse(model)) - wanted).abs().max() < 1e-4
    assert inner.forward is forward


def test_in_bfloat16_it_is_as_near_to_the_truth_as_peft_is():
    truth = logits(adapted(torch.float32))
    model = adapted(torch.bfloat16)
    theirs = (logits(model) - truth).norm()
    ours = (logits(fuse(model)) - truth).norm()
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_stay_as_they_are(options):
    model = adapted(torch.float32, **options)
    wanted = logits(model)
    assert fuse(model) is model
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_with_an_adapter_writes_what_peft_s_model_would(tmp_path: Path, dtype: str):
    tiny(bytes_tokenizer()).save_pretrained(tmp_path / "model")
    bytes_tokenizer().save_pretrained(tmp_path / "model")
    model = adapted(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "adapter")
    config = PolicyConfig(model=str(tmp_path / "model"), adapter=str(tmp_path / "adapter"), dtype=dtype, device="cpu")
    policy = TransformersPolicy.load(config, offline=True)
    difference = logits(policy.model) - logits(model)
    assert difference.abs().max() < (1e-4 if dtype == "float32" else 0.5)
    assert not isinstance(policy.model, peft.PeftModel)
