"""How the code is laid out: rules that no single module can keep alone."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deeprec

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deeprec"
MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def map_of_rooms() -> dict[str, set[str]]:
    """The table in CONTRIBUTING.md: what each room may import besides itself.

    Imports under TYPE_CHECKING count like any other: they tie rooms together just as much.
    """
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("<!-- map -->")[2].partition("<!-- end of map -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return {room: {name.strip() for name in names.split(",") if name.strip()} for room, names in rows}


ALLOWED = map_of_rooms() | {"deeprec": set()}


def imports(name: str) -> set[str]:
    """The deeprec modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import: name the module in full"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in MODULES else str(node.module) for part in parts}
    return {module for module in found if module == "deeprec" or module.startswith("deeprec.")}


def room(name: str) -> str:
    """The most specific entry of the table for a module."""
    parts = name.removeprefix("deeprec").removeprefix(".").split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in ALLOWED:
            return prefix
    return "deeprec" if name == "deeprec" else pytest.fail(f"{name} is in no room of the table: say what it may import")


def within(module: str, rooms: set[str]) -> bool:
    path = module.removeprefix("deeprec.")
    return any(path == room or path.startswith(f"{room}.") for room in rooms)


def test_the_modules_are_found():
    assert {"deeprec", "deeprec.cli", "deeprec.explore.trace", "deeprec.trm.trm"} <= MODULES.keys()
    assert imports("deeprec.explore.trace") >= {"deeprec.explore.protocol", "deeprec.retrieval.retriever"}
    assert "deeprec.explore.protocol" in imports("deeprec.policies.scripted")  # from deeprec.explore import protocol


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    own = room(name)
    assert "testing" not in {room(module) for module in imports(name)}, f"{name} needs what is for tests"
    for module in sorted(imports(name)):
        assert room(module) == own or within(module, ALLOWED[own]), f"{name} must not import {module}"


def test_no_two_modules_import_each_other():
    graph = graphlib.TopologicalSorter({name: imports(name) for name in MODULES})
    try:
        graph.prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_root_holds_little():
    files = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__init__.pyi", "py.typed", "errors.py", "testing.py"}


def test_every_room_is_on_the_map():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {room.partition(".")[0] for room in ALLOWED} - {"deeprec", "errors", "testing"}


def test_the_typed_root_names_what_is_there():
    stub = ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == deeprec._MODULES
    for name in typed:
        assert getattr(deeprec, name).__name__ == name


@pytest.mark.parametrize("name", MODULES)
def test_bars_are_drawn_by_the_command_line_alone(name):
    if room(name) != "cli":
        drawn = {node.module for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom)}
        assert "rich.progress" not in drawn, name


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_a_file_or_a_string_is_executed(name):
    for node in ast.walk(TREES[name]):
        where = f"{name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES, where
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).partition(".")[0] not in UNSAFE_MODULES, where
            assert not (node.module == "torch" and {"load", "save"} & {alias.name for alias in node.names}), where
        elif isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile"}), where
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert isinstance(keyword.value, ast.Constant), where
                    assert keyword.value.value is False, where
            assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, where
        elif isinstance(node, ast.Attribute) and node.attr in {"load", "save", "eval", "exec"}:
            owner = ast.unparse(node.value)
            assert (owner, node.attr) not in {("torch", "load"), ("torch", "save")}, where
            assert owner != "builtins", where
        elif isinstance(node, ast.Constant):
            assert node.value != "trust_remote_code", where


@pytest.fixture(scope="module")
def tracked():
    """The text of every file that git keeps, by path."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}


def lines_that_match(tracked, pattern):
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path, text in tracked.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


REGISTRIES = ("py@pi.org", "python@hosted.org", "ana@conda.org", "npm@js.org", "npm@js.com", "crates@.io", "pip.@conf")
"""With a mark in each, so that this file does not name them."""


def test_no_package_registry_is_named(tracked):
    """pip knows where to look; a name in our files would be wrong behind a mirror."""
    pattern = "|".join(re.escape(name.replace("@", "")) for name in REGISTRIES)
    assert lines_that_match(tracked, pattern) == []


def test_no_path_of_one_machine_is_named(tracked):
    folders = "|".join(("work", "home", "root", "Users", "mnt"))
    pattern = rf"(?<![\w.:/~}}-])/(?:{folders})/\w|\b[A-Z]:\\\\?Users\b"
    assert re.search(pattern, f"in /{'work'}/x")
    assert re.search(pattern, f"'/{'home'}/x'")
    assert not re.search(pattern, f"https://example.com/{'home'}/x")
    assert lines_that_match(tracked, pattern) == []


def test_import_deeprec_is_light():
    code = "import sys, deeprec; print(sorted({'torch', 'transformers', 'polars', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.strip() == "[]"
