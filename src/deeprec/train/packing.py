"""Several explorations of one prompt as one row, in which the prompt stands once: what a group has in common is read
once in learning, as it is in exploring."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """A row of T tokens, and where in it the N scored ones are.

    Attributes:
        places_1T: of each token in its own exploration.
        seen_11TT: whether a token (first T) sees another; None where it sees all before it.
        before_N: the place right before each scored token, whose logits tell of it.
    """

    tokens_1T: Tensor
    places_1T: Tensor
    seen_11TT: Tensor | None
    before_N: Tensor


def pack(tokens_BT: Tensor, real_BT: Tensor, scored_BC: Tensor) -> Packed:
    """Prompts, padded in front, and completions, padded behind, one after another: each prompt once, then all that goes
    on from it.

    Args:
        real_BT: whether a token is no padding; bool, as `scored_BC`.
        scored_BC: which tokens of the completions are wanted; in `before_N` row after row.
    """
    B, C = scored_BC.shape
    P = tokens_BT.shape[1] - C
    prompts = [tokens_BT[b, :P][real_BT[b, :P]] for b in range(B)]
    answers = [tokens_BT[b, P:][real_BT[b, P:]] for b in range(B)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt.tolist()), []).append(b)
    device = tokens_BT.device
    tokens, places, groups_of, rows_of = [], [], [], []  # of a prompt's tokens the row is -1
    before: list[Tensor] = [torch.empty(0)] * B
    length = 0
    for g, rows in enumerate(groups.values()):
        prompt = prompts[rows[0]]
        end = length + len(prompt)
        for b, part in ((-1, prompt), *((b, answers[b]) for b in rows)):
            start = 0 if b < 0 else len(prompt)
            if b >= 0:
                ahead = torch.arange(length - 1, length + len(part) - 1, device=device)
                ahead[:1] = end - 1
                before[b] = ahead[scored_BC[b, : len(part)]]
            tokens.append(part)
            places.append(torch.arange(start, start + len(part), device=device))
            groups_of.append(torch.full((len(part),), g, device=device))
            rows_of.append(torch.full((len(part),), b, device=device))
            length += len(part)
    seen = None
    if B > 1:
        group_T, row_T, place_T = torch.cat(groups_of), torch.cat(rows_of), torch.arange(length, device=device)
        alike_TT = (row_T[None, :] < 0) | (row_T[None, :] == row_T[:, None])
        seen = (group_T[None, :] == group_T[:, None]) & alike_TT & (place_T[None, :] <= place_T[:, None])
        seen = seen[None, None]
    return Packed(torch.cat(tokens)[None], torch.cat(places)[None], seen, torch.cat(before))
