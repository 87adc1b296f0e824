"""Explorations of one prompt in one row, by hand: what stands where, what sees what, and what the model makes of it."""

from __future__ import annotations

import torch

from deeprec.train.packing import pack
from tiny_models import bytes_tokenizer, tiny

# Two explorations of the prompt 7 8, and one of 9; 0 is padding.
TOKENS = torch.tensor([[7, 8, 1, 2, 3], [0, 9, 4, 0, 0], [7, 8, 5, 6, 0]])
REAL = TOKENS > 0
SCORED = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 1, 0]]).bool()


def test_each_prompt_stands_once_before_all_that_goes_on_from_it() -> None:
    row = pack(TOKENS, REAL, SCORED)
    assert row.tokens_1T.tolist() == [[7, 8, 1, 2, 3, 5, 6, 9, 4]]
    assert row.places_1T.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1]]
    assert row.before_N.tolist() == [1, 3, 7, 1, 5]  # of 1, 3; 4; 5, 6
    assert row.seen_11TT is not None
    assert row.seen_11TT[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_one_exploration_alone_needs_no_mask_and_no_padding() -> None:
    row = pack(TOKENS[1:2], REAL[1:2], SCORED[1:2])
    assert row.tokens_1T.tolist() == [[9, 4]]
    assert row.seen_11TT is None
    assert row.before_N.tolist() == [0]


def test_the_model_tells_of_each_token_what_it_tells_of_the_exploration_alone() -> None:
    model = tiny(bytes_tokenizer()).eval()
    row = pack(TOKENS, REAL, SCORED)
    with torch.no_grad():
        packed = model(row.tokens_1T, attention_mask=row.seen_11TT, position_ids=row.places_1T).logits[0, row.before_N]
        alone = []
        for tokens, real, scored in zip(TOKENS, REAL, SCORED, strict=True):
            logits = model(tokens[real][None]).logits[0]
            first = int(real[:2].sum())
            alone += [logits[first + place - 1] for place in scored.nonzero()[:, 0]]
    torch.testing.assert_close(packed, torch.stack(alone), atol=1e-5, rtol=1e-4)
