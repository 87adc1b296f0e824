"""What an evaluation runs: sets, systems and seeds, read from TOML."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w
from pydantic import Field, ValidationError, model_validator

from deeprec.config import TRAINABLE, Config, Section, parse_config
from deeprec.config.toml import read_toml
from deeprec.errors import DeepRecError, reason
from deeprec.evaluation.one_shot import CANDIDATES
from deeprec.policies.adapters import adapter_folder, digests_of
from deeprec.retrieval.baselines import MOST_ITEMS
from deeprec.training.schedule import active

ModelKind = Literal["titles", "rerank", "explore"]
Kind = (
    Literal["popularity", "transitions", "ease", "trm", "frequent-phrases", "recent", "script", "fusion", "external"]
    | ModelKind
)
"""
popularity, transitions, ease
    Trained on the set's training sequences; EASE's regularisation is chosen on validation.
trm, frequent-phrases, recent
    The TRM without a preference, with the history's most frequent phrases as one, and with its last three titles.
script, fusion
    The scripted explorer; and its preferences, each asked of the whole catalogue, by reciprocal-rank fusion.
titles, rerank, explore
    A language model: titles from memory, a ranking of the TRM's best, or the exploration.
external
    Rankings of another library, from a file of lines `user<TAB>item<TAB>item...`, best first.
