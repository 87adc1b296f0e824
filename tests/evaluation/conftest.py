"""Fewer resamples than the default, where a test needs no more."""

import pytest

from deeprec.evaluation import intervals


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 200)
        yield
