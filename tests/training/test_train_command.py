"""`deeprec train` from the command line: what it prints, what the next commands make of it, and Ctrl-C."""

from __future__ import annotations

import signal

import pytest

import processes
from command_line import deeprec, manifest
from tiny_models import bytes_tokenizer, tiny

SETTINGS = """
[train]
tasks_per_step = 2
group_size = 2
lora_rank = 4
sft = { share = 0.2, demonstrations = 4, batch_size = 2 }

[[train.stages]]
name = "one"
share = 0.2
steps = 4
rewards = { format = 1.0, "test_train_command:words" = 1.0 }
"""


def words(trace, target):
    """A reward that differs within groups of a random policy."""
    return trace.policy_tokens / 100


@pytest.fixture(scope="module")
def config(site, tmp_path_factory):
    """The site's configuration with a small model and a small training."""
    folder = tmp_path_factory.mktemp("training")
    tiny(bytes_tokenizer()).save_pretrained(folder / "model")
    bytes_tokenizer().save_pretrained(folder / "model")
    text = site.config.read_text().replace('kind = "scripted"', f'model = "{folder / "model"}"')
    text = text.replace("[explore]", "[explore]\nsegment_tokens = 240\nhistory = 2")
    (folder / "train.toml").write_text(text + SETTINGS)
    return folder / "train.toml"


def test_it_says_how_to_use_the_weights(config, tmp_path):
    result = deeprec("train", "--config", config, "--runs", tmp_path)
    assert result.code == 0, result.err
    (run,) = tmp_path.glob("*-train")
    use = ["--config", run / "config.toml", "--set", f"policy.adapter={run / 'one'}"]
    assert " ".join(map(str, use)) in result.out
    found = deeprec("runs", "curves", run, "--plot", run / "curves.png")
    assert found.code == 0, found.err
    assert "well-formed" in found.out
    assert (run / "curves.png").stat().st_size
    found = deeprec("runs", "compare", run, run)
    assert found.code == 0, found.err
    assert "sft" in found.out
    found = deeprec("explore", *use, "--runs", tmp_path)
    assert found.code == 0, found.err


def test_ctrl_c_keeps_what_is_finished(config, tmp_path):
    status, err = processes.stopped(
        [*processes.DEEPREC, "train", "--config", config, "--runs", tmp_path],
        signal.SIGINT,
        lambda: any("one/reward" in path.read_text() for path in tmp_path.glob("*-train/metrics.jsonl")),
    )
    assert status == 130
    assert err.endswith("deeprec: interrupted; what was finished is kept.\n")
    (run,) = tmp_path.glob("*-train")
    assert manifest(run)["status"] == "interrupted"
    assert (run / "sft").is_dir()


def test_a_refusal_is_one_line(config, tmp_path):
    result = deeprec("train", "--config", config, "--runs", tmp_path, "--set", "policy.kind=scripted")
    assert result.code == 2
    assert "can't be trained" in result.err
    assert result.err.count("\n") == 1
