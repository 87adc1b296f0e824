"""The network of the TRM: a causal sequence encoder whose user vector a preference can move."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from deeprec.config import TRMConfig


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, causal."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_inner = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.norm_attention(x_BTD)).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_BTD = x_BTD + self.dropout(self.out(mixed.transpose(1, 2).reshape(B, T, D)))
        return x_BTD + self.dropout(self.inner(self.norm_inner(x_BTD)))


class PreferenceSASRec(nn.Module):
    """SASRec (Kang and McAuley, ICDM 2018) with item text and a preference.

    An item is its id embedding plus a projection of its frozen text embedding. The user vector is the state at the
    last item plus a projection of the preference's text embedding, normalised together, as in the paper's code;
    without a preference nothing is added. Scores are dot products with the item vectors.

    Rows are padded on the right with the index `n_items`; being causal, the encoder needs no mask for that.
    """

    text_ID: Tensor

    def __init__(self, config: TRMConfig, text_ID: Tensor) -> None:
        super().__init__()
        n_items, text_width = text_ID.shape
        width = config.width
        self.register_buffer("text_ID", text_ID)
        self.ids = nn.Embedding(n_items, width)
        self.text = nn.Linear(text_width, width, bias=False)
        self.places = nn.Embedding(config.history, width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.dropout) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.preference = nn.Linear(text_width, width)
        self.norm = nn.LayerNorm(width)
        for embedding in (self.ids, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def items(self) -> Tensor:
        """Item vectors (I, D)."""
        return self.ids.weight + self.text(self.text_ID)

    def encode(self, items_ID: Tensor, rows_BT: Tensor) -> Tensor:
        """States (B, T, D) after each item of the rows, before the preference."""
        padded = F.pad(items_ID, (0, 0, 0, 1))
        x_BTD = F.embedding(rows_BT, padded) + self.places.weight[: rows_BT.shape[1]]
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD

    def listen(self, states_ND: Tensor, preferences_NE: Tensor, given_N: Tensor) -> Tensor:
        """User vectors (N, D) from states and text embeddings of preferences; `given_N` says which count."""
        return self.norm(states_ND + self.preference(preferences_NE) * given_N[:, None])
