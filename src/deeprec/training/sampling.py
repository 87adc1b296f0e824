"""Who explores with the weights of the present step: the trained model itself, or vLLM."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel

from deeprec.explore.policy import Policy
from deeprec.policies.fused_lora import fuse
from deeprec.policies.transformers import TransformersPolicy
from deeprec.policies.vllm import VllmPolicy

# Makes, of the model and its tokenizer, a policy that writes with the model's present weights; its seconds are 0.
Sampler = Callable[[Any, Any], Policy]


def in_process(model: Any, tokenizer: Any) -> TransformersPolicy:
    """The trained model itself, its adapter fused into the layers, which is faster than peft's forward pass."""
    return TransformersPolicy(fuse(model) if isinstance(model, PeftModel) else model, tokenizer)


class VllmSampler:
    """Gives vLLM the weights of each step: an adapter as a file, whole weights in memory."""

    def __init__(self, policy: VllmPolicy) -> None:
        self.policy = policy

    def __call__(self, model: Any, tokenizer: Any) -> VllmPolicy:
        if isinstance(model, PeftModel):
            folder = tempfile.TemporaryDirectory(prefix="deeprec-")
            model.save_pretrained(folder.name)
            self.policy.use_adapter(Path(folder.name))
            self._folder = folder  # removes the one before
        else:
            self.policy.use_weights(model.named_parameters())
        self.policy.seconds = dict.fromkeys(self.policy.seconds, 0.0)
        return self.policy
