"""A causal language model in this process, run by OpenVINO GenAI: for exploring on a processor, greedily.

Each segment is a separate request, and so is each line of a constrained answer; OpenVINO's prefix cache keeps what
earlier requests have encoded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Finish, Policy, Request
from deeprec.policies.adapters import adapter_folder, model_source, read_prompt_defaults
from deeprec.policies.grammar import AnswerGrammar, alternatives
from deeprec.policies.openvino_model import MODEL_FILE, openvino_folder
from deeprec.policies.tokenizer import StopChecker, TokenizerCodec, explain_errors, refuse_missing, refuse_unsupported

_BATCHED_TOKENS = 2048  # at most this many tokens are encoded in one step
_BLOCK = 32  # tokens in a block of OpenVINO's cache on a processor
_UNUSUAL = {"use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save"}
_UNUSUAL |= {"trainable_token_indices", "target_parameters", "layer_replication"}
"""Settings of peft's LoRA that OpenVINO does not support."""


@dataclass
class _Open:
    """A segment that is being written; `handle` is OpenVINO's, for its present part."""

    stop_checker: StopChecker
    grammar: AnswerGrammar | None
    handle: Any = None
    tokens: list[int] = field(default_factory=list)


class OpenVinoPolicy(TokenizerCodec, Policy):
    """See the module. `pipeline` is an `openvino_genai.ContinuousBatchingPipeline`."""

    supports_sampling = False
    supports_constraints = True

    def __init__(self, pipeline: Any, tokenizer: Any, context_limit: int, generation: Any) -> None:
        super().__init__(tokenizer, generation)
        self.pipeline = pipeline
        self.context_limit = context_limit
        self.seconds = {"generate": 0.0}
        self._open: dict[str, _Open] = {}
        self._count = 0

    @classmethod
    def load(cls, config: PolicyConfig, *, offline: bool = False, rows: int = 16, tokens: int = 4096) -> OpenVinoPolicy:
        """Load an asset, a folder with an OpenVINO model, or one with a GGUF file, which is converted.

        At most `rows` explorations are in flight at once; the cache has room for so many, of `tokens` tokens each.
        """
        try:
            import openvino_genai as genai
        except ImportError:
            refuse_missing("policy.kind='openvino'", "OpenVINO GenAI", "--editable '.[openvino]'")
        import torch
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        from deeprec.policies.transformers import pick_dtype

        if "tcmalloc" in os.environ.get("LD_PRELOAD", ""):  # its allocations would be freed by the C library
            raise DeepRecError("policy.kind='openvino' crashes beside tcmalloc: unset LD_PRELOAD, or use transformers.")
        if config.device not in ("auto", "cpu"):
            raise DeepRecError(f"policy.device={config.device!r}: policy.kind='openvino' runs on the processor, cpu.")
        adapter = adapter_folder(config)
        precision = "bf16" if pick_dtype(config.dtype, torch.device("cpu")) == torch.bfloat16 else "f32"
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,  # eight bits by default
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = _BATCHED_TOKENS
        # With so many requests a cache that grows on demand hangs in 2026.4.
        scheduler.num_kv_blocks = rows * (-(-tokens // _BLOCK) + 1)
        with model_source(config, offline=offline) as source:
            folder = openvino_folder(Path(source))
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            generation = GenerationConfig.from_model_config(model_config)
            if (folder / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(folder)
            if adapter:
                properties["adapters"] = _adapter_config(adapter, config, folder)
            pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        limit = getattr(model_config, "max_position_embeddings", None) or sys.maxsize
        policy = cls(pipeline, tokenizer, limit, generation)
        policy.prompt_defaults = read_prompt_defaults(adapter)
        return policy

    def submit(self, requests: Sequence[Request]) -> None:
        refuse_unsupported(self, "openvino", sampled=any(request.temperature > 0 for request in requests))
        for request in requests:
            self.release([request.key])
            grammar = AnswerGrammar(request.constraint, self) if request.constraint else None
            self._open[request.key] = opened = _Open(StopChecker(self, request), grammar)
            self._begin(opened)

    def step(self) -> list[Chunk]:
        started = time.perf_counter()
        chunks: list[Chunk] = []
        while self._open and not chunks:
            self.pipeline.step()
            chunks = [chunk for key in list(self._open) if (chunk := self._read(key)) is not None]
        self.seconds["generate"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            if (gone := self._open.pop(key, None)) is not None:
                gone.handle.cancel()
        if not self._open and self.pipeline.has_non_finished_requests():
            # Frees them; otherwise it complains at the end. A single exploration pays one token's time per segment.
            self.pipeline.step()

    def _begin(self, opened: _Open) -> None:
        """Start the next part of a segment, under the grammar of what may come next."""
        import openvino
        import openvino_genai

        request = opened.stop_checker.request
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.logprobs = request.max_new_tokens - opened.stop_checker.written, 1
        settings.ignore_eos = True  # `StopChecker` finds ends and stops, token by token
        if opened.grammar and opened.grammar.choices:
            settings.structured_output_config = openvino_genai.StructuredOutputConfig(
                grammar=f"root ::= {alternatives(opened.grammar.choices)}"  # in EBNF, for xgrammar
            )
        context = openvino.Tensor(np.array([[*request.context, *opened.tokens]], dtype=np.int64))
        self._count += 1
        opened.handle = self.pipeline.add_request(self._count, context, settings)

    def _read(self, key: str) -> Chunk | None:
        """What is new of a request, if anything."""
        from openvino_genai import GenerationStatus

        opened = self._open[key]
        grammar, choices = opened.grammar, opened.grammar.choices if opened.grammar else None
        tokens: list[int] = []
        logprobs: list[float] = []
        finish, restart = None, False
        for token, logprob in _new_tokens(opened.handle):
            if grammar is None or grammar.take(token):
                tokens.append(token)
                logprobs.append(min(logprob, 0.0))
                finish = opened.stop_checker.after(token)
            restart = grammar is not None and grammar.choices is not choices
            if finish is not None or restart:
                break
        opened.tokens += tokens
        if finish is not None:
            self.release([key])
        elif restart:
            opened.handle.cancel()
            self._begin(opened)
        elif not tokens and opened.handle.get_status() != GenerationStatus.RUNNING:  # FINISHED was read, so IGNORED
            self.release([key])
            problem = "OpenVINO's cache has no room for it: explore.context_tokens is too small."
            return Chunk(key, (), (), Finish.FAILED, problem)
        return Chunk(key, tuple(tokens), tuple(logprobs), finish) if tokens else None


def _new_tokens(handle: Any) -> Iterator[tuple[int, float]]:
    while handle.can_read():
        for output in handle.read().values():  # one, or none if the request was refused
            yield from zip(output.generated_ids, output.generated_log_probs, strict=True)


def _adapter_config(adapter: Path, config: PolicyConfig, folder: Path) -> Any:
    """An adapter for OpenVINO. Not merged: that is no faster, and in bfloat16 small changes would be rounded away."""
    import openvino_genai as genai
    from peft import LoraConfig
    from safetensors import safe_open

    weights = adapter / "adapter_model.safetensors"
    with explain_errors(f"policy.adapter={config.adapter!r} can't be loaded"):
        found = LoraConfig.from_pretrained(str(adapter))
        with safe_open(weights, framework="np") as file:
            names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118
        lora = genai.Adapter(str(weights))
    if found.bias != "none" or any(getattr(found, each, None) for each in _UNUSUAL):
        raise DeepRecError(f"policy.adapter={config.adapter!r} is no plain LoRA: use policy.kind=transformers.")
    graph = (folder / MODEL_FILE).read_text(encoding="utf-8")
    if missing := sorted(name for name in names if name not in graph):  # OpenVINO would leave them out, with a warning
        raise DeepRecError(f"policy.adapter={config.adapter!r} does not fit {config.model}: it has no {missing[0]}.")
    scaling = found.lora_alpha / (found.r**0.5 if found.use_rslora else found.r)
    return genai.AdapterConfig(lora, scaling, genai.AdapterConfig.Mode.MODE_STATIC)
