"""`deeprec train` from end to end, and killed in the middle."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import processes
from deeprec.cli.workbench import TRAINED_BY, Workbench
from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.explore.protocol import PROTOCOL
from deeprec.training.schedule import shares
from deeprec.trm.trm import FORMAT_VERSION
from test_cli import deeprec, manifest, site, stand_in  # noqa: F401 (fixtures)
from tiny_models import bytes_tokenizer, tiny

SETTINGS = """
[train]
per_user = 2
tasks_per_step = 2
group_size = 2
micro_batch_size = 1
lora_rank = 4
warm_start = { share = 0.2, tasks = 4, batch_size = 2 }

[[train.stages]]
name = "one"
share = 0.2
steps = 4
rewards = { format = 1.0, diversity = 0.0, "test_train_command:words" = 1.0 }
"""


def words(trace, target):
    """A reward that differs within groups of a random policy."""
    return trace.policy_tokens / 100


@pytest.fixture(scope="module")
def config(site, tmp_path_factory):  # noqa: F811
    """The site's configuration with a small model and a small training."""
    folder = tmp_path_factory.mktemp("training")
    tiny(bytes_tokenizer()).save_pretrained(folder / "model")
    bytes_tokenizer().save_pretrained(folder / "model")
    text = site.config.read_text().replace('kind = "scripted"', f'model = "{folder / "model"}"')
    text = text.replace("[explore]", "[explore]\nsegment_tokens = 240\nhistory = 2")
    (folder / "train.toml").write_text(text + SETTINGS)
    return folder / "train.toml"


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = deeprec("train", "--tensorboard", "--config", config, "--runs", runs)
    assert result.code == 0, result.err
    (run,) = runs.glob("*-train")
    return result, runs, run


def test_it_leaves_weights_numbers_and_what_to_do_next(trained, config):
    result, runs, run = trained
    assert manifest(run)["status"] == "finished"
    use = ["--config", run / "config.toml", "--set", f"policy.adapter={run / 'one'}"]
    assert " ".join(map(str, use)) in result.out
    assert json.loads((run / "one" / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("model")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 1, 2, 3, 4]
    assert "sft/loss" in lines[0]
    assert {"one/reward", "one/reward/diversity", "one/turns", "one/well-formed", "one/loss"} <= set(lines[-1])
    assert list((run / "tensorboard").glob("events.*"))
    found = deeprec("runs", "curves", run, "--plot", run / "curves.png")
    assert found.code == 0, found.err
    assert "well-formed" in found.out
    assert (run / "curves.png").stat().st_size
    found = deeprec("runs", "compare", run, run)
    assert found.code == 0, found.err
    assert "sft" in found.out
    found = deeprec("explore", *use, "--runs", runs)
    assert found.code == 0, found.err


def test_its_trm_never_met_the_stages_users(trained, config):
    """Decision 0017: else the TRM would know the targets, and the policy would learn to copy it."""
    _, runs, _ = trained
    settings = load_config(config)
    parts, rest = load_dataset(settings.data).divide(shares(settings.train), settings.train.seed)
    first = min(runs.glob("*-trm"))
    assert manifest(first)["dataset"] == rest.fingerprint
    assert all(part.users for part in parts.values())


def test_a_finished_training_is_found_again(trained, config):
    _, runs, run = trained
    again = deeprec("train", "--config", config, "--runs", runs)
    assert again.code == 0
    assert list(runs.glob("*-train")) == [run]
    assert str(run / "one") in again.out


@pytest.mark.parametrize(("of", "now"), [("protocol", PROTOCOL), ("format_version", FORMAT_VERSION)])
def test_a_training_in_another_protocol_or_with_another_kind_of_trm_is_not_gone_on_with(
    trained, config, tmp_path, of, now
):
    _, runs, run = trained
    shutil.copytree(runs, tmp_path / "runs")
    bench = Workbench(load_config(config), tmp_path / "runs")
    assert bench.latest("train", bench.dataset(), TRAINED_BY).path.name == run.name
    copy = tmp_path / "runs" / run.name / "manifest.json"
    copy.write_text(copy.read_text().replace(f'"{of}": {now}', f'"{of}": 1'))
    assert bench.latest("train", bench.dataset(), TRAINED_BY) is None


def test_an_adapter_is_known_by_its_weights(trained, config, tmp_path, capsys):
    """The name `shipped`, or a folder's, may mean another tomorrow."""
    _, _, run = trained
    adapter = shutil.copytree(run / "sft", tmp_path / "adapter")
    bench = Workbench(
        load_config(config, [f"train.adapter={adapter}", "train.sft.demonstrations=0"]), tmp_path / "runs"
    )
    dataset = bench.dataset()
    bench.train(dataset)
    assert f"from adapter {adapter}" in capsys.readouterr().out.replace("\n", "")
    assert bench.latest("train", dataset, TRAINED_BY) is not None
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * each for name, each in weights.items()}, adapter / "adapter_model.safetensors")
    assert bench.latest("train", dataset, TRAINED_BY) is None


