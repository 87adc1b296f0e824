"""Configuration from TOML files and dotted overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from deeprec.config.renamed import find_old_key
from deeprec.config.schema import Config, Section
from deeprec.config.toml import apply_override, read_toml
from deeprec.errors import DeepRecError, reason


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides.

    A value is read as TOML (`trm.width=128`, `eval.cutoffs=[1, 20]`) and, failing that, as a string, as are numbers of
    keys that hold text (`data.source=2024`). DeepRecError if
    the file is missing or malformed, a key is unknown or of an earlier version, or a value does not fit.
    """
    tree = read_toml(path, "configuration file") if path is not None else {}
    for override in overrides:
        apply_override(tree, override, _holds_text)
    where = " and ".join([f"from {path}"] * (path is not None) + ["from --set"] * bool(overrides))
    return parse_config(tree, where=where or "defaults")


def parse_config(tree: Mapping[str, Any], where: str) -> Config:
    """The configuration that a tree of settings gives; `where` says in errors where the tree comes from."""
    if old := find_old_key(tree):
        raise DeepRecError(f"Configuration key {old[0]!r} ({where}) is {old[1]}.")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(_siblings(first["loc"]))
            raise DeepRecError(f"Unknown configuration key {key!r} ({where}); known keys here: {known}.") from None
        raise DeepRecError(f"Configuration key {key!r} ({where}): {reason(first)}.") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as TOML; keys that are None are left out, their default being None."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def subsection(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds, one or a tuple of them; None for a field that holds a value."""
    annotation = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _holds_text(key: str) -> bool:
    """Whether a key such as 'data.source' takes text, or text and nothing else than None."""
    section: type[Section] | None = Config
    annotation: Any = None
    for part in key.split("."):
        if section is None or part not in section.model_fields:
            return False
        annotation = section.model_fields[part].annotation
        section = subsection(annotation)
    return annotation is str or set(get_args(annotation)) == {str, type(None)}


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, str):  # numbers are positions in the list before them
            model = subsection(model.model_fields[part].annotation) or model
    return sorted(model.model_fields)
