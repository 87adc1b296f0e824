"""A LoRA adapter beside bfloat16 weights, in two products a layer; peft takes eight operations, most of them casts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F


class FusedLoRALinear(nn.Module):
    """`W x + scaling B A x`, where `[W; A]` is one matrix. Not merged: bfloat16 would round most of `B A` away."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        (name,) = layer.active_adapters
        base: Any = layer.get_base_layer()
        lora: Any = layer  # its dictionaries are untyped
        down_RI, up_OR = lora.lora_A[name].weight, lora.lora_B[name].weight
        self.width = base.out_features
        self.weight = nn.Parameter(torch.cat([base.weight, down_RI.to(base.weight.dtype)]), requires_grad=False)
        up_RO = (up_OR.detach().float() * layer.scaling[name]).T.to(base.weight.dtype).contiguous()
        self.up_RO = nn.Parameter(up_RO, requires_grad=False)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        both = F.linear(x, self.weight)
        y = both[..., : self.width] + both[..., self.width :] @ self.up_RO
        return y if self.bias is None else y + self.bias


@torch.no_grad()
def fuse(model: PeftModel) -> Any:
    """The base model with the present adapter in its layers, for inference; it shares everything else with the model.

    Returns peft's model itself if the adapter is of another kind, or weights are elsewhere (ZeRO-3, FSDP).
    """
    inner: Any = model.base_model.model
    plain = all(_plain(module) for module in inner.modules() if hasattr(module, "lora_A"))
    return _fused(inner) if plain else model


def _fused(module: Any) -> Any:
    if hasattr(module, "lora_A"):
        return FusedLoRALinear(module)
    if not any(hasattr(inner, "lora_A") for inner in module.modules()):
        return module
    shared = copy.copy(module)
    shared.__dict__.pop("forward", None)  # one that a trainer put there is bound to the module itself
    shared._modules = {name: _fused(child) for name, child in module._modules.items()}
    return shared


def _plain(layer: Any) -> bool:
    return (
        type(layer) is Linear
        and isinstance(layer.get_base_layer(), nn.Linear)
        and layer.get_base_layer().weight.shape == (layer.out_features, layer.in_features)
        and len(layer.active_adapters) == 1
        and not any(layer.use_dora.values())
        and not any(layer.lora_bias.values())
    )