def test_what_began_the_same_is_taken_over(trained, config):
    _, runs, run = trained
    stage = '{name="one",share=0.2,steps=1,learning_rate=1e-6,rewards={format=1.0}}'
    other = deeprec("train", "--config", config, "--runs", runs, "--set", f"train.stages=[{stage}]")
    assert other.code == 0, other.err
    assert f"warm-start is taken from {run}" in other.out.replace("\n", "")
    (new,) = set(runs.glob("*-train")) - {run}
    lines = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert "one/loss" in lines[0]
    ours, theirs = (load_file(each / "sft" / "adapter_model.safetensors") for each in (new, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(new)


@pytest.mark.parametrize(
    ("sign", "code", "said", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL, "", "running"),
        (signal.SIGINT, 130, "deeprec: interrupted; what was finished is kept.\n", "interrupted"),
    ],
)
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(trained, config, tmp_path, sign, code, said, status):
    _, _, unbroken = trained
    args = ["train", "--config", str(config), "--runs", str(tmp_path)]
    process = subprocess.Popen(
        [*processes.DEEPREC, *args],
        env=processes.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not any("one/reward" in path.read_text() for path in tmp_path.glob("*-train/metrics.jsonl")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert err.endswith(said)
    (run,) = tmp_path.glob("*-train")
    assert manifest(run)["status"] == status
    assert not (run / "one").exists()
    resumed = deeprec(*args)
    assert resumed.code == 0, resumed.err
    assert "Going on in" in resumed.out
    assert list(tmp_path.glob("*-train")) == [run]
    ours, theirs = (load_file(folder / "one" / "adapter_model.safetensors") for folder in (run, unbroken))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=1e-3)


def test_a_time_for_it_makes_another_training(trained, config):
    """On a slower machine the same command comes less far: what came of another time is never taken for it."""
    result, runs, run = trained
    assert "The training came to warm-start 2 of 2 steps, one 4 of 4 steps; " in result.out
    bench = Workbench(load_config(config, ["train.minutes=0.001"]), runs)
    dataset = bench.dataset()
    assert bench.latest("train", dataset, TRAINED_BY) is None
    found = deeprec("train", "--config", config, "--runs", runs, "--set", "train.minutes=0.001")
    assert found.code == 0, found.err
    assert "The training came to warm-start 1 of 2 steps, one 0 of 4 steps; " in found.out
    new = bench.latest("train", dataset, TRAINED_BY)
    assert new.path != run
    assert "taken from" not in found.out
    shutil.rmtree(new.path)


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(trained, config, tmp_path):
    """By the first one's clock: were they of two minds, one would wait for the other in vain."""
    more = ("--set", "train.minutes=0.2", "--set", "train.sft.demonstrations=400")
    in_processes("--no-python", *processes.DEEPREC, "train", "--config", config, "--runs", tmp_path, *more)
    (run,) = tmp_path.glob("*-train")
    assert (run / "one" / "adapter_model.safetensors").exists()
    kept = json.loads((run / "time_budget.json").read_text())
    steps = [line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
    assert steps == [*range(1, kept["sft"]["steps"] + 1), *range(1, kept["one"]["steps"] + 1)]
    assert 0 < kept["sft"]["steps"] <= kept["sft"]["of"]


@pytest.mark.slow
def test_two_processes_train_together(trained, config, tmp_path):
    """One run, the warm start as in one process; what is sampled later may differ where rounding decides."""
    _, _, alone = trained
    command = ("--no-python", *processes.DEEPREC, "train", "--config", config, "--runs", tmp_path)
    in_processes(*command, launcher="torchrun")
    (run,) = tmp_path.glob("*-train")
    assert (run / "one" / "adapter_model.safetensors").exists()
    ours, theirs = (list(map(json.loads, (each / "metrics.jsonl").read_text().splitlines())) for each in (run, alone))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 1, 2, 3, 4]
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine["sft/loss"] == pytest.approx(other["sft/loss"], abs=1e-4)
        assert mine["sft/grad_norm"] == pytest.approx(other["sft/grad_norm"], abs=1e-4)


def test_two_processes_learn_from_a_batch_what_one_does(tmp_path):
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        in_processes(GIVEN, tmp_path / str(n), n=n)
    alone = json.loads((tmp_path / "1" / "0.json").read_text())
    both = [json.loads((tmp_path / "2" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert len(alone["advantages"]) == 2  # steps, of four explorations each
    for step, advantages in enumerate(alone["advantages"]):
        assert len(set(advantages)) > 2
        assert [*both[0]["advantages"][step], *both[1]["advantages"][step]] == pytest.approx(advantages, abs=1e-5)
    for rank in both:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert rank["weights"] == pytest.approx(alone["weights"], abs=1e-5)


GIVEN = Path(__file__).with_name("given_explorations.py")


def in_processes(*command, n=2, launcher="accelerate"):
    """`--multi_gpu` tells accelerate that there are several, on processors too."""
    if launcher == "accelerate":
        launch = ["accelerate.commands.launch", f"--num_processes={n}", *["--multi_gpu"] * (n > 1), "--num_machines=1"]
        launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={processes.free_port()}"]
    else:
        launch = ["torch.distributed.run", f"--nproc-per-node={n}", f"--master-port={processes.free_port()}"]
    environment = processes.environment() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("policy.kind=scripted", "can't be trained"),
        ("train.tasks_per_step=500", "has"),
        ("train.micro_batch_size=3", "not a multiple"),
        ("train.sft.share=0.9", "less than a tenth"),
        ('train.stages=[{name="one",share=0.2,steps=1,rewards={hits=1.0}}]', "There is no reward 'hits'"),
        ("train.lora_rank=-1", "train.lora_rank"),
        ("policy.adapter=somewhere", "can't be trained on"),
        ("train.adapter=none", "and an adapter of"),
        ("explore.answer=pool", "explore.answer='pool' is not for training"),
        ('train.stages=[{name="checkpoints",share=0.2,steps=1,rewards={hit=1.0}}]', "checkpoints"),
        (
            "explore.segment_tokens=12",
            "No exploration of the warm start is well-formed (commonest: no answer",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(trained, config, override, said):
    _, runs, _ = trained
    overrides = [part for each in override.split(" ") for part in ("--set", each)]
    result = deeprec("train", "--config", config, "--runs", runs, *overrides)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
