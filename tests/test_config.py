from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deeprec.config import USUAL_COLUMNS, Config, Section, dump_config, load_config, parse_config, renamed, subsection
from deeprec.errors import DeepRecError


@pytest.fixture
def toml(tmp_path):
    def write(text: str):
        path = tmp_path / "run.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_a_file_it_is_the_defaults():
    assert load_config() == Config()
    assert load_config().explore.context_tokens == 4096


def test_a_file_changes_what_it_names_and_nothing_else(toml):
    config = load_config(toml('[trm]\nwidth = 128\n[data.columns]\nuser = "who"\n[eval]\ncutoffs = [1, 20]\n'))
    assert config.trm.width == 128
    assert config.data.columns.user == "who"
    assert config.eval.cutoffs == (1, 20)
    assert config.trm.layers == Config().trm.layers
    assert config.data.columns.item == "item_id"


def test_overrides_win_over_the_file_and_the_last_over_the_first(toml):
    path = toml("[trm]\nwidth = 128\nlayers = 3\n")
    config = load_config(path, ["trm.width=16", "trm.width=32"])
    assert (config.trm.width, config.trm.layers) == (32, 3)


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("trm.width=128", "trm", "width", 128),
        ("trm.learning_rate=1e-4", "trm", "learning_rate", 1e-4),
        ("eval.cutoffs=[1, 20]", "eval", "cutoffs", (1, 20)),
        ("data.source=ml-100k", "data", "source", "ml-100k"),
        ('data.source="ml-100k"', "data", "source", "ml-100k"),
        ("data.source='x # y'", "data", "source", "x # y"),
        ("data.source=a=b", "data", "source", "a=b"),
        ("data.source=some/folder", "data", "source", "some/folder"),
        (" trm.width = 128 ", "trm", "width", 128),
        ("data.items=", "data", "items", ""),
    ],
)
def test_override_values_are_read_as_toml_then_as_text(override, section, key, value):
    found = getattr(getattr(load_config(overrides=[override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_override_of_a_nested_section():
    config = load_config(overrides=["data.columns.user=who", "data.columns.time=when"])
    assert (config.data.columns.user, config.data.columns.time) == ("who", "when")


@pytest.mark.parametrize("override", ["trm.width", "=3", "", " =3"])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(DeepRecError, match=r"is not of the form section\.key=value"):
        load_config(overrides=[override])


def test_an_override_below_a_value_is_refused():
    with pytest.raises(DeepRecError, match="'width' is not a section"):
        load_config(overrides=["trm.width=3", "trm.width.deep=4"])


@pytest.mark.parametrize(
    ("key", "sibling"),
    [
        ("trm.widht", "width"),
        ("tmr", "trm"),
        ("data.columns.usr", "user"),
        ("eval.k", "cutoffs"),
    ],
)
def test_an_unknown_key_is_named_with_its_siblings(key, sibling):
    with pytest.raises(DeepRecError) as caught:
        load_config(overrides=[f"{key}=1"])
    message = str(caught.value)
    assert f"Unknown configuration key {key!r}" in message
    known = message.partition("known keys here: ")[2].rstrip(".").split(", ")
    assert sibling in known
    assert key.rpartition(".")[2] not in known


def test_siblings_are_those_of_the_same_section():
    with pytest.raises(DeepRecError) as caught:
        load_config(overrides=["data.columns.usr=1"])
    known = str(caught.value).partition("known keys here: ")[2].rstrip(".").split(", ")
    assert "position" in known
    assert "source" not in known
    assert "width" not in known


def test_an_unknown_key_in_a_file_names_the_file(toml):
    path = toml("[trm]\nhidden_size = 3\n")
    with pytest.raises(DeepRecError, match=r"'trm\.hidden_size' \(from .*run\.toml\)"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trm.width=wide", "trm.width"),
        ("trm.width=4", "trm.width"),
        ("trm.width=65", "trm.width"),
        ("trm.bm25=-0.1", "trm.bm25"),
        ("eval.cutoffs=[]", "eval.cutoffs"),
        ("eval.cutoffs=[0, 5]", "eval.cutoffs"),
        ("eval.cutoffs=[5, 5]", "eval.cutoffs"),
        ("trm.learning_rate=0", "trm.learning_rate"),
        ("trm.learning_rate=nan", "trm.learning_rate"),
        ("explore.temperature=inf", "explore.temperature"),
        ("data.title_chars=7", "data.title_chars"),
        ("data.format=parquet", "data.format"),
        ("data.columns.user=[3]", "data.columns.user"),
        ("eval.split=train", "eval.split"),
        ("trm=3", "trm"),
        ("data.columns=who", "data.columns"),
    ],
)
def test_a_bad_value_is_named(override, key):
    with pytest.raises(DeepRecError) as caught:
        load_config(overrides=[override])
    assert f"Configuration key {key!r} (from --set)" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DeepRecError, match=r"no configuration file .*absent\.toml"):
        load_config(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"[trm\nwidth=1", b"a = 1\na = 2", b"\xff\xfe", b"width 3"])
def test_malformed_file(tmp_path, content):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(DeepRecError, match=r"run\.toml is not readable TOML"):
        load_config(path)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(DeepRecError, match="is not readable TOML"):
        load_config(tmp_path)


def test_an_unknown_key_of_a_stage_is_named_with_its_siblings():
    stage = '{name = "a", share = 0.1, steps = 1, rewards = {hit = 1.0}, pace = 1}'
    with pytest.raises(
        DeepRecError, match=r"'train.stages.0.pace' .*: advantage_normalisation, learning_rate, name, rewards, share, "
    ):
        load_config(None, [f"train.stages=[{stage}]"])


RENAMED = {
    "trm.neighbours": "trm.cooccurrence",
    "trm.lexical": "trm.bm25",
    "explore.trust": "explore.preference_weight",
    "train.reach": "train.max_target_rank",
    "train.samples": "train.group_size",
    "train.updates": "train.updates_per_step",
    "train.rows": "train.micro_batch_size",
    "train.negative": "train.negative_advantage_weight",
    "train.warm_start.share": "train.sft.share",
    "train.warm_start.tasks": "train.sft.demonstrations",
    "train.warm_start.beside": "train.sft.extra_datasets",
    "train.warm_start.learning_rate": "train.sft.learning_rate",
    "train.warm_start.batch_size": "train.sft.batch_size",
}
CONSTANT = {
    "trm": "heads dropout patience batch_places weight_decay averaging id_dropout preference_dropout "
    "history_preference preference_window exact_preference",
    "policy": "timeout retries",
    "explore": "top_p",
    "rewards": "format_penalty invocation_step invocation_calls diversity_scale hit_value rank_step pointwise_scale",
    "train": "per_user top_p clip_low clip_high grad_norm replacements save_every",
    "eval": "bootstrap confidence seed processes",
    "serve": "queue queries untrained",
}
GONE = ["explore.horizon", "rewards.foresight_scale", "policy.price_read", "policy.price_written"]


def refusal(tree):
    with pytest.raises(DeepRecError) as caught:
        parse_config(tree, where="here")
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]*[^.\n]\.", message), message
    assert not re.search(r"\. [A-Z]", message), message
    return message


