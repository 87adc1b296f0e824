"""Converts a GGUF language model to OpenVINO, once, into a folder `openvino` beside the file.

OpenVINO's own exporter (optimum-intel) pins an older transformers, so OpenVINO GenAI builds the graph, from the weights
in 16 bits. An adapter finds its layers by the names of products, which that graph lacks, so this module sets them.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.errors import DeepRecError

MODEL_FILE = "openvino_model.xml"
_COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files of transformers that a model needs too; the first two are required."""


def openvino_folder(source: Path) -> Path:
    """The folder of an OpenVINO model, converted from a GGUF file if necessary."""
    target = source / "openvino"
    for folder in (source, target):
        if (folder / MODEL_FILE).is_file():
            return folder
    found = sorted(source.glob("*.gguf")) if source.is_dir() else []
    if len(found) != 1 or not all((source / name).is_file() for name in _COMPANIONS[:2]):
        raise DeepRecError(
            f"policy.kind='openvino' needs a folder with {MODEL_FILE}, or a GGUF file, config.json and tokenizer.json; "
            f"{source} has neither: export the model (optimum-cli export openvino), or use policy.kind=transformers."
        )
    try:
        with tempfile.TemporaryDirectory(dir=source, prefix=".openvino-") as scratch:
            folder = _convert(found[0], Path(scratch))
            for name in _COMPANIONS:
                if (source / name).is_file():
                    shutil.copy(source / name, folder)
            os.replace(folder, target)
    except OSError as error:
        if (target / MODEL_FILE).is_file():  # another process was first
            return target
        raise DeepRecError(
            f"The OpenVINO model could not be written to {target}: {error}. Free some space, or allow writing there."
        ) from None
    return target


def _convert(file: Path, scratch: Path) -> Path:
    import openvino
    import openvino_genai

    # It saves the graph beside the file.
    openvino_genai.LLMPipeline(str(in_16_bit(file, scratch / "model.gguf")), "CPU", enable_save_ov_model=True)
    made = scratch / "made"
    made.mkdir()
    model = openvino.Core().read_model(scratch / MODEL_FILE)
    for product in model.get_ordered_ops():
        if product.get_type_name() == "MatMul" and (name := _weight_of(product)):
            product.set_friendly_name(name)
    openvino.save_model(model, made / MODEL_FILE, compress_to_fp16=False)
    del model  # it reads from a file that is removed
    for part in scratch.glob("openvino_*tokenizer.*"):
        shutil.move(part, made)
    return made


def _weight_of(product: Any) -> str | None:
    """The layer of a product's weight: `model.layers.0.mlp.up_proj` of `model.layers[0].mlp.up_proj.weight`."""
    node = product.input_value(1).get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    name = node.get_friendly_name()
    if node.get_type_name() != "Constant" or not name.endswith(".weight"):
        return None
    return re.sub(r"\[(\d+)\]", r".\1", name).removesuffix(".weight")


def in_16_bit(source: Path, target: Path) -> Path:
    """The weights of a GGUF file, unquantised."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = entry.types[0], entry.types[-1] if len(entry.types) > 1 else None
        writer.add_key_value(name, entry.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
