"""A set that nobody here has seen: two files in RecBole's format, and one command for all the rest."""

from __future__ import annotations

import gzip
import re

import pytest

from command_line import deeprec
from deeprec import assets
from deeprec.config import Config
from deeprec.data.sources import load_dataset
from deeprec.evaluation.plans import load_plan
from deeprec.training.run import prepare_task_sets
from shared_data import shared
from tiny_models import bytes_tokenizer, tiny
from toys import toy_dataset

SMALL = """
[data]
user_core = 100
item_core = 10

[trm]
width = 16
layers = 1
history = 8
epochs = 1

[explore]
answer_size = 3
items_per_call = 3
max_calls = 2
history = 2
segment_tokens = 240

[train]
sft = { demonstrations = 8, batch_size = 4 }

[eval]
cutoffs = [1, 3]
users = 2
"""
SYSTEMS = (
    "popularity",
    "EASE",
    "SASRec with item text",
    "TRM alone",
    "TRM, frequent phrases as preference",
    "TRM, titles of the last three as preference",
    "scripted explorer",
    "language model, titles from memory",
    "language model, one-shot rerank of 20",
    "language model, explorer",
    "language model, one call",
    "language model, trained on this set",
)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """ml-latest-small as a stranger's two files, which need not lie in one folder nor be called alike."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "texts").mkdir()
    packed = shared("ml-latest-small")
    for ending, to in (("inter", "seen.inter"), ("item", "texts/films.item")):
        (folder / to).write_bytes(gzip.decompress((packed / f"ml-latest-small.{ending}.gz").read_bytes()))
    return folder


def run(films, *more, runs="runs"):
    named = ("--data", films / "seen.inter", "--set", f"data.items={films / 'texts' / 'films.item'}")
    return deeprec("experiment", "run", *named, "--runs", films / runs, *more)


def experiment(films, runs):
    (folder,) = (films / runs).glob("experiment-comparison-seen-*")
    return folder


def rows(text):
    """The first cell of the report's first table."""
    table = text.partition("\n| system |")[2].partition("\n\n")[0]
    return tuple(line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:])


def test_two_files_become_a_trained_trm_a_trained_policy_and_the_whole_table(films, stand_in):
    tiny(bytes_tokenizer()).save_pretrained(films / "model")
    bytes_tokenizer().save_pretrained(films / "model")
    (films / "small.toml").write_text(SMALL)
    args = ("--train", "0.001", "--config", films / "small.toml", "--set", f"policy.model={films / 'model'}")
    result = run(films, *args)
    assert result.code == 0, result.err
    text = (experiment(films, "runs") / "report.md").read_text()
    assert rows(text) == SYSTEMS
    assert "Not finished" not in text
    assert re.search(
        r"- language model, trained on this set: time of its training: sft 1 of \d steps, "
        r"cold-start 0 of 30 steps, recommendation 0 of 20 steps; \d+\.\d minutes; .*preference weight 0\.",
        text,
    )
    assert "- language model, trained on this set to language model, explorer: " in text
    (trained,) = (films / "runs").glob("*-train")
    assert (trained / "recommendation" / "adapter_model.safetensors").is_file()

    again = run(films, *args)
    assert again.out.count("done before") == len(SYSTEMS)
    assert list((films / "runs").glob("*-train")) == [trained]

    # What it learns from is what training users chose before the two items that are held out of each.
    plan = load_plan(experiment(films, "runs") / "experiment.toml", Config())
    config = plan.training_of(plan.sets[0], plan.systems[-1], 0)
    dataset = load_dataset(config.data)
    held_out = {
        split: {task.user: dataset.targets(split)[task.id] for task in dataset.tasks(split)}
        for split in ("validation", "test")
    }
    task_sets = prepare_task_sets(dataset, config, films / "runs")
    tasks = [task for each in task_sets.tasks.values() for task in each]
    assert tasks
    for task in tasks:
        shown = {*task.history, *task_sets.followed[task.id]}
        assert not shown & {held_out[split][task.user] for split in held_out}


