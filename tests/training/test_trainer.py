"""The whole training at small scale, with a random model: SFT, both stages, interruption, TRL's contract."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_training import DATA, LONGER, PARTS, Hashes, StepLog, config_of, fresh

from deeprec.config import ExploreConfig, SFTConfig, TrainConfig
from deeprec.errors import DeepRecError
from deeprec.explore.protocol import answer_text, call_text
from deeprec.explore.trace import Author
from deeprec.policies.scripted import list_titles
from deeprec.policies.text import TextPolicy
from deeprec.retrieval.retriever import Query
from deeprec.rewards.outcome import hit_reward
from deeprec.rewards.rubric import Rubric
from deeprec.training import rollout as rollout_module
from deeprec.training.callback import alarms, measure
from deeprec.training.demonstrations import Example
from deeprec.training.rollout import Rollout, reward_functions
from deeprec.training.schedule import SFT, shared_parts, shares
from deeprec.training.stages import OwnTokensTrainer, arguments, order_of
from deeprec.training.task_sets import TaskSets
from deeprec.training.time_budget import time_spent
from deeprec.training.trainer import train
from tiny_models import bytes_tokenizer, tiny


def without_times(log: StepLog) -> dict[tuple[str, int], dict[str, float]]:
    return {
        key: {name: value for name, value in metrics.items() if not name.startswith(("seconds", "tokens/s"))}
        for key, metrics in log.steps.items()
    }


def test_no_user_is_in_two_parts_or_known_to_the_trm(task_sets: TaskSets) -> None:
    config = config_of().train
    parts, rest = DATA.divide(shares(config), config.seed)
    users = {name: {task.user for task in tasks} for name, tasks in task_sets.tasks.items()}
    assert tuple(users) == PARTS
    assert sum(map(len, users.values())) == len(set().union(*users.values()))
    for name, part in parts.items():
        assert users[name] <= set(part.users)
        assert not users[name] & set(rest.users)


def test_tasks_are_those_whose_target_the_trm_ranks_high_enough(task_sets: TaskSets) -> None:
    config = config_of().train
    near = config.model_copy(update={"max_target_rank": 10})
    parts, _ = DATA.divide(shares(config), config.seed)
    fewer = TaskSets.prepare(parts, task_sets.retriever, DATA.catalog, near)
    targets = {task: items[0] for task, items in fewer.followed.items()}
    for name, tasks in fewer.tasks.items():
        assert 0 < len(tasks) < len(task_sets.tasks[name])
        queries = [Query(task.history, exclude=frozenset(task.history)) for task in tasks]
        ranks = task_sets.retriever.ranks(queries, [targets[task.id] for task in tasks])
        assert ((ranks >= 0) & (ranks < 10)).all()


def test_two_steps_of_each_stage_with_all_weights(task_sets: TaskSets, tmp_path: Path) -> None:
    log = StepLog()
    assert train(fresh(), task_sets, config_of(lora_rank=0), tmp_path, log) == tmp_path / "two"
    assert list(log.steps) == [(stage, step) for stage in PARTS for step in (1, 2)]
    assert_each_stage_learned(log, tmp_path, "model.safetensors")


def assert_each_stage_learned(log: StepLog, folder: Path, name: str) -> None:
    for (part, _), metrics in log.steps.items():
        assert np.isfinite(list(metrics.values())).all()
        if part != SFT:
            assert set(metrics) >= {"reward", "reward/format", "well-formed", "turns", "tokens", "loss", "entropy"}
    weights = [load_file(folder / stage / name) for stage in PARTS]
    for before, after in pairwise(weights):
        assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.fixture(scope="module")
def unbroken(task_sets: TaskSets, tmp_path_factory: Any) -> tuple[StepLog, Path]:
    log = StepLog()
    return log, train(fresh(), task_sets, LONGER, tmp_path_factory.mktemp("unbroken"), log)


@pytest.mark.parametrize("stop_at", [(SFT, 2), ("two", 3)], ids=str)
def test_an_interrupted_training_continues_as_if_it_had_not_been(
    task_sets: TaskSets, unbroken: tuple[StepLog, Path], tmp_path: Path, stop_at: tuple[str, int]
) -> None:
    whole, straight = unbroken
    first, second = StepLog(stop_at), StepLog()
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), task_sets, LONGER, tmp_path, first)
    resumed = train(fresh(), task_sets, LONGER, tmp_path, second)
    assert [*first.steps, *second.steps] == list(whole.steps)  # no step twice, none left out
    logged = without_times(first) | without_times(second)
    for key, metrics in without_times(whole).items():
        assert logged[key] == pytest.approx(metrics, abs=1e-5)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, straight))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=5e-4, rtol=1e-3)  # the learning rate is 0.01


def test_after_a_torn_checkpoint_the_one_before_counts(
    task_sets: TaskSets, unbroken: tuple[StepLog, Path], tmp_path: Path
) -> None:
    whole, straight = unbroken
    with pytest.raises(KeyboardInterrupt):
        train(fresh(), task_sets, LONGER, tmp_path, StepLog(("two", 3)))
    stage = tmp_path / "checkpoints" / "two"
    for name, state in (("checkpoint-8", None), ("checkpoint-9", '{"global_st')):
        (stage / name).mkdir()
        (stage / name / "adapter_model.safetensors").write_bytes(b"torn")
        if state:
            (stage / name / "trainer_state.json").write_text(state)
    second = StepLog()
    resumed = train(fresh(), task_sets, LONGER, tmp_path, second)
    assert list(second.steps) == [("two", 3)]
    assert without_times(second)["two", 3] == pytest.approx(without_times(whole)["two", 3], abs=1e-5)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, straight))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=5e-4, rtol=1e-3)


def test_which_parts_two_trainings_have_in_common() -> None:
    config = config_of().train
    one, two = config.stages

    def shared(**changed: Any) -> list[str]:
        return shared_parts(config, config.model_copy(update=changed))

    assert shared() == [SFT, "one", "two"]
    assert shared(stages=(one,)) == []  # the users are divided differently
    assert shared(stages=(one, two.model_copy(update={"learning_rate": 1.0}))) == [SFT, "one"]
    assert shared(stages=(one.model_copy(update={"steps": 9}), two)) == [SFT]
    assert shared(stages=(one, two.model_copy(update={"share": 0.1}))) == []
    assert shared(sft=config.sft.model_copy(update={"learning_rate": 1.0})) == []
    without = one.model_copy(update={"steps": 0})
    assert shared(stages=(without, two)) == [SFT]
    assert shares(config.model_copy(update={"stages": (without, two)})) == shares(config)
    assert shared(seed=1) == []
    assert shared(tasks_per_step=8, group_size=4) == [SFT]  # which explores nothing
    assert shared(tasks_per_step=8, micro_batch_size=1) == []
    assert shared(minutes=5.0) == []


def test_a_stage_without_steps_is_skipped(task_sets: TaskSets, tmp_path: Path) -> None:
    one, two = config_of().train.stages
    idle = config_of(stages=(one.model_copy(update={"steps": 0}), two.model_copy(update={"steps": 1})))
    log = StepLog()
    assert train(fresh(), task_sets, idle, tmp_path, log) == tmp_path / "two"
    assert {stage for stage, _ in log.steps} == {SFT, "two"}
    assert not (tmp_path / "one").exists()


def test_demonstrations_are_shared_among_data_sets(
    task_sets: TaskSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them come from either catalogue, in a random order."""
    titles = tuple(title.upper() for title in DATA.catalog.titles)
    other = replace(task_sets, catalog=replace(DATA.catalog, titles=titles))
    seen: list[Example] = []

    def learn(model: Any, examples: Sequence[Example], config: TrainConfig, folder: Path, callback: Any) -> None:
        seen.extend(examples)
        folder.mkdir(parents=True)

    monkeypatch.setattr("deeprec.training.trainer.sft", learn)
    config = config_of(stages=(config_of().train.stages[0].model_copy(update={"steps": 0}),))
    train(fresh(), task_sets, config, tmp_path, StepLog(), extra_datasets=[other])
    texts = [fresh().decode(example.tokens).rpartition("<recommendation_list>")[2] for example in seen]
    upper = [any(title in text for title in titles) for text in texts]
    assert (len(upper), sum(upper)) == (8, 4)
    assert upper != sorted(upper)
    assert upper != sorted(upper, reverse=True)


