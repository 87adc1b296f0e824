"""Process rewards: how the policy explored, whatever it found. They read no target.

Departures from the paper's code, all of which close shortcuts it left open:
- Invocation and diversity are paid on a well-formed trace only; there, malformed output with three calls beat a clean
  single call.
- A call that asks what an earlier one asked, in the same or nearly the same words, is no further call; there, saying
  one preference three times was paid like exploring.
- Repeated, unknown, ambiguous and already-seen titles in the answer are format faults; there, ten copies of one
  title or ten inventions passed.
- Role words count as an echo of the prompt only on a line of their own in the policy's own text; there, a retrieved
  title with the word "assistant" made the penalty unavoidable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from deeprec.explore.trace import Trace

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to unit vectors (len, width)."""

ALIKE = 0.85
"""Preferences of at least this cosine ask the same, in other order, case, punctuation or endings (MiniLM: 0.87 on)."""


def format_reward(trace: Trace, *, penalty: float = -1.0) -> float:
    """`penalty` on any fault, else 0."""
    return 0.0 if trace.well_formed else penalty


def invocation_reward(trace: Trace, embed: Embed, *, step: float = 0.5, calls: int = 3) -> float:
    """`step` · (min(n, `calls`) − 1) for n calls that ask something new, at least 0: exploring pays, up to a point."""
    return max(0.0, step * (min(len(_asked(trace, embed)), calls) - 1))


def diversity_reward(trace: Trace, embed: Embed, *, scale: float = 0.2) -> float:
    """`scale` · (1 − mean pairwise cosine) of the preferences that ask something new, from two on."""
    vectors_ND = _asked(trace, embed).astype(np.float64)
    n = len(vectors_ND)
    if n < 2:
        return 0.0
    cosines_NN = vectors_ND @ vectors_ND.T
    mean = (cosines_NN.sum() - np.trace(cosines_NN)) / (n * (n - 1))
    return scale * (1.0 - float(mean))


def _asked(trace: Trace, embed: Embed) -> NDArray[np.float32]:
    """Vectors (N, D) of the preferences not asked for before; none of a malformed trace, or of one call."""
    if len(trace.turns) < 2 or not trace.well_formed:
        return np.zeros((0, 0), dtype=np.float32)
    vectors_ND = embed([turn.preference for turn in trace.turns])
    new = [0]
    for n in range(1, len(vectors_ND)):
        if float((vectors_ND[new] @ vectors_ND[n]).max()) < ALIKE:
            new.append(n)
    return vectors_ND[new]
