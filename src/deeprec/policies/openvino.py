"""A causal language model in this process, run by OpenVINO GenAI: for exploring on a processor, greedily.

Each segment is a request of its own; OpenVINO's prefix cache keeps what the turns before it have encoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.policies.openvino_model import openvino_folder
from deeprec.policies.policy import Chunk, Finish, Habits, Request
from deeprec.policies.tokens import (
    Ending,
    TokenizerCodec,
    adapter_folder,
    model_source,
    read_habits,
    refuse_constraints,
    unloadable,
)

_BATCHED_TOKENS = 2048
"""At most this many tokens are encoded in one step."""
_BLOCK = 32
"""Tokens in a block of OpenVINO's cache on a processor."""


@dataclass
class _Open:
    """A request under way."""

    handle: Any
    ending: Ending


class OpenVinoPolicy(TokenizerCodec):
    """See the module.

    Args:
        pipeline: an `openvino_genai.ContinuousBatchingPipeline`.
        context_limit: tokens that the model reads.
        ends: tokens that end a text, beside the tokenizer's own.
    """

    def __init__(self, pipeline: Any, tokenizer: Any, context_limit: int, ends: Collection[int] = ()) -> None:
        super().__init__(tokenizer)
        self.pipeline = pipeline
        self.ends = frozenset([*ends, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])])
        self.context_limit = context_limit
        self.seconds: dict[str, float] = {"generate": 0.0}
        self.habits: Habits | None = None
        self._open: dict[str, _Open] = {}
        self._count = 0

    @classmethod
    def load(cls, config: PolicyConfig, *, offline: bool = False, rows: int = 16, tokens: int = 4096) -> OpenVinoPolicy:
        """Load the name of an asset, or a folder with an OpenVINO model, or with a GGUF file of which one is made.

        Args:
            rows: explorations under way at once, at most, for which the cache has room.
            tokens: of each.

        Raises:
            DeepRecError: OpenVINO is missing, or the model can't be loaded.
        """
        try:
            import openvino_genai as genai
        except ImportError:
            raise DeepRecError(
                "policy.kind='openvino' needs OpenVINO GenAI: pip install 'deeprec[openvino]'."
            ) from None
        import torch
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        from deeprec.policies.transformers import pick_dtype

        if config.device not in ("auto", "cpu"):
            raise DeepRecError(f"policy.device={config.device!r}: policy.kind='openvino' runs on the processor, cpu.")
        folder = openvino_folder(Path(model_source(config, offline=offline)))
        adapter = adapter_folder(config)
        precision = "bf16" if pick_dtype(config.dtype, torch.device("cpu")) == torch.bfloat16 else "f32"
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": precision,  # eight bits unless told
            "INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        }
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = _BATCHED_TOKENS
        # A cache that grows by need hangs in 2026.4 with so many requests.
        scheduler.num_kv_blocks = rows * (-(-tokens // _BLOCK) + 1)
        try:
            if adapter:
                properties["adapters"] = _beside(adapter)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            limit = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
            pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
            ends = None
            if (folder / "generation_config.json").is_file():
                ends = GenerationConfig.from_pretrained(folder).eos_token_id
        except DeepRecError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a damaged or foreign folder makes the loaders raise)
            raise unloadable(config, error) from None
        policy = cls(pipeline, tokenizer, limit, [ends] if isinstance(ends, int) else ends or [])
        policy.habits = read_habits(adapter) if adapter else None
        return policy

    def submit(self, requests: Sequence[Request]) -> None:
        """Take on requests.

        Raises:
            DeepRecError: one samples, whose seed OpenVINO would not know, or holds its answer to titles.
        """
        import openvino
        import openvino_genai

        refuse_constraints(requests, "openvino")
        if any(request.temperature > 0 for request in requests):
            raise DeepRecError("policy.kind='openvino' is greedy: set explore.temperature=0, or use transformers.")
        for request in requests:
            self.release([request.key])
            settings = openvino_genai.GenerationConfig()
            settings.max_new_tokens, settings.logprobs = request.max_new_tokens, 1
            settings.ignore_eos = True  # ends and stops are watched for here, token by token
            context = openvino.Tensor(np.array([request.context], dtype=np.int64))
            self._count += 1
            handle = self.pipeline.add_request(self._count, context, settings)
            self._open[request.key] = _Open(handle, Ending(self, request, self.ends))

    def step(self) -> list[Chunk]:
        started = time.perf_counter()
        chunks: list[Chunk] = []
        while self._open and not chunks:
            self.pipeline.step()
            found = [self._read(key) for key in list(self._open)]
            chunks = [chunk for chunk in found if chunk is not None]
        self.seconds["generate"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        for key in keys:
            if (gone := self._open.pop(key, None)) is not None:
                gone.handle.cancel()
        if not self._open and self.pipeline.has_non_finished_requests():
            self.pipeline.step()  # lets go of them

    def _read(self, key: str) -> Chunk | None:
        """What is new of a request, if anything."""
        from openvino_genai import GenerationStatus

        handle, ending = self._open[key].handle, self._open[key].ending
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = None
        while finish is None and handle.can_read():
            for output in handle.read().values():  # one, or none where it was refused
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    tokens.append(token)
                    logprobs.append(min(logprob, 0.0))
                    finish = ending.after(token)
                    if finish is not None:
                        break
        if finish is not None:
            self.release([key])
        elif not tokens and handle.get_status() != GenerationStatus.RUNNING:  # FINISHED was read, so IGNORED
            self.release([key])
            return Chunk(key, (), (), Finish.FAILED, "OpenVINO's cache has no room for it.")
        return Chunk(key, tuple(tokens), tuple(logprobs), finish) if tokens else None


def _beside(adapter: Path) -> Any:
    """An adapter for OpenVINO. Not merged: in bfloat16 most of what it changes would be rounded away."""
    import openvino_genai as genai
    from peft import LoraConfig

    found = LoraConfig.from_pretrained(str(adapter))
    if found.peft_type != "LORA" or found.use_dora or found.rank_pattern or found.alpha_pattern or found.lora_bias:
        raise DeepRecError(
            f"The adapter {adapter} is no plain LoRA, which OpenVINO needs: use policy.kind=transformers."
        )
    scaling = found.lora_alpha / (found.r**0.5 if found.use_rslora else found.r)
    weights = genai.Adapter(str(adapter / "adapter_model.safetensors"))
    return genai.AdapterConfig(weights, scaling, genai.AdapterConfig.Mode.MODE_STATIC)
