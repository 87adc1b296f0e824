"""Frozen configuration: one TOML file per run, dotted overrides, unknown keys are errors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEFAULT_PREFERENCE_WEIGHT = 0.75  # the preference weight of what people ask for; chosen on validation
DEFAULT_TEXT_ENCODER = "minilm-l6"

AdvantageNormalisation = Literal["batch", "group", "none"]

Guidance = Literal["task", "rules", "example"]
"""How much of the protocol a prompt explains; a model that was trained to explore needs the task alone."""


Exclude = Literal["history", "none"]
"""Items that are not recommended: those of the history, or none, so that a user may be recommended an item again."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


USUAL_COLUMNS = {
    "time": ("timestamp", "time", "date", "datetime"),
    "position": ("position",),
    "year": ("release_year", "year"),
    "categories": ("genres", "class", "genre", "categories", "category"),
    "brand": ("brand", "store"),
    "description": ("description",),
}
"""Names under which a column is looked for where none is configured."""


def _column(role: str, meaning: str) -> Any:
    return Field(None, description=f"{meaning}; default: {' or '.join(USUAL_COLUMNS[role])}, if there")


class Columns(Section):
    """Names of the columns of your own table; other formats name theirs themselves.

    A column that is named must be there; one that is not named is looked for under its usual names.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)  # positions, where files have no header

    user: str = Field("user_id", description="user")
    item: str = Field("item_id", description="item, in the interactions and in the item file")
    time: str | None = _column("time", "time of the interaction, a number or a date")
    time_format: str | None = Field(
        None, min_length=1, description="form of the times, as %d/%m/%Y %H:%M (strptime); default: told by the file"
    )
    position: str | None = _column("position", "rank inside the user, for data without times")
    title: str = Field("title", description="in the item file or, without one, in the interactions")
    year: str | None = _column("year", "year of the item")
    categories: str | None = _column("categories", "categories of the item")
    category_separator: str | None = Field(
        None,
        min_length=1,
        description="between categories; default: the one of pipe, semicolon and comma that most rows use",
    )
    brand: str | None = _column("brand", "brand of the item")
    description: str | None = _column("description", "description of the item")


class DataConfig(Section):
    """Where interactions and item text come from, and how they become a Dataset."""

    source: str = Field("ml-100k", description="an asset's name, a folder, or an interaction file")
    format: Literal["auto", "recbole", "movielens", "amazon2023", "table"] = Field(
        "auto", description="of the files; auto: by their names and headers"
    )
    items: str | None = Field(None, description="item file; default: the one beside the interactions")
    columns: Columns = Columns()
    header: bool = Field(
        True, description="false: text files begin with a row; columns.user and the others are positions, from 1"
    )
    quoting: Literal["auto", "csv", "none", "backslash"] = Field(
        "auto", description="of fields in text files; none: quotes are text; auto: by the file's look"
    )
    user_core: int = Field(3, ge=1, description="keep users with at least this many interactions")
    item_core: int = Field(5, ge=1, description="keep items with at least this many interactions")
    repeats: Literal["first", "last", "keep"] = Field(
        "first", description="which of a user's repeated interactions with one item to keep; keep: all"
    )
    max_bad_share: float = Field(0.01, ge=0, le=1, description="refuse the load past this share of a file's rows")
    title_chars: int = Field(80, ge=8, description="longer titles are cut at a word")
    time_split: tuple[float, float] | None = Field(
        None,
        description="shares of the interactions by time, as [0.8, 0.9]: train before the first, validate before the "
        "second; default: leave out each user's last two items",
    )

    @field_validator("time_split")
    @classmethod
    def _shares_rise(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] < value[1] < 1:
            raise ValueError("time_split is two rising shares between 0 and 1, as in [0.8, 0.9]")
        return value


class TRMConfig(Section):
    """The preference-aware sequential recommender and its training."""

    width: int = Field(64, ge=8, multiple_of=2, description="of item and user vectors; even")
    layers: int = Field(2, ge=1, description="blocks of the encoder")
    history: int = Field(50, ge=1, description="most recent items that the encoder reads")
    epochs: int = Field(60, ge=1, description="at most; training stops earlier when validation stops improving")
    minutes: float | None = Field(None, gt=0, description="start no epoch after this much training; default: no limit")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, constant")
    text_encoder: str = Field(
        DEFAULT_TEXT_ENCODER,
        min_length=1,
        description="of item texts and preferences: an asset's name, a folder of the sentence-transformers layout, or "
        "a hub id; minilm-l6 reads English",
    )
    preferences: bool = Field(True, description="train with preferences; false gives a plain sequential model")
    cooccurrence: float = Field(1.0, ge=0, description="weight of item co-occurrence with the history; 0: none")
    bm25: float = Field(0.15, ge=0, description="weight of words that a preference and an item share; 0: none")
    index: Literal["auto", "exact", "hnsw", "ivfpq"] = Field(
        "auto",
        description="exact search, or FAISS; auto: exact up to 200,000 items, then hnsw where FAISS is installed",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, preferences, windows and dropout")


TRAINABLE = ("transformers", "vllm")  # kinds of policies that can be trained


class PolicyConfig(Section):
    """The language model that explores."""

    kind: Literal["transformers", "openvino", "vllm", "openai", "scripted"] = Field(
        "transformers", description="engine that runs the model; scripted: rules instead of a model"
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="an asset's name, a model folder, a hub id, or a server's name",
    )
    adapter: str = Field("shipped", description="a peft folder; shipped: the package's, if it fits the model; or none")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is fast")
    device: str = Field(
        "auto", description="auto, cpu, cuda, cuda:1, ...; OpenVINO takes cpu, vLLM the device of its build"
    )
    gpu_share: float | None = Field(
        None, gt=0, le=1, description="share of GPU memory that vLLM may take; default: 0.9, or 0.4 during training"
    )
    url: str | None = Field(
        None,
        description="of an OpenAI-compatible server, http://127.0.0.1:8000/v1; default: none (kind openai needs one)",
    )
    api: Literal["completions", "chat"] = Field(
        "completions", description="of that server; chat if it lacks completions"
    )


class ExploreConfig(Section):
    """Limits of one exploration.

    The defaults are those that the shipped adapter was trained with. The paper's: 20 titles of history, 20 items a
    call, 10 answers, 8 calls, 2,048 tokens a segment, 16,384 of context.
    """

    history: int = Field(6, ge=1, description="most recent titles that the prompt shows")
    items_per_call: int = Field(8, ge=1, description="items of a call; more if max_calls could not fill the answer")
    answer_size: int = Field(10, ge=1, description="titles in the answer")
    max_calls: int = Field(3, ge=1, description="calls of the recommender, at most")
    answer: Literal["free", "pool"] = Field(
        "free", description="pool: constrained decoding admits retrieved titles alone, each once; free: any text"
    )
    segment_tokens: int | None = Field(
        None, ge=1, description="new tokens between two tool results; default: 220, more where titles are long"
    )
    context_tokens: int = Field(4096, ge=64, description="prompt and everything after it")
    guidance: Guidance | None = Field(
        None,
        description="of the prompt: the task in one line, the rules as well, or an invented example as well; default: "
        "the adapter's, else example",
    )
    preference_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="how strongly a preference moves the ranking, 0 to 1; default: the adapter's, else what the TRM "
        "calibrated on its catalogue",
    )
    temperature: float = Field(0.0, ge=0, description="of sampling; 0: greedy")
    batch_size: int = Field(32, ge=1, description="explorations in flight at once")
    seed: int = Field(0, ge=0, lt=2**32, description="of sampling, for each user and segment")


class SFTConfig(Section):
    """Supervised fine-tuning on demonstrations, for models too small to find the protocol by themselves."""

    share: float = Field(0.15, ge=0, le=1, description="of the users, reserved for this part")
    demonstrations: int = Field(1500, ge=0, description="explorations to learn from; 0: no SFT")
    extra_datasets: tuple[str, ...] = Field((), description="other data sets, as in data.source, with equal shares")
    learning_rate: float = Field(5e-4, gt=0, description="falls linearly to 0")
    batch_size: int = Field(8, ge=1, description="demonstrations an optimiser step")


class StageConfig(Section):
    """A stage of reinforcement learning."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9-]+$", description="of the stage and of its folder: a-z, 0-9, -")
    share: float = Field(ge=0, le=1, description="of the users, reserved for this part")
    steps: int = Field(ge=0, description="0 leaves the stage out; its users stay reserved")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW, constant after the warm-up")
    warmup: int = Field(0, ge=0, description="first steps, in which the learning rate rises to its value")
    advantage_normalisation: AdvantageNormalisation = Field(
        "batch", description="divide advantages by the standard deviation of rewards in the batch, in the group, or not"
    )
    rewards: dict[str, float] = Field(
        min_length=1, description="weights by name, 0 for a metric; `package.module:function` is your own function"
    )


