"""`train_policy` from end to end: its run folder, interruptions, several processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_training import Hashes

import processes
from deeprec.config import load_config
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.explore.protocol import PROTOCOL
from deeprec.runs.progress import Progress
from deeprec.training.run import latest_training, prepare_task_sets, train_policy
from deeprec.training.schedule import shares
from deeprec.trm.text_encoder import TextEncoder
from deeprec.trm.trm import FORMAT_VERSION
from tiny_models import bytes_tokenizer, tiny
from toys import toy_dataset

SETTINGS = """\
[data]
source = {table!r}
item_core = 1

[trm]
width = 16
layers = 1
history = 8
epochs = 3
learning_rate = 0.01

[policy]
model = {model!r}

[explore]
answer_size = 3
items_per_call = 5
guidance = "rules"
segment_tokens = 240
history = 2

[train]
tasks_per_step = 2
group_size = 2
lora_rank = 4
sft = {{ share = 0.2, demonstrations = 4, batch_size = 2 }}

[[train.stages]]
name = "one"
share = 0.2
steps = 4
rewards = {{ format = 1.0, diversity = 0.0, "test_train_policy:words" = 1.0 }}
"""
IN_PROCESS = Path(__file__).with_name("train_in_process.py")
CANNED = Path(__file__).with_name("canned_explorations.py")


def words(trace: Any, target: int) -> float:
    """A reward that differs within groups of a random policy."""
    return trace.policy_tokens / 100


class Messages(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def __contains__(self, text: str) -> bool:
        return any(text in each for each in self.said)


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train(config: Path, runs: Path, *overrides: str, **more: Any) -> tuple[Path, Messages]:
    """The folder of the run, and its messages."""
    settings, messages = load_config(config, overrides), Messages()
    weights = train_policy(load_dataset(settings.data), settings, runs, progress=messages, **more)
    return weights.parent, messages


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "load", lambda **_: Hashes())
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dataset = tmp_path_factory.mktemp("training"), toy_dataset()
    lines = ["user_id,item_id,timestamp,title,year,genres"]
    for u, user in enumerate(dataset.users):
        for position, item in enumerate(dataset.sequence(u)):
            about = f"Film {item},{dataset.catalog.years[item]},{dataset.catalog.categories[item][0]}"
            lines.append(f"{user},i{item},{position},{about}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    tiny(bytes_tokenizer()).save_pretrained(folder / "model")
    bytes_tokenizer().save_pretrained(folder / "model")
    names = {"table": str(folder / "table.csv"), "model": str(folder / "model")}
    (folder / "train.toml").write_text(SETTINGS.format(**names))
    return folder / "train.toml"


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Messages, Path, Path]:
    torch.set_num_threads(1)
    runs = tmp_path_factory.mktemp("runs")
    run, messages = train(config, runs, tensorboard=True)
    return messages, runs, run


def test_it_leaves_weights_and_metrics(trained):
    messages, _, run = trained
    assert manifest(run)["status"] == "finished"
    assert json.loads((run / "one" / "adapter_config.json").read_text())["base_model_name_or_path"].endswith("model")
    found = metrics(run)
    assert [line["step"] for line in found] == [1, 2, 1, 2, 3, 4]
    assert "sft/loss" in found[0]
    assert {"one/reward", "one/reward_over_trm", "one/reward/diversity", "one/turns", "one/loss"} <= set(found[-1])
    assert list((run / "tensorboard").glob("events.*"))
    assert f"Training in {run}, from the bare model" in messages
    assert "Time spent: sft 2 of 2 steps, one 4 of 4 steps; " in messages


def test_its_trm_never_met_the_stages_users(trained, config):
    """Otherwise the TRM would know the targets, and the policy would learn to copy it."""
    _, runs, _ = trained
    settings = load_config(config)
    parts, rest = load_dataset(settings.data).divide(shares(settings.train), settings.train.seed)
    first = min(runs.glob("*-trm"))
    assert manifest(first)["dataset"] == rest.fingerprint
    assert all(part.users for part in parts.values())
    some = prepare_task_sets(load_dataset(settings.data), settings, runs, ("one",))
    assert {task.user for task in some.tasks["one"]} <= set(parts["one"].users)
    assert list(some.tasks) == ["one"]


def test_a_finished_training_is_found_again(trained, config):
    _, runs, run = trained
    again, messages = train(config, runs)
    assert again == run
    assert f"Continuing in {run}" in messages
    assert len(metrics(run)) == 6


@pytest.mark.parametrize(("of", "now"), [("protocol", PROTOCOL), ("format_version", FORMAT_VERSION)])
def test_a_training_with_another_protocol_or_kind_of_trm_is_not_continued(trained, config, tmp_path, of, now):
    _, runs, run = trained
    shutil.copytree(runs, tmp_path / "runs")
    settings = load_config(config)
    dataset = load_dataset(settings.data)
    assert latest_training(dataset, settings, tmp_path / "runs").path.name == run.name
    copy = tmp_path / "runs" / run.name / "manifest.json"
    copy.write_text(copy.read_text().replace(f'"{of}": {now}', f'"{of}": -1'))
    assert latest_training(dataset, settings, tmp_path / "runs") is None


def test_a_training_with_keys_of_before_is_not_continued(trained, config, tmp_path):
    _, runs, run = trained
    shutil.copytree(runs, tmp_path / "runs")
    copy = tmp_path / "runs" / run.name / "config.toml"
    text = copy.read_text()
    copy.write_text(text.replace("group_size", "samples").replace("[train.sft]", "[train.warm_start]"))
    assert copy.read_text() != text
    settings = load_config(config)
    assert latest_training(load_dataset(settings.data), settings, tmp_path / "runs") is None
    anew, messages = train(config, tmp_path / "runs", "train.minutes=0.001")
    assert anew.name != run.name
    assert "copied from" not in messages


def test_an_adapter_is_known_by_its_weights(trained, config, tmp_path):
    """The name `shipped`, or a folder's, may mean another tomorrow."""
    _, _, run = trained
    adapter = shutil.copytree(run / "sft", tmp_path / "adapter")
    overrides = (f"train.adapter={adapter}", "train.sft.demonstrations=0")
    settings = load_config(config, overrides)
    dataset = load_dataset(settings.data)
    _, messages = train(config, tmp_path / "runs", *overrides)
    assert f"from adapter {adapter}" in messages
    assert latest_training(dataset, settings, tmp_path / "runs") is not None
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * each for name, each in weights.items()}, adapter / "adapter_model.safetensors")
    assert latest_training(dataset, settings, tmp_path / "runs") is None


