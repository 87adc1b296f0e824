"""The network of the TRM: a causal sequence encoder whose user vector a preference can move."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.config import TRMConfig
from deeprec.trm.layers import Block, Dropout

HEADS = 2
DROPOUT = 0.2
ID_DROPOUT = 0.1
"""Share of items that a training step knows by their text alone."""
_LOUDNESS = 8.0
"""Factor on the preference's unit vector, whose numbers are so small that its projection would learn too slowly."""
_STEEP = 4.0
"""Where learning begins: a preference at distance 0 from the themes counts for half, at 1 wholly."""


class PreferenceSASRec(nn.Module):
    """SASRec (Kang and McAuley, ICDM 2018) with item text and a preference.

    An item is its id embedding plus a projection of its frozen text embedding. The user vector is the normalised
    state at the last item. A preference adds a projection of its text vector, weighed by a gate that sees both, and
    takes back (by a learned matrix) what the history had said already; without one nothing is added. All of it is
    scaled by how new the preference is, which is learned from its distance to the history's themes. Scores are
    dot products with the item vectors.

    Rows are padded on the right with the index `n_items`; being causal, the encoder needs no mask for that.
    """

    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__()
        n_items, text_width = text_ID.shape
        width = config.width
        self.text_ID = text_ID  # no buffer: it is large, never changes, and need not be copied with the weights
        self.ids = nn.Embedding(n_items, width)
        self.ids_dropped = ID_DROPOUT
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
        nn.init.constant_(self.novelty_gate.weight, _STEEP)
        for embedding in (self.ids, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def items(self) -> Tensor:
        """Item vectors (I, D). In training some lose their id, so that an item can be known by its text alone."""
        ids_ID = self.ids.weight
        if self.training and self.ids_dropped:
            ids_ID = ids_ID * (torch.rand(ids_ID.shape[0], 1, device=ids_ID.device) >= self.ids_dropped)
        return ids_ID + self.text(self.text_ID)

    def encode(self, items_ID: Tensor, rows_BT: Tensor) -> Tensor:
        """States (B, T, D) after each item of the rows, before the preference."""
        padded = F.pad(items_ID, (0, 0, 0, 1))
        x_BTD = self.dropout(F.embedding(rows_BT, padded) + self.positions.weight[: rows_BT.shape[1]])
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD

    def condition(
        self, states_ND: Tensor, preferences_NE: Tensor, frequent_NE: Tensor, preference_weight_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """User vectors (N, D) from states and vectors of preferences, and how far each preference was heard (N,).

        That is as far as it is trusted (`trust_N`, 0..1) and news: `themes_NE` are the vectors of what the histories
        themselves would state.
        """
        users_ND = self.norm(states_ND)
        said_ND = self.preference(_LOUDNESS * preferences_NE)
        gates_ND = 2 * torch.sigmoid(self.gate(torch.cat([users_ND, said_ND], dim=1)))
        novelty_N = torch.sigmoid(self.novelty_gate((preferences_NE - frequent_NE).norm(dim=1, keepdim=True)))[:, 0]
        applied_N = preference_weight_N * novelty_N
        return users_ND + applied_N[:, None] * (gates_ND * said_ND + self.history_correction(users_ND)), applied_N