class TrainConfig(Section):
    """The policy's training: SFT, then the stages, each from the weights before it.

    The defaults suit a small model on a processor. The paper's: no SFT, 128 tasks a step, 20 and 80 steps, 2 updates a
    step, learning rate 1e-6, all weights.
    """

    lora_rank: int = Field(16, ge=0, description="of the adapter that is trained; 0: all weights")
    adapter: str | None = Field(None, description="to continue, of that rank: a folder or shipped; default: a new one")
    max_target_rank: int = Field(100, ge=1, description="keep tasks whose target the TRM alone ranks so high or higher")
    sft: SFTConfig = SFTConfig()
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
    minutes: float | None = Field(None, gt=0, description="of training, shared by SFT and stages; default: no limit")
    tasks_per_step: int = Field(8, ge=1, description="tasks of a step, each explored by a group")
    group_size: int = Field(8, ge=2, description="explorations of each task")
    updates_per_step: int = Field(1, ge=1, description="optimiser steps a step")
    micro_batch_size: int = Field(1, ge=1, description="explorations in one forward and backward pass; more on a GPU")
    temperature: float = Field(1.0, gt=0, description="of the explorations")
    negative_advantage_weight: float = Field(
        1.0, ge=0, le=1, description="of explorations below their group's mean; 0: imitate the better ones only"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of user shares, task order, explorations and the adapter")

    @model_validator(mode="after")
    def _stages_fit(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if late := next((stage.name for stage in self.stages if 0 < stage.steps <= stage.warmup), None):
            raise ValueError(f"stage {late} never reaches its learning rate: its warmup takes all of its steps")
        if len(set(names)) < len(names) or {"sft", "checkpoints"} & set(names):
            raise ValueError("two stages have one name, or one is called sft or checkpoints")
        if self.sft.share + sum(stage.share for stage in self.stages) > 0.9:
            raise ValueError("the shares leave less than a tenth of the users to train the TRM on")
        if self.sft.batch_size % min(self.micro_batch_size, self.sft.batch_size):
            raise ValueError("sft.batch_size is not a multiple of micro_batch_size")
        if self.tasks_per_step * self.group_size % (self.micro_batch_size * self.updates_per_step):
            raise ValueError("tasks_per_step * group_size is not a multiple of micro_batch_size * updates_per_step")
        return self


class EvalConfig(Section):
    """What an evaluation measures, and on whom."""

    split: Literal["validation", "test"] = Field("test", description="whose targets are ranked")
    cutoffs: tuple[int, ...] = Field((1, 5, 10), description="rising whole numbers; the largest is the headline")
    users: int | None = Field(None, ge=1, description="sample of users for systems with a language model; default: all")
    exclude: Exclude | None = Field(
        None,
        description="items that no system may rank; default: history, or none where data.repeats = keep and targets "
        "repeat items of their history",
    )

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
    slots: int = Field(8, ge=1, description="explorations in flight at once; four times as many may wait")
    seconds: float = Field(120.0, gt=0, description="of one exploration, which then is served from what it found")
    exclude: Exclude | None = Field(None, description="items that are not recommended; default: as of eval.exclude")


class Config(Section):
    """Everything a run depends on. The resolved copy is saved in the run's folder."""

    data: DataConfig = DataConfig()
    trm: TRMConfig = TRMConfig()
    policy: PolicyConfig = PolicyConfig()
    explore: ExploreConfig = ExploreConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    serve: ServeConfig = ServeConfig()