def nested(key, value=1):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_refused_with_its_new_name(old, new):
    assert refusal(nested(old)) == f"Configuration key {old!r} (here) is now {new}."
    assert new in leaf_keys(Config)


@pytest.mark.parametrize("key", [f"{section}.{key}" for section, keys in CONSTANT.items() for key in keys.split()])
def test_a_key_that_is_a_constant_now_is_refused_with_its_value(key):
    assert re.match(rf"Configuration key '{re.escape(key)}' \(here\) is a constant now: [\w-]", refusal(nested(key)))


@pytest.mark.parametrize(
    ("key", "module", "name"),
    [
        ("trm.heads", "trm.network", "HEADS"),
        ("trm.dropout", "trm.network", "DROPOUT"),
        ("trm.id_dropout", "trm.network", "ID_DROPOUT"),
        ("trm.patience", "trm.training", "PATIENCE"),
        ("trm.averaging", "trm.training", "AVERAGED_EPOCHS"),
        ("trm.batch_places", "trm.batches", "BATCH_POSITIONS"),
        ("trm.preference_dropout", "trm.preferences", "PREFERENCE_DROPOUT"),
        ("trm.preference_window", "trm.preferences", "LOOKAHEAD"),
        ("trm.exact_preference", "trm.preferences", "EXACT_SHARE"),
        ("trm.history_preference", "trm.preferences", "FREQUENT_SHARE"),
        ("policy.timeout", "policies.openai", "TIMEOUT"),
        ("policy.retries", "policies.openai", "RETRIES"),
        ("train.top_p", "training.rollout", "TOP_P"),
        ("train.replacements", "training.rollout", "RESAMPLING_ROUNDS"),
        ("eval.bootstrap", "evaluation.intervals", "RESAMPLES"),
        ("eval.confidence", "evaluation.intervals", "CONFIDENCE"),
    ],
)
def test_the_values_named_are_those_of_the_code(key, module, name):
    value = getattr(importlib.import_module(f"deeprec.{module}"), name)
    assert float(re.match(r"a constant now: ([\d.]+)", renamed.OLD_KEYS[key])[1]) == value