def test_a_training_continues_from_an_adapter(task_sets: TaskSets, tmp_path: Path) -> None:
    """With a learning rate of nearly 0, the result is the adapter it started from."""
    first = train(fresh(), task_sets, config_of(), tmp_path / "first", StepLog())
    still = config_of().train.stages[0].model_copy(update={"learning_rate": 1e-12, "steps": 1})
    settings = config_of().train.sft.model_copy(update={"learning_rate": 1e-12})
    more = config_of(adapter=str(first), sft=settings, stages=(still,))
    parts = {name: task_sets.tasks[name] for name in (SFT, "one")}
    fewer = replace(task_sets, tasks=parts)
    second = train(fresh(), fewer, more, tmp_path / "second", StepLog())
    assert json.loads((first / "deeprec.json").read_text()) == {"guidance": "example", "preference_weight": None}
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (second, first))
    assert all(torch.allclose(ours[name], weight, atol=1e-9) for name, weight in theirs.items())
    assert any(weight.abs().sum() > 0 for name, weight in theirs.items() if "lora_B" in name)
    for wrong, said in (({"adapter": str(tmp_path)}, "no adapter_config"), ({"lora_rank": 2}, "has rank 4")):
        settings = more.model_copy(update={"train": more.train.model_copy(update=wrong)})
        with pytest.raises(DeepRecError, match=said):
            train(fresh(), fewer, settings, tmp_path / "third", StepLog())


