"""Process rewards: how the policy explored, whatever it found. They read no target.

Departures from the paper's code, all of which close shortcuts it left open:
- Invocation and diversity are paid on a well-formed trace only; there, malformed output with three calls beat a clean
  single call.
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


def format_reward(trace: Trace, *, penalty: float = -1.0) -> float:
    """`penalty` on any fault, else 0."""
    return 0.0 if trace.well_formed else penalty


def invocation_reward(trace: Trace, *, step: float = 0.5, calls: int = 3) -> float:
    """`step` · (min(n, `calls`) − 1) for n tool calls, at least 0: asking more than once pays, up to a point."""
    if not trace.well_formed:
        return 0.0
    return max(0.0, step * (min(len(trace.turns), calls) - 1))


def diversity_reward(trace: Trace, embed: Embed, *, scale: float = 0.2) -> float:
    """`scale` · (1 − mean pairwise cosine of the preferences' embeddings), from two calls on."""
    n = len(trace.turns)
    if n < 2 or not trace.well_formed:
        return 0.0
    vectors_ND = embed([turn.preference for turn in trace.turns]).astype(np.float64)
    cosines_NN = vectors_ND @ vectors_ND.T
    mean = (cosines_NN.sum() - np.trace(cosines_NN)) / (n * (n - 1))
    return scale * (1.0 - float(mean))
