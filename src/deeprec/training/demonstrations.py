"""Demonstrations: explorations written with hindsight, from which SFT teaches a small model the protocol.

The policy that writes them knows what a training user chose next (never a validation or test item). It first names the
latest titles and the history's most frequent phrase, without hindsight, which the trained model could only guess at.
Later calls say what the history and the next items have in common. The answer is what came back, in the TRM's order.
This teaches the protocol, to copy titles exactly, and to say what helps on average; better words and rankings are left
to reinforcement learning. Demonstrations vary in their limits, so that the model reads those in its prompt.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deeprec.config import Config, ExploreConfig
from deeprec.data.catalog import Catalog, ItemIdx, without_year
from deeprec.data.dataset import Task
from deeprec.errors import DeepRecError
from deeprec.explore import protocol
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Request
from deeprec.explore.protocol import Fault
from deeprec.explore.settings import items_of
from deeprec.explore.trace import Trace
from deeprec.policies.scripted import list_titles, name_of
from deeprec.policies.text import Codec, TextPolicy
from deeprec.retrieval.bm25 import BM25, words
from deeprec.retrieval.retriever import Retriever
from deeprec.training.schedule import SFT
from deeprec.training.task_sets import TaskSets
from deeprec.trm.preferences import TITLES, frequent_phrases, item_phrases

AHEAD = 5  # next items that a later preference may anticipate
_NAMES = 2  # most titles of the history in a later preference

_FIRST = (
    "After {last}, the history turns to",
    "{last} came last. Next may be",
    "Much here is {frequent_phrase}, and {last} came last. I look for",
    "The history is mostly {frequent_phrase}. From {last} I expect",
    "What links {last} with the titles before it is",
)
_LATER = (
    "{found} came back on top. I also look at",
    "Titles like {found} fit one side of the history. Another side is",
    "{found} is close. More particular:",
    "Beside {found}, the next step could be",
)
# The first word tells whether a call or the answer follows, right after the environment said how many calls are left.
_LAST = (
    "I rank {found} and what fits the latest titles first.",
    "I rank by what the latest titles ask for; {found} was a good sign.",
    "I rank what all lists brought, what is closest to {last} first.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of an exploration, and which of them SFT learns."""

    tokens: tuple[int, ...]
    learned: tuple[bool, ...]