def test_the_learning_rate_rises_from_the_first_step_on(task_sets: TaskSets, tmp_path: Path) -> None:
    two, one = config_of().train.stages[0].model_copy(update={"warmup": 1}), config_of().train.stages[1]
    log = StepLog()
    train(fresh(), task_sets, config_of(stages=(two, one)), tmp_path, log)
    rates = [log.steps[stage, step]["learning_rate"] for stage in ("one", "two") for step in (1, 2)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.01])


def test_a_step_of_two_updates_is_reported_once(task_sets: TaskSets, tmp_path: Path) -> None:
    """Otherwise its explorations would count twice, and chance would look like a trend."""
    log, config = StepLog(), config_of(updates_per_step=2, sft=SFTConfig(demonstrations=0))
    train(fresh(), task_sets, config, tmp_path, log)
    assert list(log.steps) == [(stage, step) for stage in ("one", "two") for step in (1, 2)]
    assert time_spent(tmp_path).startswith("one 2 of 2 steps, two 2 of 2 steps; ")


def test_a_time_limit_ends_no_step_between_its_updates(task_sets: TaskSets, tmp_path: Path) -> None:
    log, config = StepLog(), config_of(updates_per_step=2, sft=SFTConfig(demonstrations=0), minutes=1e-9)
    train(fresh(), task_sets, config, tmp_path, log)
    assert list(log.steps) == [("one", 1)]
    assert time_spent(tmp_path).startswith("one 1 of 2 steps, two 0 of 2 steps; ")


def test_an_adapter_of_other_layers_or_scale_is_refused(task_sets: TaskSets, tmp_path: Path) -> None:
    first = train(fresh(), task_sets, config_of(), tmp_path / "first", StepLog())
    weights = load_file(first / "adapter_model.safetensors")
    settings = json.loads((first / "adapter_config.json").read_text())
    for said, kept, changed in (
        ("other layers", len(weights) - 2, {}),
        ("twice its rank but 99", len(weights), {"lora_alpha": 99}),
    ):
        save_file(dict(list(weights.items())[:kept]), first / "adapter_model.safetensors")
        (first / "adapter_config.json").write_text(json.dumps(settings | changed))
        with pytest.raises(DeepRecError, match=said):
            train(fresh(), task_sets, config_of(adapter=str(first)), tmp_path / "second", StepLog())


def test_every_task_is_met_once_before_any_is_met_again() -> None:
    stage, config = config_of().train.stages[0].model_copy(update={"steps": 7}), config_of().train
    order = order_of(["a", "b", "c", "d", "e"], stage, config)
    assert len(order) == 7 * 2
    assert sorted(order[:5]) == sorted(order[5:10]) == ["a", "b", "c", "d", "e"]
    assert order[:5] != order[5:10]
    assert order == order_of(["a", "b", "c", "d", "e"], stage, config)


