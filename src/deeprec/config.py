"""Frozen configuration: one TOML file per run, dotted overrides, unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deeprec.errors import DeepRecError
from deeprec.toml import apply_override, read_toml

TRUST = 0.75
"""How far a preference is believed unless someone says otherwise; chosen on validation, see docs/trm.md."""

Whitening = Literal["batch", "group", "none"]

Guidance = Literal["task", "rules", "example"]
"""How much of the protocol a prompt explains. A model that was trained to explore needs the task alone."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Columns(Section):
    """Names of the columns in a user's own table; other formats name theirs themselves.

    A column that is named must be there; one that is None is looked for under its usual names.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = Field(
        None, description="time of the interaction (number, or ISO date); default: timestamp, time, date"
    )
    position: str | None = Field(None, description="rank inside the user, for data without times; default: position")
    title: str = Field("title", description="in the item file or, without one, in the interactions")
    year: str | None = Field(None, description="default: release_year, year")
    categories: str | None = Field(None, description="default: genres, class, genre, categories, category")
    category_separator: str | None = Field(None, min_length=1, description="default: the first of | ; , that occurs")
    brand: str | None = Field(None, description="default: brand, store")
    description: str | None = Field(None, description="default: description")


class DataConfig(Section):
    """Where interactions and item text come from, and how they become a Dataset."""

    source: str = Field("ml-100k", description="an asset's name, a folder, or an interaction file")
    format: Literal["auto", "recbole", "movielens", "amazon2023", "table"] = "auto"
    items: str | None = Field(None, description="item file, where it is not found beside the interactions")
    columns: Columns = Columns()
    user_core: int = Field(3, ge=1, description="keep users with at least this many interactions")
    item_core: int = Field(5, ge=1, description="keep items with at least this many interactions")
    repeats: Literal["first", "last", "keep"] = Field(
        "first", description="which of a user's repeated interactions with one item to keep"
    )
    max_bad_share: float = Field(0.01, ge=0, le=1, description="refuse the load past this share of bad rows")
    title_chars: int = Field(80, ge=8, description="longer titles are cut at a word")
    time_split: tuple[float, float] | None = Field(
        None, description="shares of the interactions, by time: train before the first, validate before the second"
    )

    @field_validator("time_split")
    @classmethod
    def _shares_rise(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] < value[1] < 1:
            raise ValueError("time_split is two rising shares between 0 and 1, as in [0.8, 0.9]")
        return value


class TRMConfig(Section):
    """The preference-aware sequential recommender and its training."""

    width: int = Field(64, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    history: int = Field(50, ge=1, description="most recent items that the encoder reads")
    epochs: int = Field(60, ge=1)
    patience: int = Field(5, ge=1, description="validations without a better NDCG@10 before stopping")
    minutes: float | None = Field(None, gt=0, description="begin no epoch after so much training; default: no limit")
    batch_places: int = Field(2048, ge=1, description="training positions a step")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    averaging: float = Field(3.0, ge=0, description="epochs that the moving average of the weights spans; 0: none")
    id_dropout: float = Field(0.1, ge=0, lt=1, description="share of items that a step knows by their text alone")
    preference_dropout: float = Field(0.3, ge=0, le=1, description="share of training positions without a preference")
    history_preference: float = Field(0.3, ge=0, le=1, description="share with one made of the history")
    preference_window: int = Field(5, ge=1, description="the others are made of one of so many next items")
    exact_preference: float = Field(0.3, ge=0, le=1, description="share of these that are made of the very next")
    neighbours: float = Field(1.0, ge=0, description="weight of what stood near the history in training; 0: none")
    lexical: float = Field(0.15, ge=0, description="weight of the words that a preference and an item share; 0: none")
    index: Literal["auto", "exact", "hnsw", "ivfpq"] = Field(
        "auto", description="exact search, or FAISS; auto is exact up to 200,000 items"
    )
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TRMConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.preference_dropout + self.history_preference > 1 + 1e-9:
            raise ValueError("preference_dropout and history_preference sum to more than 1")
        return self


TRAINABLE = ("transformers", "vllm")
"""Kinds of policies that can be trained."""


class PolicyConfig(Section):
    """The language model that explores."""

    kind: Literal["transformers", "openvino", "vllm", "openai", "scripted"] = "transformers"
    model: str = Field("smollm2-135m-instruct", description="an asset's name, a model folder, a hub id, or a server's")
    adapter: str = Field(
        "shipped", description="a peft adapter folder; shipped: DeepRec's own, where it is the model's; none"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = Field(
        "auto", description="auto, cpu, cuda, cuda:1, ...; vLLM takes what it was built for, OpenVINO cpu"
    )
    gpu_share: float | None = Field(
        None, gt=0, le=1, description="of the GPU's memory that vLLM may take; default: 0.9, beside a training 0.4"
    )
    url: str | None = Field(None, description="of an OpenAI-compatible server, as in http://127.0.0.1:8000/v1")
    api: Literal["completions", "chat"] = Field("completions", description="of that server; chat where it has no other")
    timeout: float = Field(60.0, gt=0, description="seconds of silence; a request not yet answered is then made again")
    retries: int = Field(3, ge=0, description="of a request that the server did not take")
    price_read: float = Field(0.0, ge=0, description="of a million tokens that the server reads")
    price_written: float = Field(0.0, ge=0)


class ExploreConfig(Section):
    """Limits of one exploration.

    The defaults are those that the adapter which comes with the package was trained with. The paper's: 20 titles of
    history, 20 items a call, 10 answers, 8 calls, 2,048 tokens a segment, 16,384 of context.
    """

    history: int = Field(6, ge=1, description="most recent titles that the prompt shows")
    items_per_call: int = Field(8, ge=1, description="more where so few calls would not fill the answer")
    answer_size: int = Field(10, ge=1)
    max_calls: int = Field(3, ge=1)
    horizon: int | None = Field(
        None, ge=1, description="calls after which it ends unanswered; default: it goes on to its answer"
    )
    answer: Literal["free", "pool"] | None = Field(
        None, description="pool: titles that were retrieved, and nothing else, between the answer's tags; default: free"
    )
    segment_tokens: int | None = Field(
        None, ge=1, description="new tokens between two tool results; default: 220, or more for long titles"
    )
    context_tokens: int = Field(4096, ge=64, description="prompt and everything after it")
    guidance: Guidance | None = Field(
        None,
        description="of the prompt: the task in a line, the rules, or an invented example as well; default: what comes "
        "with the adapter, else the example",
    )
    trust: float | None = Field(
        None,
        ge=0,
        le=1,
        description="how far the TRM believes a preference; default: what comes with the adapter, else what the TRM "
        f"found best on its catalogue; {TRUST} for what people say",
    )
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(32, ge=1, description="explorations in flight at once")
    seed: int = Field(0, ge=0, lt=2**32)


def guidance_of(explore: ExploreConfig) -> Guidance:
    """Of the prompt, where no policy says otherwise."""
    return explore.guidance or "example"


def trust_of(explore: ExploreConfig) -> float:
    """How far a preference is believed where no policy or retriever says otherwise, as those of people."""
    return TRUST if explore.trust is None else explore.trust


def belief_of(explore: ExploreConfig) -> str:
    """How far, in words, for reports."""
    return f"preferences are believed to {trust_of(explore)}"


def items_of(explore: ExploreConfig) -> int:
    """That a call brings: never so few that all calls together could not fill the answer."""
    return max(explore.items_per_call, -(-explore.answer_size // explore.max_calls))


class RewardConfig(Section):
    """The paper's constants, and one of ours. Which terms count, and how much, is a stage's to say."""

    format_penalty: float = -1.0
    invocation_step: float = 0.5
    invocation_calls: int = 3
    diversity_scale: float = 0.2
    hit_value: float = 1.0
    rank_step: float = 0.2
    pointwise_scale: float = 10.0
    foresight_scale: float = 0.5


class WarmStartConfig(Section):
    """Imitation of explorations written with hindsight, for models too small to find the protocol by themselves."""

    share: float = Field(0.15, ge=0, le=1, description="of the users, who serve nothing else")
    tasks: int = Field(1500, ge=0, description="explorations to learn from; 0: no warm start")
    beside: tuple[str, ...] = Field((), description="other data sets, as in data.source, that give their share of them")
    learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(8, ge=1)


class StageConfig(Section):
    """A stage of reinforcement learning."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9-]+$")
    share: float = Field(ge=0, le=1, description="of the users, who serve nothing else")
    steps: int = Field(ge=0, description="0 leaves the stage out, but not its users to others")
    learning_rate: float = Field(2e-5, gt=0)
    warmup: int = Field(
        0, ge=0, description="steps in which the rate rises to this; Adam's first ones move each weight by all of it"
    )
    whitening: Whitening | None = Field(None, description="of this stage; default: `train.whitening`")
    horizon: int | None = Field(None, ge=1, description="of this stage's explorations; default: `explore.horizon`")
    rewards: dict[str, float] = Field(
        min_length=1, description="weights by name, 0 for a metric; `package.module:function` names one of your own"
    )


