"""Every system keeps a contract: it ranks alike each time, resumes, and its key changes with what it reads alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT, load_config
from deeprec.evaluation.cached_results import TraceLog
from deeprec.evaluation.metrics import ndcg_at, ranks_of
from deeprec.evaluation.models import Models
from deeprec.evaluation.plans import SystemPlan
from deeprec.evaluation.rankings import rankings_of
from deeprec.evaluation.systems import KINDS, AnyExplorer, AnyRetriever
from deeprec.explore.explorer import Explorer
from deeprec.explore.protocol import END_ANSWER
from deeprec.policies.scripted import ScriptedPolicy, ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.retrieval.baselines import EASERetriever, PopularityRetriever
from deeprec.retrieval.retriever import Retriever, top_hits
from deeprec.trm.preferences import frequent_phrases
from stand_ins import HashedWords
from toys import toy_dataset

DATASET = toy_dataset()
TASKS = DATASET.tasks("test")[:12]
K = 3
CONFIGURED = ("policy.kind=scripted", "explore.answer_size=3", "explore.items_per_call=4", "explore.batch_size=5")
CONFIG = load_config(None, CONFIGURED)


class ByPreference(Retriever):
    """Stands in for the TRM: popularity, and more for items whose category the preference names."""

    catalog = DATASET.catalog
    preference_weight = 0.3

    def __init__(self):
        self.popularity = PopularityRetriever.fit(DATASET.train_sequences(), len(DATASET.catalog))
        self.asked = []

    def retrieve(self, queries, k):
        self.asked += queries
        bonus = [
            [q.preference_weight * (c[0].lower() in q.preference.lower()) for c in self.catalog.categories]
            for q in queries
        ]
        return top_hits(self.popularity.counts_I / 100 + np.array(bonus), queries, k)


def answer(conversation):
    """Explores as the script does, ranks the first candidates, or writes titles from memory."""
    if "Candidates:" in conversation:
        lines = conversation.rpartition("Candidates:\n")[2].partition("\nAssistant:")[0].split("\n")
        titles = [line.partition(". ")[2] for line in lines if line[:1].isdigit()][2:5]
    elif conversation.endswith("1."):
        titles = ["Film 3 (1973)", "Film 4", "Some film"]
    else:
        return ScriptedWriter(3)(conversation)
    return f" {titles[0]}\n2. {titles[1]}\n3. {titles[2]}\n{END_ANSWER}"


class Loaded(Models):
    """Gives a stand-in for the TRM, and a writer for the language model."""

    def __init__(self):
        super().__init__(None, offline=True)
        self.retriever = ByPreference()
        self.weights = "weights"

    def trm(self, config):
        self.retriever.digest = f"{self.weights} of {config.trm}"
        return self.retriever

    def policy(self, config):
        return TextPolicy(answer)


@pytest.fixture(autouse=True)
def hashed_words(monkeypatch):
    monkeypatch.setattr("deeprec.trm.text_encoder.TextEncoder.load", lambda **_: HashedWords())


@cache
def changes():
    """A configuration with one key changed, by section and key."""
    return {
        (section, key): load_config(None, [*CONFIGURED, f"{section}.{key}={value}"])
        for section, key, value in (
            ("trm", "width", 32),
            ("trm", "seed", 7),
            ("policy", "model", "other"),
            ("policy", "dtype", "float32"),
            ("policy", "url", "http://x"),
            ("explore", "history", 5),
            ("explore", "items_per_call", 6),
            ("explore", "answer_size", 4),
            ("explore", "max_calls", 2),
            ("explore", "answer", "pool"),
            ("explore", "segment_tokens", 50),
            ("explore", "context_tokens", 2048),
            ("explore", "guidance", "rules"),
            ("explore", "preference_weight", DEFAULT_PREFERENCE_WEIGHT),
            ("explore", "temperature", 0.5),
            ("explore", "seed", 7),
            ("explore", "batch_size", 9),
            ("train", "seed", 7),
            ("serve", "slots", 3),
            ("eval", "exclude", "none"),
        )
    }


TRM = {("trm", "width"), ("trm", "seed")}
MODEL = {("policy", "model"), ("policy", "dtype")}
ONE_SHOT = {("explore", key) for key in ("history", "answer_size", "segment_tokens", "context_tokens")}
EXPLORE = {key for key in changes() if key[0] == "explore"} - {("explore", "batch_size")}
WEIGHT = {("explore", "preference_weight")}


class SystemContract:
    """Fixtures of a subclass: `kind`, and `reads`, the changed keys that change the system's key."""

    kind = ""
    reads = frozenset()
    text = True
    """Whether the items' text decides the rankings."""

    def system(self, config=CONFIG, dataset=DATASET, **plan):
        made = SystemPlan(name="a system", kind=self.kind, **plan)
        return KINDS[self.kind](made, config, dataset, Loaded())

    def test_ranks_new_items_and_alike_each_time(self):
        found = self.system().rank(TASKS, K)
        assert len(found.rankings) == len(TASKS)
        for task, ranking in zip(TASKS, found.rankings, strict=True):
            assert 0 < len(ranking) <= K
            assert len(set(ranking)) == len(ranking)
            assert not set(ranking) & set(task.history)
        assert self.system().rank(TASKS, K).rankings == found.rankings
        assert self.system().rank(TASKS[5:], K).rankings == found.rankings[5:]

    def test_resumes_from_the_log(self, tmp_path):
        unbroken = self.system().rank(TASKS, K)
        path = tmp_path / "traces.jsonl"
        self.system().rank(TASKS[:7], K, TraceLog(path))
        ranked = self.system().rank(TASKS, K, TraceLog(path))
        assert ranked.rankings == unbroken.rankings
        if unbroken.traces is None:
            assert not path.exists()
        else:
            assert path.read_text().count('"trace"') == len(TASKS)

    def test_the_key_changes_exactly_with_what_it_reads(self):
        before = self.system().cache_key()
        assert self.system().cache_key() == before
        changed = {key for key, config in changes().items() if self.system(config).cache_key() != before}
        assert changed == self.reads | {("eval", "exclude")}

    def test_the_key_has_what_is_excluded_and_not_who_said_so(self):
        repeated = replace(DATASET, exclude_history=False)
        said = [load_config(None, [*CONFIGURED, f"eval.exclude={what}"]) for what in ("history", "none")]
        for dataset, each in ((DATASET, said[0]), (repeated, said[1])):
            key = self.system(dataset=dataset).cache_key()
            assert self.system(each, dataset).cache_key() == key
        assert self.system(dataset=DATASET).cache_key() != self.system(dataset=repeated).cache_key()

    def test_the_key_changes_with_the_trm_s_weights(self):
        system = self.system()
        before = system.cache_key()
        system.models.weights = "other weights"
        assert (system.cache_key() != before) == (self.reads >= TRM)

    def test_the_key_changes_with_the_data(self):
        before = self.system().cache_key()
        assert self.system(dataset=toy_dataset(seed=1)).cache_key() != before
        titles = ("New", *DATASET.catalog.titles[1:])
        retitled = replace(DATASET, catalog=replace(DATASET.catalog, titles=titles))
        assert (self.system(dataset=retitled).cache_key() != before) == self.text