def test_the_configuration_reaches_the_trainer(tmp_path: Path) -> None:
    more = {"tasks_per_step": 4, "group_size": 6, "micro_batch_size": 2, "updates_per_step": 2}
    config = config_of(**more, temperature=0.7, seed=9).train
    stage = config.stages[0]
    rubric = Rubric({"own": lambda trace, _: 0.0}, {"own": 0.25})
    found = arguments(stage, rubric, config, tmp_path, tiny(bytes_tokenizer()))
    wanted = {
        "max_steps": 2 * 2,
        "per_device_train_batch_size": 2,
        "steps_per_generation": 12,  # 4 · 6 explorations in passes of 2
        "gradient_accumulation_steps": 6,  # half of them an update
        "num_generations": 6,
        "temperature": 0.7,
        "beta": 0.0,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "scale_rewards": "batch",
        "reward_weights": [0.25],
        "learning_rate": stage.learning_rate,
        "max_grad_norm": 1.0,
        "save_steps": 2,  # two updates a step
        "logging_steps": 2,
        "seed": 9,
        "use_cpu": True,
    }
    assert {name: getattr(found, name) for name in wanted} == wanted
    own = stage.model_copy(update={"advantage_normalisation": "none"})
    assert arguments(own, rubric, config, tmp_path, tiny(bytes_tokenizer())).scale_rewards == "none"


def test_a_finished_training_is_not_repeated(task_sets: TaskSets, unbroken: tuple[StepLog, Path]) -> None:
    log, folder = unbroken
    assert_each_stage_learned(log, folder.parent, "adapter_model.safetensors")
    again = StepLog()
    assert train(fresh(), task_sets, LONGER, folder.parent, again) == folder
    assert not again.steps


@pytest.mark.parametrize("negative_advantage_weight", [1.0, 0.25, 0.0])
def test_the_trainer_learns_from_what_was_sampled(
    task_sets: TaskSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, negative_advantage_weight: float
) -> None:
    """TRL gets the tokens, masks and advantages of the traces and rewards, computed by hand here."""
    from datasets import Dataset as Table
    from trl import GRPOTrainer

    monkeypatch.setattr(rollout_module, "RESAMPLING_ROUNDS", 0)
    config = config_of()
    stage = config.train.stages[0]
    texts_ID = Hashes().encode(DATA.catalog.texts())
    rubric = Rubric.build(stage.rewards, Hashes().encode, texts_ID, task_sets.retriever.index.vectors_ID)
    rolled_out: dict[str, Any] = {}

    def on_rollout(traces: Any, scores: Any, seconds: Any) -> None:
        rolled_out.update(traces=traces, scores=scores)

    tasks = task_sets.tasks["one"]
    trainer = OwnTokensTrainer(
        fresh().model,
        reward_functions(rubric),
        arguments(stage, rubric, config.train, tmp_path, tiny(bytes_tokenizer())),
        train_dataset=Table.from_dict({"prompt": [task.id for task in tasks]}),
        processing_class=bytes_tokenizer(),
        rollout_func=Rollout(task_sets, tasks, rubric, config, on_rollout),
    )
    trainer.negative_advantage_weight = negative_advantage_weight
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": task.id} for task in tasks[:2] for _ in range(2)])
    assert [trace.task for trace in rolled_out["traces"]] == [task.id for task in tasks[:2] for _ in range(2)]
    for row, trace in enumerate(rolled_out["traces"]):
        tokens, written, logprobs = trace.tokens()
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
        kept = batch["completion_mask"][row].bool()
        assert prompt + batch["completion_ids"][row][kept].tolist() == tokens
        assert [False] * len(prompt) + batch["tool_mask"][row][kept].bool().tolist() == written
        trained = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.tensor([tokens]),
            torch.ones(1, len(tokens), dtype=torch.long),
            len(tokens) - len(prompt),
        )[0][0]
        for ours, theirs, own in zip(logprobs[len(prompt) :], trained.tolist(), written[len(prompt) :], strict=True):
            if own:
                assert ours == pytest.approx(theirs, abs=1e-3)
    rewards = np.array([scored.total for scored in rolled_out["scores"]]).reshape(2, 2)
    assert len(set(rewards.ravel())) > 1
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(ddof=1) + 1e-4)
    expected = np.where(expected < 0, negative_advantage_weight * expected, expected)
    np.testing.assert_allclose(batch["advantages"].numpy(), expected.ravel(), atol=1e-4)
    # Scoring only the policy's own tokens, without padding, gives TRL's gradients.
    trainer.current_gradient_accumulation_steps = 1
    shortest = int(batch["completion_mask"].sum(1).argmin())
    for first, last in ((0, 4), (shortest, shortest + 1)):
        part = {name: value[first:last] if getattr(value, "ndim", 0) else value for name, value in batch.items()}
        learned, positions = [], []
        hook = trainer.model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args, positions=positions: positions.append(args[0].numel())
        )
        for compute_loss in (OwnTokensTrainer._compute_loss, GRPOTrainer._compute_loss):
            trainer.model.zero_grad()
            compute_loss(trainer, trainer.model, part).backward()
            gradient = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
            learned.append((gradient, trainer._metrics["train"]["entropy"].pop()))
        hook.remove()
        assert learned[0][0].abs().max() > 1e-3
        torch.testing.assert_close(learned[0][0], learned[1][0], atol=1e-6 if last - first > 1 else 5e-6, rtol=1e-3)
        assert learned[0][1] == pytest.approx(learned[1][1], rel=1e-3)
    own = (part["completion_mask"] * part["tool_mask"])[0].nonzero()
    assert positions[0] == part["prompt_mask"].sum() + own.max() + 1 < positions[1]