class DemonstrationPolicy(TextPolicy):
    """Writes each task's exploration with hindsight; see the module.

    `followed` says, by task id, what the user chose next, the target first. The codec is the trained model's, and
    `config` has the limits of its explorations: at least half of the demonstrations have its `max_calls` and three
    quarters its `answer_size`; the others have less. The seed decides limits and choices between equally good words.
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
        self.catalog, self.followed = catalog, followed
        self.tasks = {task.id: task for task in tasks}
        self.config, self.seed = config, seed
        self.faults: Counter[Fault] = Counter()
        self._said: defaultdict[str, list[str]] = defaultdict(list)
        self._bm25 = BM25(catalog)

    def examples(self, retriever: Retriever) -> Iterator[tuple[Trace, Example]]:
        """Explore all tasks, in the order in which they end; without those that have a fault, as too few titles."""
        self._said.clear()
        explorer = Explorer(self, retriever, self.catalog, self.config)
        for _, trace in explorer.stream(self.tasks.values(), config_of=self.limits):
            self.faults.update(trace.faults)
            if trace.well_formed:
                tokens, written, _ = trace.tokens()
                yield trace, Example(tuple(tokens), tuple(written))

    def limits(self, task: Task) -> ExploreConfig:
        """The limits of the task's demonstration."""
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
        # At least two calls where the limit allows: the model must also learn to answer after a second one.
        calls = random.Random(f"{self.seed}:{task.id}").randint(min(2, limits.max_calls), limits.max_calls)
        calls = max(calls, -(-limits.answer_size // items_of(limits)))  # and enough to fill the answer
        if len(lists) >= calls:
            titles = [title for found in lists for title in found][: limits.answer_size]
            return protocol.answer_text(self._thought(rng, _LAST, task, lists), titles)
        said, shown = self._said[request.key], task.history[-self.config.history :]
        if lists:
            phrases = self._particular(rng, shown, self.followed[task.id][:AHEAD], said)
        else:
            names = dict.fromkeys(map(self._name, reversed(shown[-TITLES:])))
            phrases = list(dict.fromkeys([*names, *self._frequent(shown)]))
        said += phrases
        return protocol.call_text(self._thought(rng, _LATER if lists else _FIRST, task, lists), "; ".join(phrases))

    def _particular(
        self, rng: random.Random, shown: Sequence[ItemIdx], ahead: Sequence[ItemIdx], said: Sequence[str]
    ) -> list[str]:
        """Something new: names of shown items that share words with the next ones (most similar first, then latest
        first), else one or two phrases that both have, else the latest name, or a phrase or word of the latest item."""
        names = list(dict.fromkeys(map(self._name, reversed(shown))))
        scores_N = self._bm25.scores(names)[:, list(ahead)].toarray().max(axis=1)
        similar = [names[n] for n in np.argsort(-scores_N, kind="stable") if scores_N[n] > 0 and names[n] not in said]
        if similar:
            return similar[:_NAMES]
        known = {phrase for item in shown for phrase in self._phrases(item)}
        for item in ahead:
            again = [phrase for phrase in self._phrases(item) if phrase in known and phrase not in said]
            if again:
                return rng.sample(again, min(rng.randint(1, 2), len(again)))
        rest = names + [phrase for item in reversed(shown) for phrase in reversed(self._phrases(item))]
        rest += [word for item in reversed(shown) for word in words(self.catalog.titles[item])]
        return [next((phrase for phrase in rest if phrase not in said), "something else")]

    def _name(self, item: ItemIdx) -> str:
        """The first words of an item's title, without the year, as a single phrase of a preference."""
        return name_of(without_year(self.catalog.titles[item], self.catalog.years[item]))

    def _phrases(self, item: ItemIdx) -> tuple[str, ...]:
        """Those of an item's own text, without the title that stands for them elsewhere: names do here."""
        return item_phrases(self.catalog, item) if self.catalog.phrases(item) else ()

    def _frequent(self, items: Sequence[ItemIdx]) -> list[str]:
        """The most frequent phrase of the items; where they have titles alone, the rare word that most titles share."""
        if labelled := [item for item in items if self._phrases(item)]:
            return frequent_phrases(self.catalog, labelled)[:1]
        counts = Counter(word for item in items for word in dict.fromkeys(words(self.catalog.titles[item])))
        shared = [word for word, count in counts.most_common() if count > 1]
        return [word for word in shared if self._bm25.scores([word]).nnz][:1]

    def _thought(self, rng: random.Random, forms: Sequence[str], task: Task, lists: Sequence[Sequence[str]]) -> str:
        last, frequent = self.catalog.titles[task.history[-1]], self._frequent(task.history)
        if not frequent:
            forms = [form for form in forms if "{frequent_phrase}" not in form]
        found = next((titles[0] for titles in reversed(lists) if titles), last)
        return rng.choice(forms).format(last=last, found=found, frequent_phrase="".join(frequent))


def demonstrations_of(task_sets: TaskSets, codec: Codec, config: Config, limit: int) -> list[Example]:
    """The demonstrations of up to `limit` tasks; DeepRecError if none is well-formed."""
    tasks, followed = task_sets.tasks[SFT][:limit], task_sets.followed
    policy = DemonstrationPolicy(task_sets.catalog, tasks, followed, codec, config.explore, seed=config.train.seed)
    examples = [example for _, example in policy.examples(task_sets.retriever)]
    if not examples:
        fault = next((fault for fault, _ in policy.faults.most_common(1)), "no task")
        keys = "explore.context_tokens, explore.segment_tokens and train.sft.share"
        raise DeepRecError(f"No demonstration is well-formed (most common fault: {fault}). Check {keys}.")
    return examples