"""
ASKS_MODEL = get_args(ModelKind)

Seed = int | None
"""None: the seeds of the configuration itself."""
_SEEDED = ("trm", "train", "explore")  # sections with a seed
_NAME = r"^[^\W_][\w .,:;()+=%&/@#'’–-]*$"
"""Plain text in tables, plots, files and terminals alike."""

_BUILT_IN = Path(__file__).with_name("plans")
PLAN_FILE = "experiment.toml"  # in the folder of an evaluation: its plan as it was run last


class SetPlan(Section):
    """A data set."""

    source: str = Field(description="as `data.source`")
    name: str | None = Field(None, pattern=_NAME, description="default: the source's last part")
    config: dict[str, Any] = Field({}, description="configuration of every system on this set")

    @property
    def label(self) -> str:
        path = Path(self.source)
        return self.name or (path.resolve().name if path.is_dir() else path.stem)

    @property
    def folder(self) -> str:
        """A name for folders: files of one name in two places have two."""
        path = Path(self.source)
        return slug(self.label) + (f"-{_hash(str(path.resolve()))}" if path.exists() else "")


class SystemPlan(Section):
    """A row of the tables."""

    name: str = Field(pattern=_NAME)
    kind: Kind
    users: int | None = Field(None, ge=1, description="sample of the test users; default: all")
    config: dict[str, Any] = Field({}, description="laid over the configuration of the experiment and of the set")
    train: str | None = Field(None, description="use the weights of this part of a training: sft, or a stage")
    train_on: str | None = Field(None, description="name of the set to train on; default: the set that is asked")
    training: dict[str, Any] = Field({}, description="configuration of that training, which `config` is no part of")
    file: str | None = Field(None, description="of `external`; {set}, {source} and {seed} are filled in")
    make: str = Field("", description="the command that makes the file; shown where the file is missing")
    candidates: int = Field(CANDIDATES, ge=1, description="that `rerank` shows")
    sets: tuple[str, ...] | None = Field(None, description="run on these sets only")
    against: tuple[str, ...] = Field((), description="other systems to compare it with, beside the baseline")
    note: str = Field("", description="shown under the tables")

    @model_validator(mode="after")
    def _fits(self) -> SystemPlan:
        split = sorted({"data", "eval"} & {*self.config, *self.training})
        for wrong, why in (
            (bool(self.file) != (self.kind == "external"), "`file` is for kind 'external', which needs one"),
            (self.make and self.file is None, "`make` says how `file` is made, and there is none"),
            (self.train and self.kind not in ASKS_MODEL, f"`train` is for the kinds {', '.join(ASKS_MODEL)}"),
            (self.train is None and (self.train_on or self.training), "`train_on` and `training` need `train`"),
            (split, f"{split} is of a set or of the experiment, not of a system"),
        ):
            if wrong:
                raise ValueError(f"system {self.name!r}: {why}")
        return self


class Plan(Section):
    """What is compared, on which sets, with which seeds."""

    name: str = Field(min_length=1)
    about: str = Field("", description="stands at the top of the report")
    sets: tuple[SetPlan, ...] = Field((), description="default: the configuration's")
    systems: tuple[SystemPlan, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), description="of TRM, training and sampling; empty: the configuration's own")
    baseline: str = Field("TRM alone", description="the system that all others are compared with")
    config: dict[str, Any] = Field({}, description="of every system")

    @model_validator(mode="after")
    def _names_fit(self) -> Plan:
        sets, systems = [set_.label for set_ in self.sets], [system.name for system in self.systems]
        for what, names in (("sets", sets), ("systems", systems), ("seeds", list(self.seeds))):
            if len(set(names)) < len(names):
                raise ValueError(f"two of the {what} are called alike: {names}")
        for set_ in self.sets:
            if self.baseline not in [system.name for system in self.systems_of(set_)]:
                raise ValueError(f"baseline {self.baseline!r} is not run on set {set_.label!r}")
        for system in self.systems:
            if unknown := {*system.against} - {*systems}:
                raise ValueError(f"system {system.name!r} is compared with unknown systems: {sorted(unknown)}")
            if sets and (unknown := {*(system.sets or ()), *filter(None, [system.train_on])} - {*sets}):
                raise ValueError(f"system {system.name!r} names unknown sets: {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Plan:
        trees = [self.config, *(set_.config for set_ in self.sets)]
        trees += [tree for system in self.systems for tree in (system.config, system.training)]
        seeded = [section for tree in trees for section in _SEEDED if "seed" in _table(tree, section)]
        if seeded and self.seeds:
            raise ValueError(f"{seeded[0]}.seed: an experiment's seeds are the plan's `seeds`; set them there")
        if named := [set_.label for set_ in self.sets if "source" in _table(set_.config, "data")]:
            raise ValueError(f"set {named[0]!r}: its data.source is its `source`")
        return self

    @property
    def runs(self) -> tuple[Seed, ...]:
        return self.seeds or (None,)

    def systems_of(self, set_: SetPlan) -> list[SystemPlan]:
        return [system for system in self.systems if system.sets is None or set_.label in system.sets]

    def left_out(self, system: SystemPlan, n_items: int) -> str | None:
        """Why a catalogue of so many items leaves a system out; None where it runs, as the baseline always does."""
        if system.kind != "ease" or n_items <= MOST_ITEMS or system.name == self.baseline:
            return None
        return f"left out: EASE takes at most {MOST_ITEMS:,} items, and there are {n_items:,}"

    def config_of(self, set_: SetPlan, system: SystemPlan, seed: Seed) -> Config:
        """The configuration of a system on a set: the plan's, the set's and the system's, each over the last."""
        return self._config(set_, system.name, seed, system.config)

    def training_of(self, set_: SetPlan, system: SystemPlan, seed: Seed) -> Config:
        """The configuration of the training whose weights a system uses, without the system's own `config`."""
        on = next(each for each in self.sets if each.label == (system.train_on or set_.label))
        config = self._config(on, system.name, seed, system.training)
        if system.train not in (parts := active(config.train)):
            known = ", ".join(parts) or "no part"
            raise DeepRecError(f"System {system.name!r} has train = {system.train!r}: its training has {known}.")
        if config.policy.kind not in TRAINABLE:
            raise DeepRecError(f"System {system.name!r}: policy.kind={config.policy.kind!r} can't be trained.")
        return config

    def digest(self, set_: SetPlan, system: SystemPlan, seed: Seed) -> str:
        """Of all that the plan says of a system on a set, and of the adapter where that is the shipped one. Settings
        left at their defaults do not count, so that results outlive versions with a setting more."""
        configs = [self.config_of(set_, system, seed)]
        if system.train is not None:
            configs.append(self.training_of(set_, system, seed))
        policy = configs[0].policy
        shipped = policy.adapter == "shipped" and system.kind in ASKS_MODEL and system.train is None
        said = [
            system.model_dump_json(exclude={"name", "note", "make", "sets", "against"}, exclude_defaults=True),
            *(each.model_dump_json(exclude_defaults=True) for each in configs),
            *(digests_of(adapter_folder(policy)) if shipped else ()),
        ]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def _config(self, set_: SetPlan, system: str, seed: Seed, own: Mapping[str, Any]) -> Config:
        seeds = {} if seed is None else {section: {"seed": seed} for section in _SEEDED}
        tree = _merged(self.config, set_.config, {"data": {"source": set_.source}}, own, seeds)
        return parse_config(tree, where=f"experiment {self.name!r}, set {set_.label!r}, system {system!r}")