class TestPopularity(SystemContract):
    kind, text = "popularity", False


class TestTransitions(SystemContract):
    kind, text = "transitions", False


class TestEASE(SystemContract):
    kind, text = "ease", False

    def test_its_regularisation_is_chosen_on_validation(self):
        system = self.system()
        system.rank(TASKS, K)
        tasks, targets = DATASET.tasks("validation"), DATASET.targets("validation")

        def ndcg(value):
            retriever = EASERetriever.fit(DATASET.train_sequences(), len(DATASET.catalog), value)
            wanted = [targets[task.id] for task in tasks]
            return ndcg_at(ranks_of(rankings_of(retriever, tasks, 10), wanted), 10).mean()

        best = max((20.0, 50.0, 200.0, 500.0, 1000.0), key=ndcg)
        assert system.note == f"regularisation {best:g} of 20, 50, 200, 500, 1000, by validation NDCG@10"


class TestTRM(SystemContract):
    kind, reads = "trm", TRM


class TestFrequentPhrases(SystemContract):
    kind, reads = "frequent-phrases", TRM | WEIGHT

    @pytest.mark.parametrize(("configured", "weight"), [((), 0.3), (("explore.preference_weight=0.6",), 0.6)])
    def test_asks_with_the_configured_or_the_calibrated_weight(self, configured, weight):
        system = self.system(load_config(None, [*CONFIGURED, *configured]))
        system.rank(TASKS[:1], K)
        (query,) = system.models.retriever.asked
        assert query.preference == "; ".join(frequent_phrases(DATASET.catalog, TASKS[0].history))
        assert query.preference_weight == weight
        assert system.note == f"preference weight {weight}"


