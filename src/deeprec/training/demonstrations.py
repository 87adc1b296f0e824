"""Explorations written with hindsight, from which a small model learns the protocol and where histories head.

The teacher knows what a training user chose next (never a validation or test item) and writes as a good explorer
would have: it names the latest titles and what the history is mostly of, then what of the rest comes again in the next
items, and answers with what came back, in the TRM's order. A student that imitates it learns the protocol, to copy
titles as they are, and to say what brings the most on the average. Better words and rankings are left to reinforcement
learning.

The first call has no hindsight: when it named the titles most like the next item, the student, who can't know them,
named some of the six, and that was worth nothing to the TRM (docs/training.md).

Lessons have limits of their own, so that the student reads them: from lessons of three calls alone SmolLM2-135M learned
to count lists, and called on where fewer were allowed.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeprec.config import ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx, without_year
from deeprec.data.dataset import Task
from deeprec.explore import protocol
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Request
from deeprec.explore.protocol import Fault
from deeprec.explore.trace import Trace
from deeprec.policies.scripted import list_titles
from deeprec.policies.text import Codec, TextPolicy
from deeprec.retrieval.bm25 import BM25
from deeprec.retrieval.retriever import Retriever
from deeprec.trm.preferences import TITLES, frequent_phrases, item_phrases

AHEAD = 5
"""Items that followed which a later preference may foresee."""
_NAMES = 2
"""Titles of the history in a later preference, at most."""
_NAME_WORDS = 6
"""Of a title, the words that name it: what follows in long ones are sizes and packs."""

_FIRST = (
    "After {last}, the history turns to",
    "{last} came last. Next may be",
    "Much here is {theme}, and {last} came last. I look for",
    "The history is mostly {theme}. From {last} I expect",
    "What links {last} with the titles before it is",
)
_LATER = (
    "{found} came back on top. I also look at",
    "Titles like {found} fit one side of the history. Another side is",
    "{found} is close. More particular:",
    "Beside {found}, the next step could be",
)
# Whether to call on or to answer is said by the first word, right after what the tool said of calls left.
_LAST = (
    "I rank {found} and what fits the latest titles first.",
    "I rank by what the latest titles ask for; {found} was a good sign.",
    "I rank what all lists brought, what is closest to {last} first.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of an exploration, and which of them are learned."""

    tokens: tuple[int, ...]
    learned: tuple[bool, ...]