def built_in_plan(name: Literal["comparison", "eval", "demo"], config: Config, sources: Sequence[str] = ()) -> Plan:
    """A plan of the package, on the configuration's set or on those of `sources`. Systems with a language model need
    one in the configuration; systems that train it need `train.minutes`."""
    training, model = config.train.minutes is not None, config.policy.kind != "scripted"
    return load_plan(_BUILT_IN / f"{name}.toml", config, sources, training=training, model=model)


def load_plan(
    path: Path, config: Config, sources: Sequence[str] = (), *, training: bool = True, model: bool = True
) -> Plan:
    """Read a plan; DeepRecError where the file is missing, or a key or value does not fit.

    Args:
        config: what was set in it is laid over the plan's; its set is taken where the plan names none.
        sources: the sets to run on, in place of all of the plan: by source or name, or others.
        training, model: whether to keep the systems that train, and those that ask, a language model.
    """
    plan = _validated(read_toml(path, "experiment"), path)
    said = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    own = _table(plan.config, "data").get("source")
    if plan.sets and own is not None:
        raise DeepRecError(f"{path}, key config.data.source: a plan with sets names each by its `source`.")
    if not sources and not plan.sets:
        sources = [_table(said, "data").get("source") or own or config.data.source]
    settings = _merged({name: part for name, part in plan.config.items() if training or name != "train"}, said)
    if data := _table(settings, "data"):
        settings["data"] = {name: value for name, value in data.items() if name != "source"}  # the sets have it
    plan = _validated({**dict(_chosen(plan, sources, training=training, model=model)), "config": settings}, path)
    for set_, seed in product(plan.sets, plan.runs):
        for system in plan.systems_of(set_):
            plan.digest(set_, system, seed)  # reads it all
    return plan


def _validated(tree: Mapping[str, Any], path: Path) -> Plan:
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DeepRecError(f"{path}{f', key {key}' if key else ''}: {reason(first)}.") from None


def _chosen(plan: Plan, sources: Sequence[str], *, training: bool, model: bool) -> Plan:
    """The plan on these sets: its own of such a source or name, and others bare; without systems of other sets."""
    sets = [] if sources else list(plan.sets)
    for source in sources:
        sets += [own for own in plan.sets if source in (own.source, own.label)] or [SetPlan(source=source)]
    left_out = {set_.label for set_ in plan.sets} - {set_.label for set_ in sets}
    systems = []
    for system in plan.systems:
        on = system.sets and tuple(name for name in system.sets if name not in left_out)
        if (on or not system.sets) and (training or not system.train) and (model or system.kind not in ASKS_MODEL):
            systems.append(system.model_copy(update={"sets": on}))
    return plan.model_copy(update={"sets": tuple(sets), "systems": tuple(systems)})


def slug(name: str) -> str:
    """A name for files; different names stay different."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return plain if plain == name else f"{plain}-{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def dump_plan(plan: Plan) -> str:
    """The plan as TOML; `load_plan` gives the equal plan back."""
    return tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


def _merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, each tree laid over the last; what is no table stays, for the reader of the whole to complain of."""
    merged: dict[str, Any] = {}
    for name, value in chain.from_iterable(tree.items() for tree in trees):
        if not isinstance(value, Mapping) or name not in merged:
            merged[name] = value
        elif isinstance(merged[name], Mapping):
            merged[name] = _merged(merged[name], value)
    return merged


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table within a table; empty where there is none, or something else."""
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}