@pytest.mark.llm
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_model_learns_from_the_two_files(films):
    """With the adapter of the package, three minutes of training and eight users; half an hour on a busy machine."""
    if assets.locate("smollm2-135m-instruct") is None or assets.locate("minilm-l6") is None:
        pytest.skip("the models are not in the cache")
    more = ("--train", "3", "--set", "eval.users=8", "--set", "trm.epochs=2")
    result = run(films, *more, runs="real")
    assert result.code == 0, result.err
    text = (experiment(films, "real") / "report.md").read_text()
    assert rows(text) == SYSTEMS
    came = re.search(r"time of its training: sft (\d+) of \d+ steps, .*; (\d+\.\d) minutes; ", text)
    assert int(came[1]) >= 1
    assert float(came[2]) >= 3
    ran = text.partition("### How the explorers ran")[2].partition("\n###")[0]
    trained = next(line for line in ran.splitlines() if line.startswith("| language model, trained on this set |"))
    assert float(trained.split(" | ")[2].removesuffix(" %")) >= 50, "most of what it explores is well-formed"


def test_without_a_time_nothing_is_trained_but_the_trm(tmp_path):
    def plan(*more):
        result = deeprec("experiment", "run", "--data", "x.inter", "--dry-run", *more)
        assert result.code == 0, result.err
        (tmp_path / "plan.toml").write_text(result.out)
        return load_plan(tmp_path / "plan.toml", Config())

    plain, timed = plan(), plan("--train", "45")
    own = plan("--set", "train.minutes=45", "--set", "train.negative_advantage_weight=1")
    assert tuple(system.name for system in plain.systems) == SYSTEMS[:-1]
    assert "train" not in plain.config
    assert tuple(system.name for system in timed.systems) == SYSTEMS
    trained = timed.training_of(timed.sets[0], timed.systems[-1], 0)
    train, explore = trained.train, trained.explore
    assert (train.minutes, train.adapter, train.negative_advantage_weight) == (45, "shipped", 0.5)
    assert (explore.guidance, explore.preference_weight, trained.policy.adapter) == ("task", None, "none")
    assert own.training_of(own.sets[0], own.systems[-1], 0).train.negative_advantage_weight == 1


INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
ITEM = "item_id:token\ttitle:token_seq\n"


def toy_files(folder):
    dataset = toy_dataset()
    inter = [
        f"{user}\ti{item}\t{n}" for u, user in enumerate(dataset.users) for n, item in enumerate(dataset.sequence(u))
    ]
    (folder / "a.inter").write_text(INTER + "\n".join(inter) + "\n")
    (folder / "b.item").write_text(ITEM + "".join(f"i{n}\tFilm {n}\n" for n in range(len(dataset.catalog))))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (("a.inter", None, None), "There is no file or folder"),
        (("b.item", None, None), "There is no item file"),
        (
            ("a.inter", INTER, "user_id\titem_id\ttimestamp\n"),
            "a.inter, ['user_id', 'item_id', 'timestamp'], has no types",
        ),
        (("b.item", ITEM, "item_id\ttitle\n"), "b.item, ['item_id', 'title'], has no types"),
        (("a.inter", "user_id", "uid"), "a.inter has no user column 'user_id'"),
        (("a.inter", "\t", "~"), "a.inter has no item column 'item_id'"),
        (("b.item", "title", "label"), "b.item has no title column 'title' (its columns: item_id, label): name it"),
        (("b.item", "\ni", "\nj"), "is not in b.item"),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_files_is_one_sentence(tmp_path, damage, said):
    """No part is run, and what is said is what is wrong, not that there is nothing to report."""
    toy_files(tmp_path)
    name, old, new = damage
    if old is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    args = ("--data", tmp_path / "a.inter", "--set", f"data.items={tmp_path / 'b.item'}", "--train", "5")
    result = deeprec("experiment", "run", *args, "--runs", tmp_path / "runs")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert said in result.err
    assert "Traceback" not in result.err + result.out
    assert not list((tmp_path / "runs").glob("*-trm"))


def test_a_set_in_the_place_of_the_plan_is_told_of(tmp_path):
    toy_files(tmp_path)
    result = deeprec("experiment", "run", tmp_path / "a.inter", "--runs", tmp_path / "runs")
    assert result.code == 2
    assert f"use --data {tmp_path / 'a.inter'}" in result.err
