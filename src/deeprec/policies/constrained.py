"""Answers held to a constraint: which tokens may come next, whatever the tokenizer.

llguidance tells them by a grammar. One of a whole answer, each title at most once, would hold all orders of the titles,
so each line has its own, of the titles that are left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deeprec.errors import DeepRecError
from deeprec.explore import protocol
from deeprec.policies.policy import Constraint
from deeprec.policies.tokens import TokenizerCodec, brief

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammars:
    """Makes grammars over one tokenizer's tokens; to be kept, since reading a vocabulary takes half a second.

    Raises:
        DeepRecError: llguidance is missing, or does not know such a tokenizer.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        try:
            from llguidance import hf
        except ImportError:
            raise DeepRecError(
                "explore.answer='pool' needs llguidance: pip install --editable '.[constrained]'."
            ) from None
        self.codec = codec
        try:
            # Its slices speed up the masks of wide grammars; ours are narrow.
            self.tokenizer = hf.from_tokenizer(codec.tokenizer, slices=[])
        except Exception as error:  # noqa: BLE001 (whatever a foreign tokenizer makes it raise)
            raise DeepRecError(f"explore.answer='pool': this tokenizer can't be constrained: {brief(error)}") from None

    def of(self, texts: list[str]) -> LLMatcher:
        """Matches one of the texts, none of which begins another."""
        from llguidance import LLMatcher

        text = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        return LLMatcher(self.tokenizer, LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {text}"), log_level=0)


class Held:
    """A segment under a constraint: free until the answer opens, then nothing but lines of titles, then free again."""

    def __init__(self, constraint: Constraint, grammars: Grammars) -> None:
        self.constraint = constraint
        self.grammars = grammars
        self._left: list[str] = []
        self._lines = 0
        self._matcher: LLMatcher | None = None
        self._closed = False
        self._tokens: list[int] = []
        """Before the answer the last ones, in it those of the line."""

    def pick(self, scores_V: Tensor, draw: Callable[[Tensor], int]) -> int:
        """The next token of those that may come, drawn by log-probabilities (V,) or, greedily, by any scores."""
        if self._matcher is not None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            open_N = torch.from_numpy(np.flatnonzero(np.unpackbits(bits, bitorder="little"))).to(scores_V.device)
            if self._matcher.is_error() or not len(open_N):
                raise DeepRecError(f"explore.answer='pool': a title can't be written: {self._matcher.get_error()}")
            held_V = torch.full_like(scores_V, -torch.inf)
            held_V[open_N] = scores_V[open_N].log_softmax(-1)
            token = draw(held_V)
            self._write(self._matcher, token)
            return token
        while self._breaks(token := draw(scores_V)):
            banned = torch.tensor([token], device=scores_V.device)
            scores_V = scores_V.index_fill(0, banned, -torch.inf).log_softmax(-1)
        return token

    def _breaks(self, token: int) -> bool:
        """Takes on a token of the free text, unless it opens the answer and brings what does not belong there.

        A token may hold more than the tag's end: `></` would.
        """
        opening = self.constraint.opening
        tokens = [*self._tokens, token]
        _, opened, rest = self.grammars.codec.decode(tokens).partition(opening)
        if opened and not self._closed:
            if rest not in ("", "\n"):
                return True
            codec = self.grammars.codec
            # What the tokenizer has no tokens for can't be written: Unicode's rarest characters, of some.
            self._left = [title for title in self.constraint.titles if codec.decode(codec.encode(title)) == title]
            self._begin("" if rest else "\n")
        else:
            self._tokens = tokens[-len(opening.encode()) :]
        return False

    def _begin(self, before: str = "") -> None:
        """A new line, or the end of the answer."""
        ended = self._lines == self.constraint.lines or not self._left
        number = self._lines + 1
        lines = [protocol.answer_line(number, title) for title in dict.fromkeys(self._left)]
        texts = [self.constraint.closing] if ended else lines
        self._tokens = []
        self._matcher = self.grammars.of([before + text for text in texts])

    def _write(self, matcher: LLMatcher, token: int) -> None:
        matcher.consume_token(token)
        self._tokens.append(token)
        if not matcher.is_stopped():
            return
        line = self.grammars.tokenizer.decode_str(self._tokens).removeprefix("\n")
        if line == self.constraint.closing:
            self._closed, self._matcher, self._tokens = True, None, []
            return
        self._lines += 1
        self._left.remove(next(title for title in self._left if protocol.answer_line(self._lines, title) == line))
        self._begin()