@pytest.mark.parametrize("key", GONE)
def test_a_key_that_is_gone_is_refused_with_the_reason(key):
    assert re.match(rf"Configuration key '{re.escape(key)}' \(here\) is gone: \w", refusal(nested(key)))


def test_old_keys_of_stages_and_whole_sections_are_refused():
    stage = {"name": "a", "share": 0.1, "steps": 1, "rewards": {"hit": 1.0}}
    stages = [stage, stage | {"whitening": "group"}]
    found = refusal({"train": {"stages": stages}})
    assert found == "Configuration key 'train.stages.1.whitening' (here) is now advantage_normalisation."
    assert "is now advantage_normalisation in each of train.stages" in refusal({"train": {"whitening": "group"}})
    assert "is gone" in refusal({"train": {"stages": [stage | {"horizon": 2}]}})
    assert "'train.stages.0.rewards.foresight' (here) is gone" in refusal(
        {"train": {"stages": [stage | {"rewards": {"foresight": 1.0}}]}}
    )
    assert "'rewards' (here) is gone" in refusal({"rewards": {}})
    assert "'train.warm_start' (here) is now train.sft" in refusal({"train": {"warm_start": {}}})


def test_an_old_key_is_refused_wherever_it_stands(toml):
    with pytest.raises(DeepRecError, match=r"'explore\.trust' \(from --set\) is now explore\.preference_weight\.$"):
        load_config(overrides=["explore.trust=0.5"])
    with pytest.raises(DeepRecError, match=r"'train\.rows' \(from .*run\.toml\) is now train\.micro_batch_size\.$"):
        load_config(toml("[train]\nrows = 4\n"))


def test_no_key_is_both_old_and_known():
    known = set(leaf_keys(Config))
    assert not known & renamed.OLD_KEYS.keys()
    assert all(re.match("now |a constant now: |gone: ", fate) for fate in renamed.OLD_KEYS.values())


def fields(section: type[Section], prefix: str = ""):
    """Name and field of every key that holds a value; a stage's stand there once."""
    for name, field in section.model_fields.items():
        if (below := subsection(field.annotation)) is not None:
            yield from fields(below, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def leaf_keys(section: type[Section]) -> list[str]:
    return [name for name, _ in fields(section)]


def test_there_are_81_keys():
    keys = leaf_keys(Config)
    assert {"data.columns.user", "train.stages.rewards", "serve.port"} <= set(keys)
    assert len(set(keys)) == len(keys)
    assert len(keys) == 81


@pytest.mark.parametrize(("key", "field"), list(fields(Config)))
def test_every_key_says_what_it_means(key, field):
    assert field.description
    assert not field.description.endswith(".")
    # A default that the description names must be told where the value itself is none.
    assert ("default: " in field.description) == (not field.is_required() and field.default is None)


def test_usual_columns_are_named_in_the_descriptions():
    columns = Config().data.columns
    for role, names in USUAL_COLUMNS.items():
        assert getattr(columns, role) is None
        assert " or ".join(names) in type(columns).model_fields[role].description


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.toml")), ids=lambda path: path.stem)
def test_the_recipes_are_configurations(path):
    assert load_config(path).train.stages


def test_every_level_is_frozen():
    config = Config()
    for section, key in [(config, "trm"), (config.trm, "width"), (config.data.columns, "user")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, getattr(section, key))


def test_defaults_come_back_from_a_dump(toml):
    assert load_config(toml(dump_config(Config()))) == Config()


@given(
    width=st.integers(4, 10**6).map(lambda half: 2 * half),
    rate=st.floats(1e-12, 10, allow_nan=False),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    users=st.none() | st.integers(1, 10**6),
    cutoffs=st.sets(st.integers(1, 100), min_size=1, max_size=4).map(sorted),
)
def test_any_configuration_comes_back_from_a_dump(tmp_path_factory, width, rate, text, users, cutoffs):
    config = parse_config(
        {
            "trm": {"width": width, "learning_rate": rate},
            "data": {"source": text, "items": text, "columns": {"title": text, "year": text}},
            "eval": {"users": users, "cutoffs": cutoffs},
        },
        where="test",
    )
    path = tmp_path_factory.mktemp("dump") / "config.toml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
