"""Constrained sampling where this process chooses the tokens: llguidance says which may come, for any tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deeprec.errors import DeepRecError
from deeprec.explore.policy import Constraint
from deeprec.policies.grammar import AnswerGrammar, alternatives
from deeprec.policies.tokenizer import TokenizerCodec, explain_errors, refuse_missing

if TYPE_CHECKING:
    from llguidance import LLMatcher


class TokenMatchers:
    """Makes matchers over one tokenizer's tokens. Keep it: reading a vocabulary takes half a second."""

    def __init__(self, codec: TokenizerCodec) -> None:
        try:
            from llguidance import hf
        except ImportError:
            refuse_missing("explore.answer='pool'", "llguidance", "--editable '.[constrained]'")
        self.codec = codec
        with explain_errors("explore.answer='pool': this tokenizer can't be constrained"):
            # Its slices speed up the masks of wide grammars; ours are narrow.
            self.tokenizer = hf.from_tokenizer(codec.tokenizer, slices=[])

    def matcher(self, texts: Iterable[str]) -> LLMatcher:
        """Matches one of the texts, none of which begins another."""
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {alternatives(texts)}")
        return LLMatcher(self.tokenizer, grammar, log_level=0)


class ConstrainedSampler:
    """Picks the tokens of one segment, as its grammar allows."""

    def __init__(self, constraint: Constraint, matchers: TokenMatchers) -> None:
        self.grammar = AnswerGrammar(constraint, matchers.codec)
        self.matchers = matchers
        self._choices: dict[str, str | None] = {}
        self._matcher: LLMatcher | None = None  # of these choices

    def pick(self, scores_V: Tensor, draw: Callable[[Tensor], int]) -> int:
        """The next allowed token, drawn by log-probabilities (V,) or, greedily, by any scores."""
        if not self.grammar.choices and self.grammar.take(token := draw(scores_V)):
            return token
        if self._matcher is None or self._choices is not self.grammar.choices:
            self._choices = self.grammar.choices
            self._matcher = self.matchers.matcher(self._choices)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        open_N = torch.from_numpy(np.flatnonzero(np.unpackbits(bits, bitorder="little"))).to(scores_V.device)
        if self._matcher.is_error() or not len(open_N):
            raise DeepRecError(f"explore.answer='pool': a title can't be written: {self._matcher.get_error()}")
        allowed_V = torch.full_like(scores_V, -torch.inf)
        allowed_V[open_N] = scores_V[open_N].log_softmax(-1)
        token = draw(allowed_V)
        self._matcher.consume_token(token)
        self.grammar.take(token)
        return token