class TrainConfig(Section):
    """The policy's training: a warm start, then the stages, each from the weights before it.

    The defaults suit a small model on a processor. The paper's: no warm start, 128 tasks a step, 20 and 80 steps,
    2 updates a step, learning rate 1e-6, all weights.
    """

    lora_rank: int = Field(16, ge=0, description="of the adapter that is trained; 0: all weights")
    adapter: str | None = Field(
        None, description="of that rank, to go on from: a folder, or shipped, where it is the model's; default: anew"
    )
    per_user: int = Field(20, ge=1, description="a training user's last items that serve as targets")
    reach: int = Field(100, ge=1, description="keep tasks whose target the TRM alone ranks so high")
    warm_start: WarmStartConfig = WarmStartConfig()
    stages: tuple[StageConfig, ...] = (
        StageConfig(
            name="cold-start",
            share=0.05,
            steps=20,
            rewards={"format": 1.0, "invocation": 1.0, "diversity": 1.0, "hit": 0.0, "rank": 0.0, "pointwise": 0.0},
        ),
        StageConfig(
            name="recommendation",
            share=0.1,
            steps=60,
            rewards={"format": 1.0, "invocation": 0.0, "diversity": 0.0, "hit": 1.0, "rank": 1.0, "pointwise": 1.0},
        ),
    )
    minutes: float | None = Field(
        None, gt=0, description="that the parts share, each to begin no step after its time; default: no limit"
    )
    tasks_per_step: int = Field(8, ge=1)
    samples: int = Field(8, ge=2, description="explorations of each task: a group")
    updates: int = Field(1, ge=1, description="optimiser steps a step")
    rows: int = Field(1, ge=1, description="explorations in one forward and backward pass; more suit a GPU")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    whitening: Whitening = Field(
        "batch", description="advantages are divided by the deviation of the rewards of the batch, of the group, or not"
    )
    negative: float = Field(
        1.0, ge=0, le=1, description="weight of what was worse than its group's mean; 0: only imitate what was better"
    )
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    grad_norm: float = Field(1.0, gt=0)
    replacements: int = Field(1, ge=0, description="rounds in which groups of equal rewards give way to other tasks")
    save_every: int = Field(1, ge=1, description="steps between checkpoints")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _stages_fit(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if late := next((stage.name for stage in self.stages if 0 < stage.steps <= stage.warmup), None):
            raise ValueError(f"stage {late} never reaches its learning rate: its warmup takes all of its steps")
        if len(set(names)) < len(names) or {"warm-start", "checkpoints"} & set(names):
            raise ValueError("two stages have one name, or one is called warm-start or checkpoints")
        if self.warm_start.share + sum(stage.share for stage in self.stages) > 0.9:
            raise ValueError("the shares leave less than a tenth of the users to train the TRM on")
        if self.warm_start.batch_size % min(self.rows, self.warm_start.batch_size):
            raise ValueError("warm_start.batch_size is not a multiple of rows")
        if self.tasks_per_step * self.samples % (self.rows * self.updates):
            raise ValueError("tasks_per_step * samples is not a multiple of rows * updates")
        return self


class EvalConfig(Section):
    split: Literal["validation", "test"] = "test"
    cutoffs: tuple[int, ...] = (1, 5, 10)
    users: int | None = Field(None, ge=1, description="sample of users for the LLM systems; default all")
    processes: int | None = Field(
        None,
        ge=1,
        description="in which a language model on a processor of Linux explores, half a batch of users each or more; "
        "default: as many as PyTorch has threads, at most 8",
    )
    bootstrap: int = Field(2000, ge=100, description="resamples behind an interval")
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("cutoffs")
    @classmethod
    def _cutoffs_rise(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[0] < 1 or any(a >= b for a, b in pairwise(value)):
            raise ValueError("cutoffs must be rising whole numbers from 1 on")
        return value


class ServeConfig(Section):
    """The server. Each policy has slots and a queue of its own."""

    host: str = Field("127.0.0.1", description="any but a loopback address needs the environment's DEEPREC_TOKEN")
    port: int = Field(8000, ge=0, lt=2**16, description="0: any that is free")
    slots: int = Field(8, ge=1, description="explorations under way at once")
    queue: int = Field(32, ge=0, description="explorations that may wait; one more is told to come again")
    queries: int = Field(1024, ge=64, description="to the TRM alone that may wait; one more is told to come again")
    seconds: float = Field(120.0, gt=0, description="after which an exploration is ended and served from what it found")
    untrained: bool = Field(True, description="where there is an adapter, offer the model without it too")


class Config(Section):
    """Everything a run depends on. The resolved copy is saved in the run's folder."""

    data: DataConfig = DataConfig()
    trm: TRMConfig = TRMConfig()
    policy: PolicyConfig = PolicyConfig()
    explore: ExploreConfig = ExploreConfig()
    rewards: RewardConfig = RewardConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides.

    A value is read as TOML (`trm.width=128`, `eval.cutoffs=[1, 20]`) and, failing that, as a string.

    Raises:
        DeepRecError: the file is missing or malformed, a key is unknown, or a value does not fit.
    """
    tree = read_toml(path, "configuration file") if path is not None else {}
    for override in overrides:
        apply_override(tree, override)
    where = " and ".join([f"from {path}"] * (path is not None) + ["from --set"] * bool(overrides))
    return parse_config(tree, where=where or "defaults")


def parse_config(tree: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_siblings(first["loc"]))
            raise DeepRecError(f"Unknown configuration key {key!r} ({where}); known keys here: {known}.") from None
        raise DeepRecError(f"Configuration key {key!r} ({where}): {first['msg']}.") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as TOML; keys that are None are left out, their default being None."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, int):
            continue  # a place in the list that the name before it stands for
        annotation = model.model_fields[part].annotation
        annotation = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return sorted(model.model_fields)