def test_other_tasks_replace_groups_of_equal_rewards(task_sets: TaskSets, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trainer:
        model = tiny(bytes_tokenizer())
        processing_class = bytes_tokenizer()

        class accelerator:  # noqa: N801
            unwrap_model = staticmethod(lambda model: model)
            process_index = 0

        class state:  # noqa: N801
            global_step = 3

    tasks = task_sets.tasks["one"]
    first, second = tasks[0], tasks[1]
    same = {first.id}
    rubric = Rubric({"own": lambda trace, _: 1.0 if trace.task in same else float(hash(trace))}, {"own": 1.0})
    config, steps = config_of(), []
    rollout = Rollout(task_sets, tasks, rubric, config, lambda *step: steps.append(step))
    found = rollout([first.id, first.id, second.id, second.id], Trainer)
    groups = [trace.task for trace in steps[-1][0]]
    assert groups[0] == groups[1] not in (first.id, second.id)
    assert groups[2:] == [second.id, second.id]
    assert len(found["prompt_ids"]) == len(found["env_mask"]) == len(found["scored"]) == 4
    same |= {task.id for task in tasks} - {second.id}
    rollout([first.id, first.id, second.id, second.id], Trainer)
    assert len(steps[-1][0]) == 4  # no better task was found, and the training continues

    # Each reward comes with that of the TRM's own list for the same task.
    rollout.rubric = Rubric(
        {"hit": hit_reward, "calls": lambda trace, _: -len(trace.turns)}, {"hit": 1.0, "calls": 9.0}
    )
    monkeypatch.setattr(rollout_module, "RESAMPLING_ROUNDS", 0)
    rollout([task.id for task in tasks for _ in range(2)], Trainer)
    queries = [Query(task.history, exclude=frozenset(task.history)) for task in tasks]
    ranks = task_sets.retriever.ranks(queries, [task_sets.followed[task.id][0] for task in tasks])
    hits = [float(0 <= rank < config.explore.answer_size) for rank in ranks for _ in range(2)]
    traces, scores, _ = steps[-1]
    assert [scored.trm_total for scored in scores] == hits
    assert 0 < sum(hits) < len(hits)
    rewards = [9.0 * -len(trace.turns) + scored.terms["hit"] for trace, scored in zip(traces, scores, strict=True)]
    assert measure(traces, scores)["reward_over_trm"] == pytest.approx(np.mean(rewards) - np.mean(hits))


def test_a_stage_learns_only_the_policys_tokens_of_explorations_with_calls(
    task_sets: TaskSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model makes no calls, so a script explores."""

    class Script(TextPolicy):
        calls = 0

        def _text(self, request: Any) -> str:
            if lists := list_titles(self.decode(request.context)):
                return answer_text("I rank.", lists[0])
            self.calls += 1
            return call_text("Hm.", DATA.catalog.titles[self.calls])

    seen: list[tuple[Any, dict[str, Any]]] = []
    fields_of = rollout_module._fields

    def recording(traces: Any) -> dict[str, Any]:
        seen.append((traces, fields_of(traces)))
        return seen[-1][1]

    monkeypatch.setattr(rollout_module, "_fields", recording)
    monkeypatch.setattr(rollout_module, "RESAMPLING_ROUNDS", 0)
    stage = config_of().train.stages[0].model_copy(update={"steps": 1})
    config, log = config_of(sft=SFTConfig(demonstrations=0), stages=(stage,)), StepLog()
    train(fresh(), task_sets, config, tmp_path, log, lambda model, tokenizer: Script(str, fresh()))
    ((traces, fields),) = seen
    for row, trace in enumerate(traces):
        prompt, *rest = trace.segments
        assert [segment.author for segment in rest] == [Author.POLICY, Author.ENVIRONMENT, Author.POLICY]
        assert fields["prompt_ids"][row] == list(prompt.tokens)
        assert fields["completion_ids"][row] == [token for segment in rest for token in segment.tokens]
        mask = [int(segment.author is Author.POLICY) for segment in rest for _ in segment.tokens]
        assert fields["env_mask"][row] == mask
        assert len(fields["logprobs"][row]) == len(mask)
    metrics = log.steps["one", 1]
    assert metrics["well-formed"] == metrics["turns"] == 1
    assert metrics["reward/format"] == 0
    assert metrics["tokens"] == np.mean([sum(mask) for mask in fields["env_mask"]])


def test_a_stage_without_enough_tasks_is_refused(task_sets: TaskSets, tmp_path: Path) -> None:
    many = config_of(tasks_per_step=1000)
    with pytest.raises(DeepRecError, match=r"Stage 'one' has \d+ tasks, and a step takes 1000"):
        train(fresh(), task_sets, many.model_copy(), tmp_path, StepLog())


def test_a_loss_that_is_not_finite_says_what_to_do(task_sets: TaskSets, tmp_path: Path) -> None:
    stages = [s.model_copy(update={"learning_rate": float("1e30"), "steps": 3}) for s in config_of().train.stages]
    with pytest.raises(DeepRecError, match=r"Step \d of one has .* nan.*Lower the learning_rate|logits are not numbers"):
        train(fresh(), task_sets, config_of(stages=stages), tmp_path, StepLog())
    assert json.loads((tmp_path / "checkpoints" / "one" / "checkpoint-1" / "trainer_state.json").read_text())


def test_a_step_for_which_the_disk_has_no_room_is_not_saved(
    task_sets: TaskSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space needed depends on the trained weights. Earlier checkpoints stay, and the same call continues."""
    policy, config, log = fresh(), config_of(), StepLog()
    assert config.train.stages[0].steps > 1
    first, usage = tmp_path / "checkpoints" / "one" / "checkpoint-1", shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1 << (29 if first.exists() else 40)))
        with pytest.raises(DeepRecError, match=r"left, and saving a step takes 51[2-9]: free some space"):
            train(policy, task_sets, config, tmp_path, log)
    assert list(first.parent.glob("checkpoint-*")) == [first]
    train(fresh(), task_sets, config, tmp_path, log)
    assert (tmp_path / "one").is_dir()


