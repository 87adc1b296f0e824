"""Which adapter a policy has, and the prompt defaults that it brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, Config, ExploreConfig, PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.explorer import Explorer, ForcedSegment
from deeprec.explore.policy import PromptDefaults
from deeprec.explore.protocol import call_text
from deeprec.policies import adapters
from deeprec.policies.adapters import adapter_folder, bare, name_of, read_prompt_defaults, write_prompt_defaults
from deeprec.policies.text import TextPolicy
from toys import RecordingRetriever, toy_dataset

DATASET = toy_dataset()
ASSET = "smollm2-135m-instruct"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(adapters, "SHIPPED", tmp_path)
    (tmp_path / ASSET).mkdir()
    return tmp_path / ASSET


def test_what_is_shipped_is_for_its_model_alone(shipped: Path) -> None:
    assert adapter_folder(PolicyConfig()) == shipped
    assert name_of(PolicyConfig()) == f"{ASSET}, trained"
    assert name_of(bare(PolicyConfig())) == f"{ASSET}, untrained"
    assert name_of(PolicyConfig(model="another/model")) == "model"
    assert adapter_folder(PolicyConfig(adapter="none")) is None
    assert adapter_folder(PolicyConfig(model="another/model")) is None
    assert adapter_folder(PolicyConfig(model=str(shipped))) is None
    shipped.rmdir()
    assert adapter_folder(PolicyConfig()) is None


def test_an_adapter_of_one_s_own_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DeepRecError, match=r"adapter_config\.json"):
        adapter_folder(PolicyConfig(adapter=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert adapter_folder(PolicyConfig(adapter=str(tmp_path))) == tmp_path


def test_prompt_defaults_lie_beside_an_adapter(tmp_path: Path) -> None:
    assert read_prompt_defaults(tmp_path) is None
    write_prompt_defaults(tmp_path, ExploreConfig(guidance="rules", preference_weight=0.1))
    assert read_prompt_defaults(tmp_path) == PromptDefaults("rules", 0.1)
    write_prompt_defaults(tmp_path, ExploreConfig())
    assert read_prompt_defaults(tmp_path) == PromptDefaults("example")
    for damage in ("{", '{"guidance": "taks"}', '{"preference_weight": 5}', "[]"):
        (tmp_path / "deeprec.json").write_text(damage)
        with pytest.raises(DeepRecError, match="damaged"):
            read_prompt_defaults(tmp_path)


@pytest.mark.parametrize(
    ("set_", "prompt_defaults", "found", "guidance", "preference_weight"),
    [
        ({}, PromptDefaults("task", 0.2), None, "task", 0.2),
        ({"preference_weight": 0.0}, PromptDefaults("task", 0.2), 0.4, "task", 0.0),
        ({"guidance": "rules"}, PromptDefaults("task", 0.2), None, "rules", 0.2),
        ({}, PromptDefaults("task", 0.2), 0.4, "task", 0.2),
        ({}, PromptDefaults("task"), 0.4, "task", 0.4),
        ({}, None, 0.4, "example", 0.4),
        ({}, PromptDefaults("task", 0.0), 0.4, "task", 0.0),
        ({}, PromptDefaults("task"), None, "task", DEFAULT_PREFERENCE_WEIGHT),
    ],
)
def test_the_configuration_goes_before_the_policys_defaults_and_these_before_the_retrievers(
    set_: dict[str, object],
    prompt_defaults: PromptDefaults | None,
    found: float | None,
    guidance: str,
    preference_weight: float,
) -> None:
    def write(conversation: str) -> str:
        return "<|begin_of_preference|>war<|end_of_preference|>"

    def explored(
        prompt_defaults: PromptDefaults | None, config: ExploreConfig, found: float | None
    ) -> tuple[str, float]:
        policy, retriever = TextPolicy(write), RecordingRetriever(len(DATASET.catalog))
        if found is not None:
            retriever.preference_weight = found
        if prompt_defaults is not None:
            policy.prompt_defaults = prompt_defaults
        explorer = Explorer(policy, retriever, DATASET.catalog, config)
        keys = [explorer.start(DATASET.tasks("test")[0], config=each) for each in (None, config)]
        first, second = (trace for _ in range(2) for _, trace in explorer.step())
        assert len(keys) == 2
        assert first.segments[0].text == second.segments[0].text
        return first.segments[0].text, retriever.queries[0].preference_weight

    config = ExploreConfig(max_calls=1, **set_)
    asked = explored(prompt_defaults, config, found)
    wanted = config.model_copy(update={"guidance": guidance, "preference_weight": preference_weight})
    assert asked == explored(None, wanted, None)
    assert asked[1] == preference_weight


def test_the_defaults_name_no_adapter_by_its_path() -> None:
    assert Config().policy.adapter == "shipped"


@pytest.mark.parametrize("of", ["policy", "retriever"])
def test_a_person_s_calls_keep_the_weight_of_requests(of: str) -> None:
    policy, retriever = (
        TextPolicy(lambda conversation: call_text("", "drama")),
        RecordingRetriever(len(DATASET.catalog)),
    )
    if of == "policy":
        policy.prompt_defaults = PromptDefaults("task", 0.2)
    else:
        retriever.preference_weight = 0.2
    explorer = Explorer(policy, retriever, DATASET.catalog, ExploreConfig(max_calls=3))
    explorer.start(
        DATASET.tasks("test")[0],
        forced_prefix=[ForcedSegment(call_text("", "war")), ForcedSegment(call_text("", "noir"), by_policy=True)],
    )
    explorer.step()
    preference_weights = [(query.preference, query.preference_weight) for query in retriever.queries]
    assert preference_weights == [("war", DEFAULT_PREFERENCE_WEIGHT), ("noir", 0.2), ("drama", 0.2)]
