"""Prompt-lookup decoding: guesses of the next tokens, from what followed the same two tokens before.

An exploration repeats much: the protocol's tags, titles that the tool showed, turns of phrase. One forward pass checks
several guessed tokens at little more than the cost of one, since a decoding step waits for the weights to be read
(Leviathan et al., ICML 2023; without a second model: prompt lookup, Saxena 2023). A guess changes nothing but speed:
each token is drawn from the model's own distribution, and the first that differs from its guess ends the step.
"""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 500_000  # pairs that a table may hold; a fuller one is cleared


class PromptLookup:
    """The token that followed each pair of tokens last."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}

    def learn(self, context: Sequence[int], start: int) -> None:
        """Record the tokens of a context from position `start` on."""
        if len(self._after) > _MOST:
            self._after.clear()
        for position in range(max(start, 2), len(context)):
            self._after[context[position - 2], context[position - 1]] = context[position]

    def guess(self, context: Sequence[int], most: int, others: PromptLookup) -> list[int]:
        """The next tokens, up to `most`; for pairs that are unknown here, those of `others`."""
        found: list[int] = []
        pair = tuple(context[-2:])
        while len(found) < most and (after := self._after.get(pair, others._after.get(pair))) is not None:
            found.append(after)
            pair = (pair[1], after)
        return found
