"""Write the pages of this folder that the code decides: configuration.md, cli.md and api.md.

    python docs/reference/generate.py

tests/test_reference.py fails where a page no longer says what the code does.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tomli_w
import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

import deeprec
from deeprec.config import Config, Section, subsection

FOLDER = Path(__file__).parent
WIDTH = 100
_NOTE = "<!-- Written by docs/reference/generate.py: change the code, and run it again. -->"
_DOCSTRING_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source")


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


# --- configuration ---------------------------------------------------------------------------------


def configuration() -> str:
    """Every key by section, with its default and meaning, from the schema."""
    intro = (
        "One TOML file (`--config FILE`) and overrides (`--set section.key=value`) configure a run. The value of an "
        "override is read as TOML and, failing that, as text:",
        '```\n--set trm.width=128 --set "eval.cutoffs=[1, 20]" --set policy.kind=scripted\n```',
        "An unknown key is an error that names the known ones; a key of an earlier version is an error that names the "
        "new one. `--dry-run` prints the resolved configuration. A run folder keeps it as `config.toml`, which "
        "`--config` reads again; keys whose value is none are left out there.",
    )
    parts = [_NOTE, "# Configuration", *map(_wrap, intro)]
    for name, field in Config.model_fields.items():
        parts += _section(name, subsection(field.annotation) or Section)
    return "\n\n".join(parts) + "\n"


def _section(path: str, section: type[Section]) -> list[str]:
    below = {name: subsection(field.annotation) for name, field in section.model_fields.items()}
    rows = [
        (f"`{name}`", _default(field), _meaning(field))
        for name, field in section.model_fields.items()
        if below[name] is None
    ]
    parts = [f"## {path}", *_prose(section), _table(("key", "default", "meaning"), rows)]
    for name, model in below.items():
        if model is None:
            continue
        inner = _section(f"{path}.{name}", model)
        default = section.model_fields[name].default
        if isinstance(default, tuple):
            whole = [*path.split("."), name]
            tree: Any = [each.model_dump(exclude_defaults=True) for each in default]
            for part in reversed(whole):
                tree = {part: tree}
            inner[1:1] = [f"A list of tables, `[[{'.'.join(whole)}]]`."]
            inner += ["The default:", f"```toml\n{tomli_w.dumps(tree).strip()}\n```"]
        parts += inner
    return parts


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _meaning(field: FieldInfo) -> str:
    choices = ", ".join(f"`{choice}`" for choice in _choices(field.annotation))
    return f"{field.description} ({choices})" if choices else str(field.description)


# --- command line ----------------------------------------------------------------------------------


def cli(app: typer.Typer | None = None) -> str:
    """Every command with its help, arguments and options, from the typer app."""
    if app is None:
        from deeprec.cli import app
    about = app.info.help if isinstance(app.info.help, str) else ""
    parts = [_NOTE, "# Commands", *_text(about)]
    if app.registered_callback is not None:
        parts += _rows(list(_parameters(app.registered_callback.callback)))
    commands = [(path, command, list(_parameters(command.callback))) for path, command in _commands(app, "deeprec")]
    shared = [each for each in commands[0][2] if len(commands) > 1 and all(each in found for _, _, found in commands)]
    if shared:
        parts += ["## Options of every command", *_rows(shared)]
    for path, command, parameters in commands:
        arguments = [name for name, is_argument, _ in parameters if is_argument]
        options = ["[OPTIONS]"] * (len(arguments) < len(parameters))
        parts += [f"## {path}", *_text(inspect.cleandoc(command.help or command.callback.__doc__ or ""))]
        parts.append(f"```\n{' '.join([path, *options, *arguments])}\n```")
        parts += _rows([each for each in parameters if each not in shared])
    return "\n\n".join(parts) + "\n"


def _rows(parameters: list[tuple[str, bool, str]]) -> list[str]:
    rows = [(f"`{name}`", meaning) for name, _, meaning in parameters]
    head = "argument or option" if any(is_argument for _, is_argument, _ in parameters) else "option"
    return [_table((head, "meaning"), rows)] if rows else []


def _commands(app: typer.Typer, path: str) -> Iterator[tuple[str, Any]]:
    for command in app.registered_commands:
        if not command.hidden:
            yield f"{path} {command.name or command.callback.__name__.replace('_', '-')}", command
    for group in app.registered_groups:
        if not group.hidden:
            name = group.name if isinstance(group.name, str) else group.typer_instance.info.name
            yield from _commands(group.typer_instance, f"{path} {name}")


def _parameters(callback: Any) -> Iterator[tuple[str, bool, str]]:
    """How each parameter of a command is written, whether it is an argument, and its meaning; arguments first."""
    hints = get_type_hints(callback, include_extras=True)
    found = []
    for name, parameter in inspect.signature(callback).parameters.items():
        kind, *extras = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        required = parameter.default is parameter.empty
        implied = typer.Argument() if required else typer.Option()
        info = next((extra for extra in extras if isinstance(extra, OptionInfo | ArgumentInfo)), implied)
        if info.hidden:
            continue
        write = _written_argument if isinstance(info, ArgumentInfo) else _written_option
        written = write(name, kind, info, required)
        default = "" if parameter.default in (parameter.empty, None, False, "") else f"Default: `{parameter.default}`."
        choices = f"One of {', '.join(f'`{choice}`' for choice in _choices(kind))}." if _choices(kind) else ""
        meaning = " ".join(filter(None, (" ".join((info.help or "").split()), choices, default)))
        found.append((written, isinstance(info, ArgumentInfo), meaning))
    yield from sorted(found, key=lambda each: not each[1])


def _written_argument(name: str, kind: Any, info: Any, required: bool) -> str:
    word = (info.metavar or name).upper() + "..." * ("list" in str(kind))
    return word if required else f"[{word}]"


def _written_option(name: str, kind: Any, info: Any, required: bool) -> str:
    # Inside Annotated, typer keeps the first name of an option as its default.
    names = [each for each in (info.default, *(info.param_decls or ())) if str(each).startswith("-")]
    names = names or [f"--{name.replace('_', '-')}"]
    if kind is bool:
        return ", ".join(names)
    words = {"int": "INTEGER", "float": "FLOAT", "Path": "PATH"}
    word = next((word for part, word in words.items() if re.search(rf"\b{part}\b", str(kind))), "TEXT")
    return f"{', '.join(names)} {info.metavar or word}"


def _choices(kind: Any) -> list[str]:
    for each in (kind, *get_args(kind)):
        if get_origin(each) is Literal:
            return list(get_args(each))
        if isinstance(each, type) and issubclass(each, Enum):
            return [str(member.value) for member in each]
    return []


# --- Python ----------------------------------------------------------------------------------------


def api(names: dict[str, Any] | None = None) -> str:
    """Signature and docstring of every public class, its public methods, and every function."""
    if names is None:
        names = {name: getattr(deeprec, name) for name in sorted(deeprec.__all__) if not name.startswith("__")}
    parts = [_NOTE, "# Python", _wrap("What `import deeprec` offers; nothing is loaded before its first use.")]
    for name, thing in names.items():
        parts += [f"## {name}", *_described(name, thing)]
        if inspect.isclass(thing):
            for member, function in _methods(thing):
                parts += [f"### {name}.{member}", *_described(member, function)]
    return "\n\n".join(parts) + "\n"


def _methods(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that our own classes define, in their order."""
    found: dict[str, Any] = {}
    for each in reversed(owner.__mro__):
        if each.__module__.partition(".")[0] == owner.__module__.partition(".")[0]:
            found |= vars(each)
    for name, member in found.items():
        kinds = (property, classmethod, staticmethod, cached_property)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, kinds)):
            yield name, member