@pytest.mark.parametrize("part", ["checkpoint", "finished part"])
def test_a_disk_that_fills_up_while_saving_is_reported(
    task_sets: TaskSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Writes to a device that is always full: PyTorch's own error does not mention a disk."""
    usage, policy = shutil.disk_usage, fresh()

    def write(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
        torch.save(torch.zeros(100_000), "/dev/full")

    if part == "checkpoint":
        monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", write)
    else:
        monkeypatch.setattr(type(policy.tokenizer), "save_pretrained", write)
    with pytest.raises(DeepRecError, match=r"The disk of .* is full: free some space"):
        train(policy, task_sets, config_of(), tmp_path, StepLog())
    assert not (tmp_path / "one").exists()


def test_alarms_of_collapse() -> None:
    explore = ExploreConfig(max_calls=3)
    fine = {"turns": 2.0, "well-formed": 0.9, "entropy": 0.5, "repeated preferences": 0.1, "equal groups": 0.2}
    assert alarms(fine, explore) == []
    for name, value in (
        ("turns", 0.1),
        ("well-formed", 0.1),
        ("entropy", 0.001),
        ("repeated preferences", 0.5),
        ("equal groups", 0.9),
        ("stop/segment limit", 0.6),
    ):
        assert len(alarms(fine | {name: value}, explore)) == 1
    assert alarms(fine | {"turns": 2.95}, explore) == []  # the cold start pays for three calls
    assert len(alarms(fine | {"turns": 5.95}, ExploreConfig(max_calls=6))) == 1
