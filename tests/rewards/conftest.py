"""Traces for the rewards: made from text through the real environment, so that every fault is the parser's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from deeprec.config import ExploreConfig
from deeprec.data.catalog import ItemIdx, UserId, build_catalog
from deeprec.data.dataset import Task
from deeprec.explore.environment import Environment
from deeprec.explore.policy import Finish
from deeprec.explore.settings import resolve_defaults
from deeprec.explore.trace import Stop, Trace
from deeprec.retrieval.retriever import Hit
from toys import RecordingRetriever

TITLES = ("Alien", "Halo", "Halo 2", "Casablanca", "Assistant", "Twin", "Twin", "Heat", "Brazil", "Ran", "M", "Jaws")
ALIEN, HALO, HALO_2, CASABLANCA, ASSISTANT, TWIN, _, HEAT, BRAZIL, RAN, EM, JAWS = map(ItemIdx, range(len(TITLES)))
CATALOG = build_catalog(
    ids=[f"i{i}" for i in range(len(TITLES))],
    titles=TITLES,
    years=[None] * len(TITLES),
    brands=[""] * len(TITLES),
    categories=[()] * len(TITLES),
    descriptions=[""] * len(TITLES),
    title_chars=80,
)


def explored(segments: Sequence[str], *, answer_size: int = 3, max_calls: int = 8) -> Trace:
    """The trace of a policy that wrote these segments.

    The history is Alien. Every call brings all other items but Jaws and the Twins.
    """
    task = Task("test:u", UserId("u"), (ALIEN,))
    config = ExploreConfig(answer_size=answer_size, max_calls=max_calls)
    settings = resolve_defaults(config, None, RecordingRetriever(len(CATALOG)), CATALOG)
    environment = Environment(task, CATALOG, settings)
    for segment in segments:
        if environment.receive(segment, Finish.STOP) is not None:
            items = (HALO, HALO_2, CASABLANCA, ASSISTANT, HEAT, BRAZIL, RAN, EM)
            environment.answer_call([Hit(item, -float(position)) for position, item in enumerate(items)])
        if environment.stop is not None:
            break
    else:
        environment.abort(Stop.CONTEXT_LIMIT)
    return environment.trace(())


@pytest.fixture(name="explored", scope="session")
def _explored() -> Callable[..., Trace]:
    return explored