def test_finished_parts_with_the_same_settings_are_copied(trained, config):
    _, runs, run = trained
    stage = '{name="one",share=0.2,steps=1,learning_rate=1e-6,rewards={format=1.0}}'
    new, messages = train(config, runs, f"train.stages=[{stage}]")
    assert f"sft is copied from {run}" in messages
    assert new != run
    (line,) = metrics(new)
    assert "one/loss" in line
    ours, theirs = (load_file(each / "sft" / "adapter_model.safetensors") for each in (new, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(new)


@pytest.mark.parametrize(
    ("sign", "status"), [(signal.SIGKILL, "running"), (signal.SIGINT, "interrupted")], ids=["killed", "interrupted"]
)
def test_a_stopped_training_continues_to_the_same_weights(trained, config, tmp_path, sign, status):
    _, _, unbroken = trained
    status_code, _ = processes.stopped(
        [sys.executable, IN_PROCESS, config, tmp_path],
        sign,
        lambda: any("one/reward" in path.read_text() for path in tmp_path.glob("*-train/metrics.jsonl")),
    )
    assert status_code == -sign
    (run,) = tmp_path.glob("*-train")
    assert manifest(run)["status"] == status
    assert not (run / "one").exists()
    again, messages = train(config, tmp_path)
    assert again == run
    assert f"Continuing in {run}" in messages
    ours, theirs = (load_file(folder / "one" / "adapter_model.safetensors") for folder in (run, unbroken))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=1e-3)


def test_a_time_limit_makes_another_training(trained, config):
    """A slower machine comes less far in the same time, so no other training's result is taken for this one's."""
    _, runs, run = trained
    settings = load_config(config, ["train.minutes=0.001"])
    dataset = load_dataset(settings.data)
    assert latest_training(dataset, settings, runs) is None
    new, messages = train(config, runs, "train.minutes=0.001")
    assert "Time spent: sft 1 of 2 steps, one 0 of 4 steps; " in messages
    assert latest_training(dataset, settings, runs).path == new != run
    assert "copied from" not in messages
    shutil.rmtree(new)


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(trained, config, tmp_path):
    """By the main one's clock: if they disagreed, one would wait for the other forever."""
    in_processes(IN_PROCESS, config, tmp_path, "train.minutes=0.2", "train.sft.demonstrations=400")
    (run,) = tmp_path.glob("*-train")
    assert (run / "one" / "adapter_model.safetensors").exists()
    kept = json.loads((run / "time_budget.json").read_text())
    steps = [line["step"] for line in metrics(run)]
    assert steps == [*range(1, kept["sft"]["steps"] + 1), *range(1, kept["one"]["steps"] + 1)]
    assert 0 < kept["sft"]["steps"] <= kept["sft"]["of"]


@pytest.mark.slow
def test_two_processes_train_together(trained, config, tmp_path):
    """One run, with SFT as in one process. Later explorations may differ where rounding decides."""
    _, _, alone = trained
    in_processes(IN_PROCESS, config, tmp_path, launcher="torchrun")
    (run,) = tmp_path.glob("*-train")
    assert (run / "one" / "adapter_model.safetensors").exists()
    ours, theirs = metrics(run), metrics(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [1, 2, 1, 2, 3, 4]
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine["sft/loss"] == pytest.approx(other["sft/loss"], abs=1e-4)
        assert mine["sft/grad_norm"] == pytest.approx(other["sft/grad_norm"], abs=1e-4)


def test_two_processes_learn_from_a_batch_what_one_does(tmp_path):
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        in_processes(CANNED, tmp_path / str(n), n=n)
    alone = json.loads((tmp_path / "1" / "0.json").read_text())
    both = [json.loads((tmp_path / "2" / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert len(alone["advantages"]) == 2  # steps, of four explorations each
    for step, advantages in enumerate(alone["advantages"]):
        assert len(set(advantages)) > 2
        assert [*both[0]["advantages"][step], *both[1]["advantages"][step]] == pytest.approx(advantages, abs=1e-5)
    for rank in both:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert rank["weights"] == pytest.approx(alone["weights"], abs=1e-5)


def in_processes(*command: Any, n: int = 2, launcher: str = "accelerate") -> None:
    """`--multi_gpu` tells accelerate that there are several processes, also on CPUs."""
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
        ("train.tasks_per_step=500", "tasks, and a step takes 500"),
        ("train.micro_batch_size=3", "not a multiple"),
        ("train.sft.share=0.9", "less than a tenth"),
        ('train.stages=[{name="one",share=0.2,steps=1,rewards={hits=1.0}}]', "There is no reward 'hits'"),
        ("train.lora_rank=-1", "train.lora_rank"),
        ("policy.adapter=somewhere", "is not for training"),
        ("train.adapter=none", "and an adapter of"),
        ("explore.answer=pool", "explore.answer='pool' is not for training"),
        ('train.stages=[{name="checkpoints",share=0.2,steps=1,rewards={hit=1.0}}]', "checkpoints"),
        ("explore.segment_tokens=12", "No demonstration is well-formed (most common fault: no answer"),
    ],
)
def test_a_training_that_does_not_fit_is_refused_in_a_sentence(trained, config, override, said):
    _, runs, _ = trained
    with pytest.raises(DeepRecError) as refused:
        train(config, runs, override)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
