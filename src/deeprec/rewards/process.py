"""Process rewards: how the policy explored, whatever it found. They read no target.

Departures from the paper's code close shortcuts that it left open:
- Only a well-formed trace earns invocation and diversity. There, malformed output with three calls beat a clean single
  call.
- A call whose preference repeats an earlier one, in the same or nearly the same words, does not count. There, repeating
  one preference three times paid like exploring.
- Repeated, unknown, ambiguous and already-seen titles in the answer are format faults. There, ten copies of one title
  or ten inventions passed.
- Role words count as an echo of the prompt only on a line of their own in the policy's own text. There, a retrieved
  title with the word "assistant" made the penalty unavoidable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.explore.trace import Trace

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to unit vectors (len, width)

SAME = 0.85
"""From this cosine on, preferences count as the same: other order, case, punctuation or endings (MiniLM: from 0.87)."""


def format_reward(trace: Trace, *, penalty: float = -1.0) -> float:
    """`penalty` on any fault, else 0."""
    return 0.0 if trace.well_formed else penalty


def invocation_reward(trace: Trace, embed: Embed, *, step: float = 0.5, calls: int = 3) -> float:
    """`step` · (min(n, `calls`) − 1) for n calls with a new preference, at least 0."""
    return max(0.0, step * (min(len(_new_preferences(trace, embed)), calls) - 1))


def diversity_reward(trace: Trace, embed: Embed, *, scale: float = 0.2) -> float:
    """`scale` · (1 − mean pairwise cosine) of the new preferences; 0 for fewer than two."""
    vectors_ND = _new_preferences(trace, embed).astype(np.float64)
    n = len(vectors_ND)
    if n < 2:
        return 0.0
    cosines_NN = vectors_ND @ vectors_ND.T
    mean = (cosines_NN.sum() - np.trace(cosines_NN)) / (n * (n - 1))
    return scale * (1.0 - float(mean))


def _new_preferences(trace: Trace, embed: Embed) -> NDArray[np.float32]:
    """Vectors (N, D) of the preferences that repeat no earlier one; none for a malformed trace, or for one call."""
    if len(trace.turns) < 2 or not trace.well_formed:
        return np.zeros((0, 0), dtype=np.float32)
    vectors_ND = embed([turn.preference for turn in trace.turns])
    new: list[int] = []
    for n, vector_D in enumerate(vectors_ND):
        if (vectors_ND[new] @ vector_D).max(initial=-1.0) < SAME:
            new.append(n)
    return vectors_ND[new]
