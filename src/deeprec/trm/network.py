"""The network of the TRM: a causal sequence encoder whose user vector a preference moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.config import TRMConfig
from deeprec.trm.layers import Block, Dropout

HEADS = 2
DROPOUT = 0.2
ID_DROPOUT = 0.1  # share of items that a training step knows by their text alone
_PREFERENCE_SCALE = 8.0
"""Of the preference's unit vector, whose components are so small that its projection would learn too slowly."""
_NOVELTY_SLOPE = 4.0
"""Initial weight of the novelty gate: 0.5 for a preference equal to the frequent phrases, nearly 1 at distance 1."""


class PreferenceSASRec(nn.Module):
    """SASRec (Kang and McAuley, ICDM 2018) with item text and a preference.

    An item vector is the id embedding plus a projection of the frozen text embedding. The user vector is the normalised
    state at the last item. A preference adds two terms: a gated projection of its text vector, and a history correction
    (a learned matrix times the user vector). Both are scaled by the novelty gate, which learns from the distance
    between the preference and the history's frequent phrases. Scores are inner products with the item vectors.

    Rows are padded on the right with the index `n_items`; the encoder is causal, so it needs no mask.
    """

    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__()
        n_items, text_width = text_ID.shape
        width = config.width
        self.text_ID = text_ID  # no buffer: it is large and constant, and need not be copied with the weights
        self.ids = nn.Embedding(n_items, width)
        self.id_dropout = ID_DROPOUT
        self.text = nn.Linear(text_width, width, bias=False)
        self.positions = nn.Embedding(config.history, width)
        self.dropout = Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(width, HEADS, DROPOUT) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.preference = nn.Linear(text_width, width, bias=False)
        self.gate = nn.Linear(2 * width, width)
        self.history_correction = nn.Linear(width, width, bias=False)
        self.novelty_gate = nn.Linear(1, 1)
        for weight in (self.gate.weight, self.gate.bias, self.history_correction.weight, self.novelty_gate.bias):
            nn.init.zeros_(weight)
        nn.init.constant_(self.novelty_gate.weight, _NOVELTY_SLOPE)
        for embedding in (self.ids, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def items(self) -> Tensor:
        """Item vectors (I, D). In training a random share lacks the id, so that text alone suffices for a new item."""
        ids_ID = self.ids.weight
        if self.training and self.id_dropout:
            ids_ID = ids_ID * (torch.rand(ids_ID.shape[0], 1, device=ids_ID.device) >= self.id_dropout)
        return ids_ID + self.text(self.text_ID)

    def encode(self, items_ID: Tensor, rows_BT: Tensor) -> Tensor:
        """States (B, T, D) after each item of the rows; the preference plays no part yet."""
        padded = F.pad(items_ID, (0, 0, 0, 1))
        x_BTD = self.dropout(F.embedding(rows_BT, padded) + self.positions.weight[: rows_BT.shape[1]])
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD

    def condition(
        self, states_ND: Tensor, preferences_NE: Tensor, frequent_NE: Tensor, preference_weight_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """User vectors (N, D), and the weight (N,) with which each preference was applied.

        That weight is `preference_weight_N` (0..1) times the novelty gate, which compares the preferences with
        `frequent_NE`, the vectors of the histories' frequent phrases.
        """
        users_ND = self.norm(states_ND)
        projected_ND = self.preference(_PREFERENCE_SCALE * preferences_NE)
        gates_ND = 2 * torch.sigmoid(self.gate(torch.cat([users_ND, projected_ND], dim=1)))
        novelty_N = torch.sigmoid(self.novelty_gate((preferences_NE - frequent_NE).norm(dim=1, keepdim=True)))[:, 0]
        applied_N = preference_weight_N * novelty_N
        return users_ND + applied_N[:, None] * (gates_ND * projected_ND + self.history_correction(users_ND)), applied_N
