"""A request with a field's old name is refused with the new one."""

from __future__ import annotations

from typing import Any

import pytest

from serving.conftest import Site

HISTORY = ["Film 0 (1970)"]


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/recommend", {"history": HISTORY, "trust": 0.5}, "the field 'trust' is now called 'preference_weight'"),
        ("/retrieve", {"queries": [{"history": HISTORY, "trust": 0.5}]}, "queries.0: the field 'trust' is now called"),
        ("/recommend", {"history": HISTORY, "calls": [{"preference": "x", "own": True}]}, "is now called 'by_policy'"),
    ],
)
def test_a_renamed_field_names_the_new_one(site: Site, path: str, body: Any, detail: str) -> None:
    answer = site.client.post(path, json=body)
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]