class DemonstrationPolicy(TextPolicy):
    """Writes each task's exploration with hindsight; see the module.

    Args:
        followed: by task id what the user chose next, the target first.
        codec: of the model that is to learn.
        config: what the student is to explore with. Half of the lessons or more have its `max_calls` and three
            quarters its `answer_size`, the others less.
        seed: of the limits, and of what is said where several things could be.
    """

    def __init__(
        self,
        catalog: Catalog,
        tasks: Sequence[Task],
        followed: Mapping[str, Sequence[ItemIdx]],
        codec: Codec,
        config: ExploreConfig,
        *,
        seed: int,
    ) -> None:
        super().__init__(lambda conversation: "", codec)
        self.catalog = catalog
        self.tasks = {task.id: task for task in tasks}
        self.followed = followed
        self.config = config
        self.seed = seed
        self.faults: Counter[Fault] = Counter()
        self._said: defaultdict[str, list[str]] = defaultdict(list)
        self._bm25 = BM25(catalog)

    def examples(self, retriever: Retriever) -> Iterator[tuple[Trace, Example]]:
        """Explore for all tasks, in the order in which they end; what has a fault (too few titles) is left out."""
        self._said.clear()
        explorer = Explorer(self, retriever, self.catalog, self.config)
        for _, trace in explorer.stream(self.tasks.values(), config_of=self.limits):
            self.faults.update(trace.faults)
            if trace.well_formed:
                tokens, written, _ = trace.tokens()
                yield trace, Example(tuple(tokens), tuple(written))

    def limits(self, task: Task) -> ExploreConfig:
        """Of the task's lesson."""
        rng = random.Random(f"{self.seed}:{task.id}:limits")
        most, size = self.config.max_calls, self.config.answer_size
        calls = most if rng.random() < 0.5 else rng.randint(1, most)
        answer = size if rng.random() < 0.75 else rng.randint(1, size)
        return self.config.model_copy(update={"max_calls": calls, "answer_size": answer})

    def _text(self, request: Request) -> str:
        task = self.tasks[request.key.partition(":")[2]]
        limits = self.limits(task)
        lists = list_titles(self.decode(request.context))
        rng = random.Random(f"{self.seed}:{task.id}:{len(lists)}")
        # From two on, where so many may be: whoever may call once more must have learned to answer after that too.
        calls = random.Random(f"{self.seed}:{task.id}").randint(min(2, limits.max_calls), limits.max_calls)
        if len(lists) < calls:
            return self._call(rng, task, lists, self._said[request.key])
        titles = [title for found in lists for title in found][: limits.answer_size]
        return protocol.answer_text(self._thought(rng, _LAST, task, lists), titles)

    def _call(self, rng: random.Random, task: Task, lists: Sequence[Sequence[str]], said: list[str]) -> str:
        phrases = self._latest(task) if not lists else self._particular(rng, task, said)
        said += phrases
        thought = self._thought(rng, _LATER if lists else _FIRST, task, lists)
        return protocol.call_text(thought, "; ".join(phrases))

    def _latest(self, task: Task) -> list[str]:
        """Names of the latest items, the last one first, and the kind that the shown history has most of."""
        shown = self._shown(task)
        names = dict.fromkeys(map(self._name, reversed(shown[-TITLES:])))
        return [*names, *frequent_phrases(self.catalog, shown)[:1]]

    def _particular(self, rng: random.Random, task: Task, said: Sequence[str]) -> list[str]:
        """What was not said yet: names of what is like the next items, or one or two phrases of theirs that the history
        has too, or the latest name, or a phrase of the latest item."""
        ahead = self.followed[task.id][:AHEAD]
        names = [name for name in self._alike(task, ahead) if name not in said]
        if names:
            return names[:_NAMES]
        shown = self._shown(task)
        known = {phrase for item in shown for phrase in item_phrases(self.catalog, item)}
        for item in ahead:
            again = [phrase for phrase in item_phrases(self.catalog, item) if phrase in known and phrase not in said]
            if again:
                return rng.sample(again, min(rng.randint(1, 2), len(again)))
        rest = [self._name(item) for item in reversed(shown)]
        rest += [phrase for item in reversed(shown) for phrase in reversed(item_phrases(self.catalog, item))]
        return [next((phrase for phrase in rest if phrase not in said), "something else")]

    def _alike(self, task: Task, ahead: Sequence[ItemIdx]) -> list[str]:
        """Names of the shown items that share words with what follows, the most alike first, of equals the latest."""
        names = list(dict.fromkeys(map(self._name, reversed(self._shown(task)))))
        likeness_N = self._bm25.scores(names)[:, list(ahead)].toarray().max(axis=1)
        return [names[position] for position in np.argsort(-likeness_N, kind="stable") if likeness_N[position] > 0]

    def _shown(self, task: Task) -> Sequence[ItemIdx]:
        """What the prompt shows of the history."""
        return task.history[-self.config.history :]

    def _name(self, item: ItemIdx) -> str:
        """Of an item: its title's first words, without the year; one phrase, as a preference is read."""
        title = without_year(self.catalog.titles[item], self.catalog.years[item])
        short = " ".join(title.split()[:_NAME_WORDS])
        return short.replace(";", ",").rstrip(" ,:-") or "something else"

    def _thought(self, rng: random.Random, forms: Sequence[str], task: Task, lists: Sequence[Sequence[str]]) -> str:
        last = self.catalog.titles[task.history[-1]]
        found = next((titles[0] for titles in reversed(lists) if titles), last)
        return rng.choice(forms).format(
            last=last, found=found, frequent_phrase=frequent_phrases(self.catalog, task.history)[0]
        )
