"""What the conversion to OpenVINO needs, and what it leaves if it fails. test_openvino runs the real conversion."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.policies import openvino_model
from deeprec.policies.openvino import OpenVinoPolicy
from deeprec.policies.openvino_model import openvino_folder

SOURCES = ("config.json", "model.gguf", "tokenizer.json")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in SOURCES:
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize("missing", SOURCES)
def test_a_folder_without_a_model_is_refused(source: Path, missing: str) -> None:
    (source / missing).unlink()
    with pytest.raises(DeepRecError, match=r"has neither: export the model"):
        openvino_folder(source)


def test_a_damaged_file_is_one_sentence(source: Path) -> None:
    with pytest.raises(DeepRecError, match=r"policy\.model=.* can't be loaded"):
        OpenVinoPolicy.load(PolicyConfig(kind="openvino", model=str(source)), offline=True)
    assert sorted(path.name for path in source.iterdir()) == sorted(SOURCES)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(DeepRecError, match=r"'\.\[openvino\]'"):
        OpenVinoPolicy.load(PolicyConfig(kind="openvino"), offline=True)


def test_beside_tcmalloc_it_is_refused_before_it_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    with pytest.raises(DeepRecError, match="unset LD_PRELOAD"):
        OpenVinoPolicy.load(PolicyConfig(kind="openvino"), offline=True)


def test_a_conversion_that_fails_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, scratch: Path) -> Path:
        (scratch / "half").write_text("a model")
        raise OSError("No space left on device")

    monkeypatch.setattr(openvino_model, "_convert", full)
    with pytest.raises(DeepRecError, match=r"could not be written to .*: No space left on device"):
        openvino_folder(source)
    assert sorted(path.name for path in source.iterdir()) == sorted(SOURCES)


def test_of_two_that_convert_at_once_one_is_taken(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(file: Path, scratch: Path) -> Path:
        for folder in (source / "openvino", scratch / "made"):
            folder.mkdir()
            (folder / "openvino_model.xml").write_text(folder.name)
        return scratch / "made"

    monkeypatch.setattr(openvino_model, "_convert", meanwhile)
    assert (openvino_folder(source) / "openvino_model.xml").read_text() == "openvino"
