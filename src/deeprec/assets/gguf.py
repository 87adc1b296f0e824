"""Convert a quantised GGUF language model into a safetensors model folder, once.

Loading a GGUF file de-quantises it in Python, which takes about half a minute; the converted folder loads in
about a second. Its weights are float32, at four bytes each, and equal the published ones bit for bit. A
de-quantised value is a float16 scale times a small integer plus a float16 offset, so float16 would move values by
up to 2.0e-3 and bfloat16 by up to 1.4e-2 (SmolLM2-135M Q4_1).
"""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from deeprec.errors import DeepRecError

PROBE = "<|im_start|>user\nToy Story (1995), 2 of 10.\n\n1. Café — 日本\n<|im_end|>\n"
"""A text with special tokens, figures after blank lines and characters of several bytes."""


def convert(folder: Path, gguf_file: str) -> None:
    """Write the model and tokenizer of `folder / gguf_file` beside it, in transformers' safetensors layout.

    Checks what it wrote: weights equal bit for bit, logits equal and finite, tokens that round-trip and end
    on the instruct model's end token. Raises DeepRecError if a check fails or the disk is full.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # transformers draws one of its bars whatever its setting says: keep it out of log files.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
            _restore_pre_tokenizer(tokenizer, folder / gguf_file)
            model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
            # save_pretrained refuses a quantised model; these marks are all that is left of its quantisation.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes 0600
            saved_tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            saved: Any = AutoModelForCausalLM.from_pretrained(folder)
    except SafetensorError as error:
        raise DeepRecError(f"The converted {gguf_file} could not be written: {error}.") from error
    tokens = tokenizer(PROBE)["input_ids"]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([tokens])).logits
        saved_logits = saved.eval()(torch.tensor([tokens])).logits
    weights, saved_weights = model.state_dict(), saved.state_dict()
    checks = {
        "weights": weights.keys() == saved_weights.keys()
        and all(torch.equal(weight, saved_weights[name]) for name, weight in weights.items()),
        "logits": bool(torch.isfinite(logits).all()) and torch.equal(logits, saved_logits),
        "tokens": saved_tokenizer(PROBE)["input_ids"] == tokens and saved_tokenizer.decode(tokens) == PROBE,
        "end token": saved_tokenizer.eos_token == "<|im_end|>"
        and saved_tokenizer.eos_token_id == saved.generation_config.eos_token_id,
    }
    if wrong := [name for name, fits in checks.items() if not fits]:
        fault = f"The conversion of {gguf_file} changed its {', '.join(wrong)}"
        raise DeepRecError(f"{fault}; install torch and transformers as the constraints file says and fetch it again.")


def _restore_pre_tokenizer(tokenizer: Any, gguf: Path) -> None:
    """Split at digits, as the model was trained: transformers reads the tokens of a GGUF but not its `pre`.

    Without it a blank line before a figure becomes two tokens, which the model never saw there.
    """
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        splits = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(splits)
