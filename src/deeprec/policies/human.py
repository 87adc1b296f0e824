"""A person is the policy: preferences and a ranking typed at the terminal, through the same protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeprec.explore import protocol
from deeprec.policies.scripted import list_titles


@dataclass(frozen=True, slots=True)
class HumanWriter:
    """Asks for a preference until an empty line or the last call, then for a ranking of the retrieved titles.

    `ask` shows a question and returns a line, as `input` does; `show` prints a line.
    """

    ask: Callable[[str], str]
    show: Callable[[str], None]
    answer_size: int
    max_calls: int

    def __call__(self, conversation: str) -> str:
        lists = list_titles(conversation)
        if len(lists) < self.max_calls:
            question = "What to look for (phrases joined by ;, empty to rank what you found): "
            if preference := self.ask(question).strip():
                return protocol.call_text("", preference)
        pool = list(dict.fromkeys(title for titles in lists for title in titles))
        for number, title in enumerate(pool, start=1):
            self.show(f"{number:4}. {title}")
        answer = self.ask(f"Your {self.answer_size} best, as numbers joined by spaces: ")
        chosen = [int(word) for word in answer.replace(",", " ").split() if word.isdecimal()]
        titles = list(dict.fromkeys(pool[number - 1] for number in chosen if 1 <= number <= len(pool)))
        return protocol.answer_text("I rank what I found.", titles)
