"""What an experiment is: sets, systems and seeds, read from TOML."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, model_validator

from deeprec.config import TRAINABLE, Config, Section, parse_config
from deeprec.config.toml import read_toml
from deeprec.errors import DeepRecError
from deeprec.evaluation.one_shot import CANDIDATES
from deeprec.policies.adapters import adapter_folder, digests_of
from deeprec.retrieval.baselines import MOST_ITEMS
from deeprec.training.schedule import active

Kind = (
    Literal["popularity", "transitions", "ease", "trm", "themes", "recent", "script", "fusion", "lists"]
    | Literal["titles", "rerank", "explore"]
)
"""
popularity, transitions, ease
    Trained on the set's training sequences; EASE's regularisation is chosen on validation.
trm, themes, recent
    The TRM without a preference, with the history's commonest phrases as one, and with its last three titles as one.
script, fusion
    The scripted explorer, and what its calls ask for, each of the whole catalogue, by reciprocal-rank fusion.
titles, rerank, explore
    A language model: titles from memory, a ranking of the TRM's best, or the exploration.
lists
    Rankings of a system of your own, from a file of lines `user<TAB>item<TAB>item...`, best first.
"""
WITH_MODEL = ("titles", "rerank", "explore")
HEARD = ("themes", "recent", "script", "fusion", "explore")
"""Kinds whose preferences the TRM hears."""

_SEEDED = ("trm", "train", "explore")
"""Sections with a seed."""
_NAME = r"^[^\W_][\w .,:;()+=%&/@#'’–-]*$"
"""Plain text in tables, plots, files and terminals alike."""

BUILT_IN = Path(__file__).with_name("comparison.toml")
PLAN_FILE = "experiment.toml"
"""In the folder of an experiment: its plan as it was run last."""


class SetPlan(Section):
    """A data set."""

    source: str = Field(description="as `data.source`")
    name: str | None = Field(None, pattern=_NAME, description="default: the source's last part")
    config: dict[str, Any] = Field({}, description="configuration of every system on this set")

    @property
    def label(self) -> str:
        path = Path(self.source)
        return self.name or (path.resolve().name if path.is_dir() else path.stem)


class SystemPlan(Section):
    """A row of the tables."""

    name: str = Field(pattern=_NAME)
    kind: Kind
    users: int | None = Field(None, ge=1, description="sample of the test users; default: all")
    config: dict[str, Any] = Field({}, description="laid over the configuration of the experiment and of the set")
    train: str | None = Field(
        None, description="ask with the weights of this part of a training: warm-start, or a stage"
    )
    train_on: str | None = Field(None, description="name of the set to train on; default: the set that is asked")
    training: dict[str, Any] = Field({}, description="configuration of that training, which `config` is no part of")
    file: str | None = Field(None, description="of `lists`; {set}, {source} and {seed} are filled in")
    make: str = Field("", description="the command that makes the file; told where it is missing")
    candidates: int = Field(CANDIDATES, ge=1, description="that `rerank` shows")
    sets: tuple[str, ...] | None = Field(None, description="run on these sets only")
    against: tuple[str, ...] = Field((), description="other systems to compare it with, beside the baseline")
    note: str = Field("", description="shown under the tables")

    @model_validator(mode="after")
    def _fits(self) -> SystemPlan:
        if (self.file is not None) != (self.kind == "lists"):
            raise ValueError(f"system {self.name!r}: `file` belongs to kind 'lists', and that needs one")
        if self.make and self.file is None:
            raise ValueError(f"system {self.name!r}: `make` says how `file` is made, and there is none")
        if self.train is not None and self.kind not in WITH_MODEL:
            raise ValueError(f"system {self.name!r}: `train` is for the kinds {', '.join(WITH_MODEL)}")
        if self.train is None and (self.train_on is not None or self.training):
            raise ValueError(f"system {self.name!r}: `train_on` and `training` need `train`")
        if split := {"data", "eval"} & {*self.config, *self.training}:
            raise ValueError(f"system {self.name!r}: {sorted(split)} is of a set or of the experiment, not of a system")
        return self


class Plan(Section):
    """An experiment."""

    name: str = Field(min_length=1)
    about: str = Field("", description="stands at the top of the report")
    sets: tuple[SetPlan, ...] = Field(min_length=1)
    systems: tuple[SystemPlan, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of TRM, training and sampling")
    baseline: str = Field("TRM alone", description="the system that all others are compared with")
    config: dict[str, Any] = Field({}, description="of every system")

    @model_validator(mode="after")
    def _fits(self) -> Plan:
        for what, names in (
            ("sets", [each.label for each in self.sets]),
            ("systems", [each.name for each in self.systems]),
            ("seeds", list(self.seeds)),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two of the {what} are called alike: {names}")
        if self.baseline not in [system.name for system in self.systems]:
            raise ValueError(f"baseline {self.baseline!r} is none of the systems")
        for set_ in self.sets:
            if self.baseline not in [system.name for system in self.systems_of(set_)]:
                raise ValueError(f"baseline {self.baseline!r} is not run on set {set_.label!r}")
        systems = {system.name for system in self.systems}
        for system in self.systems:
            if unknown := {*system.against} - systems:
                raise ValueError(
                    f"system {system.name!r} is compared with systems that are not there: {sorted(unknown)}"
                )
        parts = [self.config, *(set_.config for set_ in self.sets), *(system.config for system in self.systems)]
        for part in (*parts, *(system.training for system in self.systems)):
            if seeded := [name for name in _SEEDED if "seed" in _table(part, name)]:
                raise ValueError(f"{seeded[0]}.seed: an experiment's seeds are its `seeds`; set them there")
        for set_ in self.sets:
            if "source" in _table(set_.config, "data"):
                raise ValueError(f"set {set_.label!r}: its data.source is its `source`")
        known = {each.label for each in self.sets}
        for system in self.systems:
            if unknown := {*(system.sets or ()), *([system.train_on] if system.train_on else [])} - known:
                raise ValueError(f"system {system.name!r} speaks of sets that are not there: {sorted(unknown)}")
        return self

    def systems_of(self, set_: SetPlan) -> list[SystemPlan]:
        return [system for system in self.systems if system.sets is None or set_.label in system.sets]

    def left_out(self, system: SystemPlan, n_items: int) -> str | None:
        """Why a system is passed over in a catalogue of so many items; None where it is not, as never the baseline."""
        if system.kind != "ease" or n_items <= MOST_ITEMS or system.name == self.baseline:
            return None
        return f"left out, for EASE takes at most {MOST_ITEMS:,} items, and there are {n_items:,}"

    def config_of(self, set_: SetPlan, system: SystemPlan, seed: int) -> Config:
        """The configuration of a system on a set: the experiment's, the set's and the system's, each over the last.

        Raises:
            DeepRecError: it is not valid.
        """
        return self._config(set_, system.name, seed, system.config)

    def training_of(self, set_: SetPlan, system: SystemPlan, seed: int) -> Config:
        """The configuration of the training whose weights a system has; its own part is no part of it.

        Raises:
            DeepRecError: it is not valid, or has no such part.
        """
        on = next(each for each in self.sets if each.label == (system.train_on or set_.label))
        config = self._config(on, system.name, seed, system.training)
        parts = active(config.train)
        if system.train not in parts:
            known = ", ".join(parts) or "no part"
            raise DeepRecError(f"System {system.name!r} has train = {system.train!r}: its training has {known}.")
        if config.policy.kind not in TRAINABLE:
            raise DeepRecError(f"System {system.name!r}: policy.kind={config.policy.kind!r} can't be trained.")
        return config

    def digest(self, set_: SetPlan, system: SystemPlan, seed: int) -> str:
        """Of all that the plan says of a system on a set, and of the adapter where that is the one which comes with the
        package. Settings left at their defaults say nothing, so that parts outlive versions with a setting more."""
        configs = [self.config_of(set_, system, seed)]
        if system.train is not None:
            configs.append(self.training_of(set_, system, seed))
        policy = configs[0].policy
        shipped = policy.adapter == "shipped" and system.kind in WITH_MODEL and system.train is None
        said = [
            system.model_dump_json(exclude={"name", "note", "make", "sets", "against"}, exclude_defaults=True),
            *(each.model_dump_json(exclude_defaults=True) for each in configs),
            *(digests_of(adapter_folder(policy)) if shipped else ()),
            *(
                ["what guesses are worth"]
                if system.kind in HEARD and configs[0].explore.preference_weight is None
                else ()
            ),
        ]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def _config(self, set_: SetPlan, system: str, seed: int, own: Mapping[str, Any]) -> Config:
        seeds = {section: {"seed": seed} for section in _SEEDED}
        tree: dict[str, Any] = {}
        for part in (self.config, set_.config, {"data": {"source": set_.source}}, own, seeds):
            _lay_over(tree, part)
        return parse_config(tree, where=f"experiment {self.name!r}, set {set_.label!r}, system {system!r}")


def plan_of(path: Path | None, config: Config, sources: Sequence[str]) -> Plan:
    """The plan in a file, or the built-in one, which trains the language model too where `train.minutes` is set.

    Raises:
        DeepRecError: the plan is wrong.
    """
    if path is not None and path.suffix != ".toml" and path.exists():
        raise DeepRecError(f"{path} is not an experiment's TOML file: a set to run on is named with --data {path}.")
    if described := [source for source in sources if Path(source).suffix == ".toml"]:
        raise DeepRecError(f"--data {described[0]} is no data: a set that a TOML file describes is given by --config.")
    training = path is not None or config.train.minutes is not None
    return load_plan(path or BUILT_IN, config, sources, training=training)


def load_plan(path: Path, config: Config, sources: Sequence[str] = (), *, training: bool = True) -> Plan:
    """Read a plan.

    Args:
        config: what was set in it is laid over the plan's configuration; where the plan names no set, its own is taken.
        sources: the sets to run on, in place of all of the plan: by source or name, or others.
        training: whether to keep the systems for which the language model is trained, and its settings.

    Raises:
        DeepRecError: the file is missing or malformed, a key is unknown, or a value does not fit.
    """
    tree = read_toml(path, "experiment")
    said = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if seeded := [f"{section}.seed" for section in _SEEDED if "seed" in said.get(section, {})]:
        raise DeepRecError(f"{', '.join(seeded)}: an experiment's seeds are the plan's `seeds`; set them there.")
    for name in ("sets", "systems"):
        if not isinstance(tree.get(name, []), list):
            raise DeepRecError(f"{path}, key {name}: a list of tables is needed, [[{name}]].")
    own = _table(_table(tree, "config"), "data")
    if tree.get("sets") and "source" in own:
        raise DeepRecError(f"{path}, key config.data.source: a plan with sets names each by its `source`.")
    if not training:
        tree["systems"] = [system for system in tree.get("systems", []) if "train" not in system]
        tree.get("config", {}).pop("train", None)
    try:
        if sources or not tree.get("sets"):
            _choose(tree, sources or [_table(said, "data").get("source") or own.get("source") or config.data.source])
        plan = Plan.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DeepRecError(f"{path}{f', key {key}' if key else ''}: {first['msg']}.") from None
    settings = _copy(plan.config)
    for part in (settings, said):
        if _table(part, "data"):
            part["data"].pop("source", None)  # the sets have it
    _lay_over(settings, said)
    plan = plan.model_copy(update={"config": settings})
    for set_ in plan.sets:
        for system in plan.systems_of(set_):
            for seed in plan.seeds:
                plan.digest(set_, system, seed)  # reads it all
    return plan


def _choose(tree: dict[str, Any], sources: Sequence[str]) -> None:
    """Let the plan run on these sets: on its own of such a source or name, as it describes them, and on others bare.
    Systems of other sets are left out."""
    own = [SetPlan.model_validate(each) for each in tree.get("sets", [])]
    chosen: list[SetPlan] = []
    for source in sources:
        found = [each for each in own if source in (each.source, each.label)]
        chosen += found or [SetPlan(source=source)]
    tree["sets"] = [each.model_dump(exclude_unset=True) for each in chosen]
    left_out = {each.label for each in own} - {each.label for each in chosen}
    systems = []
    for system in tree.get("systems", []):
        if isinstance(system, dict) and isinstance(sets := system.get("sets"), list) and sets:
            system = system | {"sets": [name for name in sets if name not in left_out]}
            if not system["sets"]:
                continue
        systems.append(system)
    tree["systems"] = systems


def refuse_namesake(plan: Plan, folder: Path) -> None:
    """See that a folder which is named by its sets is not that of other sets of these names.

    Raises:
        DeepRecError: it is.
    """
    try:
        found = [SetPlan.model_validate(each) for each in read_toml(folder / PLAN_FILE, "experiment")["sets"]]
    except (DeepRecError, LookupError, ValidationError):  # there is none, or one of another version
        return
    before = {set_.label: set_.source for set_ in found}
    for set_ in plan.sets:
        other = before.get(set_.label, set_.source)
        if Path(other).resolve() != Path(set_.source).resolve():
            raise DeepRecError(
                f"{folder} holds an experiment on {other}, not on {set_.source}: name another folder with --out."
            )


def slug(name: str) -> str:
    """A name for files; different names stay different."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return plain if plain == name else f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def dump_plan(plan: Plan) -> str:
    """The plan as TOML; `load_plan` gives the equal plan back."""
    return tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True, exclude_defaults=True))


def _lay_over(tree: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, Mapping) and name in tree:
            if isinstance(tree[name], dict):  # what is no table stays, for the reader of the whole to complain of
                _lay_over(tree[name], value)
        else:
            tree[name] = _copy(value)


def _table(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table within a table; empty where there is none, or something else."""
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _copy(value: Any) -> Any:
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value
