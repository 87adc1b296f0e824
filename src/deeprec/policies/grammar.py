"""The grammar of an answer that may hold certain titles only, line by line, whichever engine chooses the tokens.

A grammar of a whole answer, with each title at most once, would have to hold all orders of the titles. So an engine
restricts one line at a time to the titles that are left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from deeprec.explore import protocol
from deeprec.explore.policy import Constraint
from deeprec.policies.tokenizer import TokenizerCodec


def alternatives(texts: Iterable[str]) -> str:
    """One of the texts, in the form of both Lark and EBNF: they quote as JSON does."""
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


class AnswerGrammar:
    """A segment under a constraint: free until the answer opens, then nothing but lines of titles, then free again.

    `choices` has the texts, none of which begins another, that the next tokens may write, each with its title (None:
    the end of the answer). If it is empty, tokens are free.
    """

    def __init__(self, constraint: Constraint, codec: TokenizerCodec) -> None:
        self.constraint, self.codec = constraint, codec
        self.choices: dict[str, str | None] = {}
        self._left: list[str] = []
        self._count = 0
        self._closed = False
        self._tokens: list[int] = []  # before the answer the last ones, in the answer those of the line
        self._begun = constraint.begun or ""  # the part of the line that the context already has
        if self._begun:
            self._open_answer()
            # With its own tokens before them: some decoders drop a space at the very beginning.
            self._tokens = codec.encode(self._begun)
            self.choices = {text.removeprefix(self._begun): title for text, title in self.choices.items()}

    def take(self, token: int) -> bool:
        """Advance by a token. False rejects one that opens the answer but holds more text (as `></`): `choices` has
        what may stand in its position."""
        tokens = [*self._tokens, token]
        text = self.codec.decode(tokens)
        if self.choices:
            self._tokens = tokens
            if (line := text.removeprefix(self._begun)) in self.choices:
                self._end_line(self.choices[line])
            return True
        opening = self.constraint.opening
        before, opened, rest = text.partition(opening)
        if not opened or self._closed:
            self._tokens = tokens[-len(opening.encode()) :]
            return True
        fits = rest in ("", "\n")
        written = text if fits else self.codec.decode(self._tokens)
        self._open_answer(f"{opening}\n"[len(written) - len(before) :])
        return fits

    def _open_answer(self, before: str = "") -> None:
        # Some tokenizers have no tokens for Unicode's rarest characters, so titles with them can't be written.
        self._left = [title for title in self.constraint.titles if self.codec.decode(self.codec.encode(title)) == title]
        self._begin_line(before)

    def _begin_line(self, before: str = "") -> None:
        self._tokens = []
        if self._count == self.constraint.lines or not self._left:
            self.choices = {before + self.constraint.closing: None}
        else:
            self.choices = {before + protocol.answer_line(self._count + 1, title): title for title in self._left}

    def _end_line(self, title: str | None) -> None:
        if title is None:
            self._closed, self.choices, self._tokens = True, {}, []
            return
        self._count += 1
        self._begun = ""
        self._left.remove(title)
        self._begin_line()