class TestRecentTitles(SystemContract):
    kind, reads = "recent", TRM | WEIGHT

    def test_asks_with_the_last_three_titles(self):
        system = self.system()
        system.rank(TASKS[:1], K)
        titles = [DATASET.catalog.titles[item] for item in TASKS[0].history[:-4:-1]]
        assert [query.preference for query in system.models.retriever.asked] == ["; ".join(titles)]


class TestScript(SystemContract):
    kind, reads = "script", TRM | EXPLORE


class TestFusion(SystemContract):
    kind, reads = "fusion", TRM | EXPLORE


class TestTitles(SystemContract):
    kind, reads = "titles", MODEL | ONE_SHOT


class TestRerank(SystemContract):
    kind, reads = "rerank", TRM | MODEL | ONE_SHOT | {("explore", "answer")}

    def test_the_number_of_candidates_counts(self):
        assert self.system().cache_key() != self.system(candidates=7).cache_key()
        assert self.system().rank(TASKS, K).explorer is None, "it calls no tool"


class TestExplore(SystemContract):
    kind, reads = "explore", TRM | MODEL | EXPLORE

    def test_an_adapter_counts_by_its_weights(self, tmp_path):
        keys = []
        for folder, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "adapter_config.json").write_text("{}")
            (tmp_path / folder / "adapter_model.safetensors").write_bytes(weights)
            own = {"kind": "transformers", "adapter": str(tmp_path / folder)}
            policy = CONFIG.policy.model_copy(update=own)
            keys.append(self.system(CONFIG.model_copy(update={"policy": policy})).cache_key())
        assert keys[0] == keys[1] != keys[2]

    def test_its_note_names_the_policy(self):
        system = self.system()
        system.rank(TASKS[:1], K)
        assert system.note == "smollm2-135m-instruct, untrained; preference weight 0.3"


class TestExternal(SystemContract):
    kind, text = "external", False

    @pytest.fixture(autouse=True)
    def file(self, tmp_path):
        self.path = tmp_path / "rankings.tsv"
        rows = [
            [task.user, *(DATASET.catalog.ids[item] for item in range(40) if item not in task.history)]
            for task in DATASET.tasks("test")
        ]
        self.path.write_text("".join("\t".join(row[:6]) + "\n" for row in rows))

    def system(self, config=CONFIG, dataset=DATASET, **plan):
        made = SystemPlan(name="a system", kind="external", file=str(self.path), **plan)
        return KINDS["external"](made, config, dataset, Loaded(), self.path)

    def test_the_key_changes_with_the_file(self):
        before = self.system().cache_key()
        self.path.write_text(self.path.read_text() + "other\n")
        assert self.system().cache_key() != before


def test_every_kind_is_tested():
    tested = {test.kind for test in SystemContract.__subclasses__()}
    assert tested == set(KINDS)


# Systems of your own


def test_any_retriever_and_any_explorer_is_a_system():
    retriever = ByPreference()
    alone = AnyRetriever("mine", retriever)
    assert alone.rank(TASKS, K).rankings == rankings_of(retriever, TASKS, K)
    assert (alone.on_sample, alone.cache_key() == alone.cache_key()) == (False, False)
    limits = CONFIG.explore
    script = AnyExplorer("script", Explorer(ScriptedPolicy(3), retriever, DATASET.catalog, limits))
    assert not script.on_sample
    found = script.rank(TASKS, K)
    assert found.explorer is not None
    assert [trace.task for trace in found.traces] == [task.id for task in TASKS]
    assert AnyExplorer("model", Explorer(TextPolicy(answer), retriever, DATASET.catalog, limits)).on_sample
