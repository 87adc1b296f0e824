"""What a name, a folder, an address or a configuration loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import Config, PolicyConfig, load_config
from deeprec.errors import DeepRecError
from deeprec.policies.loading import load_policy
from deeprec.policies.scripted import ScriptedPolicy
from deeprec.policies.transformers import TransformersPolicy
from deeprec.testing import request, write
from tiny_models import bytes_tokenizer, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny(bytes_tokenizer()).save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)
    return folder


SCRIPTED = PolicyConfig(kind="scripted")


@pytest.mark.parametrize("source", ["scripted", SCRIPTED, Config(policy=SCRIPTED)], ids=["name", "policy", "whole"])
def test_the_script_needs_no_model(source: Any) -> None:
    assert isinstance(load_policy(source), ScriptedPolicy)


def test_a_folder_of_a_model_or_of_an_adapter(model: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    bare = load_policy(model, offline=True)
    assert isinstance(bare, TransformersPolicy)
    assert bare.forkable == (bare.model.device.type == "cpu")
    assert bare.context_limit == 4096
    adapted = peft.get_peft_model(
        tiny(bytes_tokenizer()), peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.2)
    adapted.save_pretrained(tmp_path)
    adapted.unload()
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(model)}))
    (tmp_path / "deeprec.json").write_text('{"guidance": "task", "preference_weight": 0.2}')
    trained = load_policy(str(tmp_path), offline=True)
    assert trained.prompt_defaults is not None
    assert (trained.prompt_defaults.guidance, bare.prompt_defaults) == ("task", None)
    asked = request(bare, "a")
    assert write(trained, [asked])["a"].logprobs != write(bare, [asked])["a"].logprobs


def test_a_name_that_is_nothing_is_said() -> None:
    with pytest.raises(DeepRecError, match=r"policy\.model='nothing-here' can't be loaded"):
        load_policy("nothing-here", offline=True)


def test_contexts_that_the_model_cannot_read_are_refused(model: Path) -> None:
    config = load_config(None, [f"policy.model={model}", "explore.context_tokens=5000"])
    with pytest.raises(DeepRecError, match=r"context_tokens=5000 is more than the 4096 tokens"):
        load_policy(config, offline=True)
