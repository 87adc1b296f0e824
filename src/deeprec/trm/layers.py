"""The network's block, and faster replacements of PyTorch's dropout and cross-entropy."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_ROWS = 256  # users whose logits over the catalogue are held at once, so that they stay in the processor's cache


class Dropout(nn.Module):
    """Dropout whose masks come from random bytes, which a processor draws faster than PyTorch's own masks.

    The rate is rounded to 1/256, and kept values are scaled by the rounded rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = min(round(256 * rate), 255)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept.to(x.dtype).mul_(256 / (256 - self.dropped))


class _CatalogueLoss(torch.autograd.Function):
    """Computes the gradients of a block of rows together with its logits, which then need not be kept."""

    @staticmethod
    def forward(ctx: Any, users_ND: Tensor, items_ID: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        n = users_ND.shape[0]
        low_ID = items_ID.to(dtype)
        low_DI = low_ID.T.contiguous()
        user_gradient_ND = torch.empty_like(users_ND)
        item_gradient_ID = torch.zeros_like(items_ID)
        total = users_ND.new_zeros(())
        for start in range(0, n, _ROWS):
            users_BD = users_ND[start : start + _ROWS]
            weights_BI = (users_BD.to(dtype) @ low_DI).float()
            highest_B1 = weights_BI.amax(1, keepdim=True)
            weights_BI.sub_(highest_B1).exp_()
            sums_B1 = weights_BI.sum(1, keepdim=True)
            total += (sums_B1.log() + highest_B1).sum()
            low_BI = weights_BI.to(dtype)
            user_gradient_ND[start : start + _ROWS] = (low_BI @ low_ID).float() / sums_B1
            item_gradient_ID += low_BI.T @ (users_BD / sums_B1).to(dtype)
        wanted_ND = items_ID[targets_N]
        user_gradient_ND -= wanted_ND
        item_gradient_ID.index_add_(0, targets_N, users_ND, alpha=-1)
        ctx.save_for_backward(user_gradient_ND / n, item_gradient_ID / n)
        return (total - (users_ND * wanted_ND).sum()) / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        users_ND, items_ID = ctx.saved_tensors
        return gradients[0] * users_ND, gradients[0] * items_ID, None, None


def catalogue_loss(users_ND: Tensor, items_ID: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy (nats, a scalar) of the targets under the softmax of `users_ND @ items_ID.T`.

    `F.cross_entropy` without N x I logits in memory, differentiable once. Matrix products are in `dtype`, sums and
    exponentials in float32.
    """
    return cast(Tensor, _CatalogueLoss.apply(users_ND, items_ID, targets_N, dtype))


def product_dtype() -> torch.dtype:
    """bfloat16 if the processor multiplies it faster than float32, else float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("amx_bf16") else torch.float32


class Block(nn.Module):
    """Causal self-attention and feed-forward, both pre-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_inner = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)

    def attend(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attend(x_BTD))
        return x_BTD + self.dropout(self.inner(self.norm_inner(x_BTD)))