def _described(name: str, thing: Any) -> list[str]:
    read = getattr(thing, "fget", None) or getattr(thing, "func", None)  # of a property, plain or cached
    function = read or getattr(thing, "__func__", thing)
    parts = []
    if read is not None:
        returned = inspect.signature(read).return_annotation
        parts = [f"```python\n{name}: {_raw(returned)!r}\n```"]
    elif not (inspect.isclass(thing) and issubclass(thing, (Section, Exception))):
        parts = [f"```python\n{_signature(name, function)}\n```"]
    return parts + _prose(function)


class _Raw(str):
    """Text that `inspect` prints as it is."""

    def __repr__(self) -> str:
        return str(self)


def _raw(value: Any) -> Any:
    text = value if isinstance(value, str) else inspect.formatannotation(value)
    return _Raw(text)


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") and not parameters:
            continue
        if parameter.annotation is not parameter.empty:
            parameter = parameter.replace(annotation=_raw(parameter.annotation))
        if len(repr(parameter.default)) > 40 or " at 0x" in repr(parameter.default):
            parameter = parameter.replace(default=_Raw("..."))
        parameters.append(parameter)
    signature = signature.replace(parameters=parameters)
    returned = signature.return_annotation
    if inspect.isclass(function) or returned is signature.empty:
        signature = signature.replace(return_annotation=signature.empty)
    else:
        signature = signature.replace(return_annotation=_raw(returned))
    line = f"{name}{signature}"
    if len(line) <= WIDTH:
        return line
    shown = [str(each) for each in parameters]
    kinds = [each.kind for each in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    tail = str(signature.replace(parameters=[])).removeprefix("()")
    return f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){tail}"


# --- Markdown --------------------------------------------------------------------------------------


def _prose(thing: Any) -> list[str]:
    own = vars(thing).get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    if inspect.isclass(thing) and own and own.startswith(f"{thing.__name__}("):
        own = None  # what dataclasses write by themselves
    return _text(inspect.cleandoc(own)) if own else []


def _text(text: str) -> list[str]:
    """Markdown of a docstring: paragraphs, and lists of what stands under Args, Raises and the like."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        head, _, body = block.partition("\n")
        title = head.removesuffix(":")
        if head.endswith(":") and title in _DOCSTRING_SECTIONS and body:
            parts += [f"**{title}**", "\n".join(map(_item, _entries(textwrap.dedent(body))))]
        elif block.startswith(("```", "    ", "- ", ">>>")):
            parts.append(block)
        else:
            parts.append(_wrap(block))
    return parts


def _entries(body: str) -> Iterator[str]:
    """The entries of a section, each with its indented lines joined."""
    entry: list[str] = []
    for line in body.split("\n"):
        if entry and not line.startswith(" "):
            yield " ".join(entry)
            entry = []
        entry.append(line.strip())
    yield " ".join(entry)


def _item(entry: str) -> str:
    name, colon, meaning = entry.partition(": ")
    marked = f"`{name}`: {meaning}" if colon and re.fullmatch(r"[\w*]+(, [\w*]+)*", name) else entry
    return _wrap(f"- {marked}", "  ")


def _wrap(text: str, indent: str = "") -> str:
    if text.startswith("```"):
        return text
    return textwrap.fill(
        " ".join(text.split()), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


PAGES: dict[str, Callable[[], str]] = {"configuration.md": configuration, "cli.md": cli, "api.md": api}

if __name__ == "__main__":
    main()
