"""Encoders other than MiniLM: random ones that the tests write, in the sentence-transformers layout."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from command_line import deeprec, write_table
from deeprec.config import Config, DataConfig, TRMConfig
from deeprec.data.dataset import Dataset
from deeprec.data.sources import load_dataset
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import Query
from deeprec.runs.progress import Progress
from deeprec.trm.run import load_or_train_trm
from deeprec.trm.text_encoder import TextEncoder, coincidence_notes
from deeprec.trm.trm import TRM
from stand_ins import HashedWords
from tiny_models import write_text_encoder
from toys import toy_dataset

SMALL = TRMConfig(width=16, layers=1, epochs=1)
TEXTS = ["toy story", "千と千尋の神隠し", "a much longer title than the model reads", "x", "ต้มยำกุ้ง 手机壳"]


def by_hand(folder, text, pooling, max_tokens):
    """The vector of one text, from the states of its tokens."""
    tokens = AutoTokenizer.from_pretrained(folder)(text, truncation=True, max_length=max_tokens, return_tensors="pt")
    assert tokens["input_ids"].shape[1] <= max_tokens
    with torch.inference_mode():
        states_TD = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0]
    pooled_D = {"mean": states_TD.mean(0), "cls": states_TD[0], "lasttoken": states_TD[-1]}[pooling]
    return (pooled_D / pooled_D.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("max_tokens", [6, 12])
def test_pooling_and_longest_text_are_those_of_the_files(tmp_path, pooling, max_tokens):
    folder = write_text_encoder(tmp_path, pooling=pooling, max_tokens=max_tokens)
    vectors_ND = TextEncoder(folder).encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(vectors_ND, [by_hand(folder, text, pooling, max_tokens) for text in TEXTS], atol=1e-5)


def test_a_bare_model_has_the_mean_of_at_most_as_many_tokens_as_it_reads(tmp_path):
    folder = write_text_encoder(tmp_path, pooling=None)
    texts = [*TEXTS, "too long " * 50]  # the model has 64 positions, fewer than the default
    expected_ND = [by_hand(folder, text, "mean", 64) for text in texts]
    np.testing.assert_allclose(TextEncoder(folder).encode(texts), expected_ND, atol=1e-5)


def test_the_prompt_of_the_files_comes_before_every_text(tmp_path):
    with_prompt = TextEncoder(write_text_encoder(tmp_path / "prompt", prompt="query: ", max_tokens=60))
    without = TextEncoder(write_text_encoder(tmp_path / "none", max_tokens=60))
    prefixed = [f"query: {text}" for text in TEXTS]
    np.testing.assert_allclose(with_prompt.encode(TEXTS), without.encode(prefixed), atol=1e-5)
    assert abs(with_prompt.encode(TEXTS) - without.encode(TEXTS)).max() > 0.01


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", {"type": "sentence_transformers.models.Dense"}, "parts Transformer, Pooling, Dense, but"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling mean, max, but"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pooling weightedmean, but"),
        ("1_Pooling/config.json", {"include_prompt": False}, "pooling mean without the prompt, but"),
    ],
)
def test_parts_that_are_not_understood_are_refused(tmp_path, file, change, message):
    folder = write_text_encoder(tmp_path, prompt="query: ")
    content = json.loads((folder / file).read_text())
    (content[2] if isinstance(content, list) else content).update(change)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(DeepRecError, match=f"{message}.*mean, cls or lasttoken pooling"):
        TextEncoder(folder)


def test_newer_files_name_the_pooling(tmp_path):
    """sentence-transformers writes them so from version 6 on."""
    folder = write_text_encoder(tmp_path, pooling="mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    np.testing.assert_allclose(
        TextEncoder(folder).encode(TEXTS[:1])[0], by_hand(folder, TEXTS[0], "cls", 12), atol=1e-5
    )


def test_the_digest_is_of_the_files_that_decide_and_of_no_others(tmp_path):
    folder = write_text_encoder(tmp_path / "a")
    digest = TextEncoder(folder).digest
    for name in ("README.md", "asset.json", "other/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    assert TextEncoder(folder).digest == digest
    shutil.move(folder, tmp_path / "b")
    assert TextEncoder(tmp_path / "b").digest == digest
    write_text_encoder(tmp_path / "b", pooling="cls")
    assert TextEncoder(tmp_path / "b").digest != digest


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ml-100k", r"trm.text_encoder='ml-100k' is a data set: name a text encoder"),
        ("smollm2-135m-instruct", r"is a language model: name a text encoder"),
        ("/no/such/folder", r"There is no folder /no/such/folder with a text encoder: bring it back, or name another"),
        (
            "nobody/no-such-model",
            r"trm.text_encoder='nobody/no-such-model' can't be loaded \(.*name an asset \(minilm-l6\)",
        ),
        ("no folder", r"trm.text_encoder='no folder' can't be loaded"),
    ],
)
def test_what_is_no_text_encoder_is_refused(source, message):
    with pytest.raises(DeepRecError, match=message):
        TextEncoder.load(source=source, offline=True)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "modules.json", "1_Pooling/config.json"])
def test_a_damaged_encoder_is_refused(tmp_path, damage):
    folder = write_text_encoder(tmp_path)
    (folder / damage).write_bytes((folder / damage).read_bytes()[:20])
    with pytest.raises(DeepRecError, match="can't be loaded"):
        TextEncoder(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = write_text_encoder(tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "modeling_own.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(DeepRecError, match="parts Transformer, Pooling, Own"):
        TextEncoder(folder)
    assert not ran.exists()


# saved TRMs


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy_dataset(n_users=20)


@pytest.fixture
def encoder(tmp_path):
    return write_text_encoder(tmp_path / "encoder")


def top(trm):
    return [hit.item for hit in trm.retrieve([Query((), "comedy; 1970s")], 10)[0]]


def test_a_saved_trm_brings_its_encoder(tmp_path, dataset, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(trm=SMALL.model_copy(update={"text_encoder": "encoder"}))
    trm, run = load_or_train_trm(dataset, config, tmp_path / "runs")
    assert trm.encoder.width == 32
    monkeypatch.chdir(tmp_path.parent)  # the path that was named was of the other folder
    loaded = TRM.load(run / "trm")
    assert loaded.encoder.source == str(encoder)
    assert top(loaded) == top(trm)
    assert loaded.digest == trm.digest
    monkeypatch.chdir(tmp_path)
    assert load_or_train_trm(dataset, config, tmp_path / "runs")[1] == run
    assert (
        load_or_train_trm(dataset, Config(trm=SMALL.model_copy(update={"text_encoder": str(encoder)})), tmp_path)[1]
        != run
    )


def test_an_encoder_that_has_changed_is_refused(tmp_path, dataset, encoder):
    TRM.fit(dataset, SMALL, TextEncoder(encoder)).save(tmp_path / "trm")
    TRM.load(tmp_path / "trm")
    write_text_encoder(encoder, seed=1)
    with pytest.raises(DeepRecError, match=r"trained with the text encoder .*, whose files were others.* bring that"):
        TRM.load(tmp_path / "trm")
    write_text_encoder(encoder)
    TRM.load(tmp_path / "trm")
    shutil.move(encoder, tmp_path / "moved")
    with pytest.raises(DeepRecError, match=r"trm needs the text encoder of its training. There is no folder"):
        TRM.load(tmp_path / "trm")
    TRM.load(tmp_path / "trm", encoder=TextEncoder(tmp_path / "moved"))
    with pytest.raises(DeepRecError, match="whose vectors have 32 numbers, not 24"):
        TRM.load(tmp_path / "trm", encoder=HashedWords())


def test_a_trm_without_a_record_of_its_encoder_has_the_default_one(tmp_path, dataset, monkeypatch):
    """As those that were saved before there was a choice."""
    sources = []

    def load(**given):
        sources.append(given["source"])
        return HashedWords()

    monkeypatch.setattr(TextEncoder, "load", load)
    trm = TRM.fit(dataset, SMALL)
    trm.save(tmp_path)
    record = json.loads((tmp_path / "trm.json").read_text())
    del record["text_encoder"], record["notes"], record["config"]["text_encoder"]
    (tmp_path / "trm.json").write_text(json.dumps(record))
    assert top(TRM.load(tmp_path)) == top(trm)
    assert sources == ["minilm-l6", "minilm-l6"]


def test_the_command_line_trains_with_an_encoder_of_ones_own(tmp_path, encoder):
    write_table(tmp_path / "table.csv")
    table = f"data.source={tmp_path / 'table.csv'}"
    settings = (table, "trm.epochs=1", "trm.width=16", f"trm.text_encoder={encoder}")
    options = [option for setting in settings for option in ("--set", setting)]
    result = deeprec("trm", "train", "--runs", tmp_path / "runs", *options)
    assert result.code == 0, result.err
    folder = result.out.splitlines()[-1].removeprefix("The trained TRM lies in ")
    assert deeprec("trm", "recommend", folder, "--preference", "Comedy").code == 0
    (encoder / "model.safetensors").unlink()
    broken = deeprec("trm", "recommend", folder, "--preference", "Comedy")
    assert broken.code == 2
    assert "Traceback" not in broken.err
    assert "needs the text encoder of its training" in broken.err


# texts that an encoder can't tell apart


def test_equal_vectors_of_other_texts_are_noted():
    vectors_ND = np.random.default_rng(0).normal(size=(20, 40)).astype(np.float32)
    texts = [f"title {n}" for n in range(20)]
    assert coincidence_notes(texts, vectors_ND) == ()
    vectors_ND[3] = vectors_ND[7] + 1e-7
    assert coincidence_notes(texts, vectors_ND) == ()  # 2 of 20 are not more than a tenth
    vectors_ND[9] = vectors_ND[7]
    (note,) = coincidence_notes(texts, vectors_ND)
    assert note.startswith("3 of 20 items have the text vector of an item with another text")
    assert "trm.text_encoder" in note


def test_equal_texts_have_equal_vectors_and_are_not_noted():
    vectors_ND = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)[[0, 0, 0, 1, 1, 2, 3]]
    assert coincidence_notes(["a", "a", "a", "b", "b", "c", "d"], vectors_ND) == ()
    assert coincidence_notes([], np.empty((0, 40), np.float32)) == ()


def test_a_catalogue_that_the_encoder_cannot_read_is_noted_at_the_training_and_at_the_load(tmp_path, encoder):
    """Khmer titles: none of their letters is in the vocabulary."""
    rows = ["user_id,item_id,timestamp,title"]
    letters = "កខគឃងចឆជឈញ"
    rows += [
        f"u{u},i{(u + n) % 10},{n},{letters[(u + n) % 10]}{letters[(u + n + 1) % 10]}"
        for u in range(20)
        for n in range(6)
    ]
    (tmp_path / "shop.csv").write_text("\n".join(rows) + "\n")
    dataset = load_dataset(DataConfig(source=str(tmp_path / "shop.csv")))
    said = []

    class Messages(Progress):
        def message(self, text):
            said.append(text)

    config = Config(trm=SMALL.model_copy(update={"text_encoder": str(encoder)}))
    for _ in range(2):
        trm, _ = load_or_train_trm(dataset, config, tmp_path / "runs", progress=Messages())
        assert len(trm.notes) == 1
    assert sum(text.startswith("10 of 10 items have the text vector") for text in said) == 2
    assert TRM.fit(dataset, SMALL, TextEncoder(encoder)).notes == trm.notes
