"""A causal language model in this process, through transformers, with a KV cache that lives over turns.

Every exploration keeps one row of a slotted cache from its first token to its last. Rows advance together, by one token
a step or, with prompt-lookup decoding, by several. A row whose segment ends leaves the step and keeps its cache; when
the tool has answered, only the new tokens are encoded. Rows of one step may have different lengths.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from deeprec.config import PolicyConfig
from deeprec.errors import DeepRecError
from deeprec.explore.policy import Chunk, Finish, Policy, Request
from deeprec.policies.adapters import adapter_folder, model_source, read_prompt_defaults
from deeprec.policies.attention import group
from deeprec.policies.constrained import ConstrainedSampler, TokenMatchers
from deeprec.policies.kv_cache import SlottedKVCache
from deeprec.policies.prompt_lookup import PromptLookup
from deeprec.policies.tokenizer import StopChecker, TokenizerCodec, explain_errors, refuse_missing

_PREFILL_TOKENS = 2048  # at most this many tokens are encoded at once, which bounds the memory of attention
_NUCLEUS = 256  # likeliest tokens among which top-p sampling looks first
_LOOKUP_TOKENS = 3  # guessed tokens of a row in one step, at most
_STEP_TOKENS = 64  # beyond so many tokens in a step of all rows, a guess costs as much as it saves


@dataclass
class _Row:
    """A context; `cached` of its tokens are in the cache, and the lookup tables have `learned` of them."""

    key: str
    stop_checker: StopChecker
    writing: bool = True  # False while the row waits for the tool
    context: list[int] = field(default_factory=list)
    cached: int = 0
    generator: torch.Generator | None = None
    sampler: ConstrainedSampler | None = None
    lookup: PromptLookup = field(default_factory=PromptLookup)
    learned: int = 0


class TransformersPolicy(TokenizerCodec, Policy):
    """See the module. Rows `[0, writing)` of the cache are being written; the others wait for the tool."""

    supports_constraints = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(tokenizer, model.generation_config)
        self.model = model
        window = getattr(model.config, "sliding_window", None)  # of all layers, where there are no types (Mistral)
        kinds = getattr(model.config, "layer_types", None)
        layers = set(kinds or ["sliding_attention" if window else "full_attention"])
        if layers != {"full_attention"}:
            raise DeepRecError(f"This policy needs a model of full attention; {model.config.model_type} has {layers}.")
        self.context_limit = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
        self.forkable = model.device.type == "cpu"
        self.seconds = {"prefill": 0.0, "decode": 0.0}
        self.rows: list[_Row] = []
        self.writing = 0
        self.lookup = PromptLookup()  # of all rows, released ones included
        self.cache = SlottedKVCache(model.config.num_hidden_layers, rows=1)

    @classmethod
    def load(cls, config: PolicyConfig, *, offline: bool = False) -> TransformersPolicy:
        """Load by the name of an asset, a folder, or the id of a model on the hub."""
        device = pick_device(config.device)
        disable_progress_bar()  # loading takes a second, and the bar would interrupt ours
        with model_source(config, offline=offline) as source:
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=pick_dtype(config.dtype, device),
                attn_implementation="sdpa",  # eager attention would misread the boolean mask
                local_files_only=offline,
                trust_remote_code=False,
                use_safetensors=True,
            )
            group(model)
        if adapter := adapter_folder(config):
            model = _with_adapter(model, adapter, config)
        with explain_errors(f"policy.device={config.device!r} can't take the model"):
            model.to(device)
        policy = cls(model.eval(), tokenizer)
        policy.prompt_defaults = read_prompt_defaults(adapter)
        return policy

    @cached_property
    def matchers(self) -> TokenMatchers:
        """Made for the first constraint."""
        return TokenMatchers(self)

    def submit(self, requests: Sequence[Request]) -> None:
        rows = {row.key: row for row in self.rows}
        for request in requests:
            stop_checker = StopChecker(self, request)
            if (row := rows.get(request.key)) is None:
                row = _Row(request.key, stop_checker)
                self.rows.append(row)
            context = list(request.context)
            same = row.cached if context[: row.cached] == row.context[: row.cached] else 0
            row.learned = min(row.learned, same)
            # The last token is always computed again: its logits give the first new token.
            row.cached = min(same, len(context) - 1)
            row.context, row.stop_checker, row.writing = context, stop_checker, True
            row.generator = torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None
            row.sampler = ConstrainedSampler(request.constraint, self.matchers) if request.constraint else None

    @torch.inference_mode()
    def step(self) -> list[Chunk]:
        """Encode what is new, then write in every open row: one token, and as many more as were guessed right."""
        self._gather()
        if self.writing == 0:
            return []
        started = time.perf_counter()
        self.cache.reserve(len(self.rows), 0)  # once for all new rows: growing copies the cache
        for position in range(self.writing):
            if len(self.rows[position].context) - self.rows[position].cached > 1:
                self._prefill(position)
        prefilled = time.perf_counter()
        rows = self.rows[: self.writing]
        guesses = self._guess(rows)
        width = 1 + max(map(len, guesses))
        # Padding lies behind all that a row reads, and is overwritten before it is read.
        pad = [0] * width
        inputs = [[row.context[-1], *guess, *pad][:width] for row, guess in zip(rows, guesses, strict=True)]
        starts = [len(row.context) - 1 for row in rows]
        logits_BTV = self._forward(slice(0, self.writing), inputs, starts, keep=width)
        chunks = self._accept(rows, guesses, logits_BTV)
        self.seconds["prefill"] += prefilled - started
        self.seconds["decode"] += time.perf_counter() - prefilled
        return chunks

    @torch.inference_mode()
    def release(self, keys: Sequence[str]) -> None:
        for position in reversed(range(len(self.rows))):
            if self.rows[position].key in keys:
                self.rows[position].writing = False
                self._swap(position, len(self.rows) - 1)
                self.rows.pop()
        if not self.rows:
            self.cache = SlottedKVCache(self.model.config.num_hidden_layers, rows=1)
        self._gather()

    def _gather(self) -> None:
        """Move the rows that are being written to the front, so that a step works on one block of the cache."""
        self.writing = 0
        for position, row in enumerate(self.rows):
            if row.writing:
                self._swap(self.writing, position)
                self.writing += 1

    def _swap(self, a: int, b: int) -> None:
        if a != b:
            if length := max(self.rows[a].cached, self.rows[b].cached):
                self.cache.reserve(len(self.rows), length)  # a new row may have no slot yet
                self.cache.swap(a, b, length)
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]

    def _prefill(self, position: int) -> None:
        """Encode all but the last token of a row's context; a prefix that another row shares is copied."""
        row = self.rows[position]
        last = len(row.context) - 1
        if row.cached == 0:
            shared, source = max(
                (_common_prefix(row.context, other.context, min(last, other.cached)), -other_position)
                for other_position, other in enumerate(self.rows)
            )
            if shared:
                self.cache.reserve(position + 1, shared)
                self.cache.copy(-source, position, shared)
                row.cached = shared
        while row.cached < last:
            end = min(last, row.cached + _PREFILL_TOKENS)
            self._forward(slice(position, position + 1), [row.context[row.cached : end]], [row.cached], keep=0)
            row.cached = end

    def _guess(self, rows: Sequence[_Row]) -> list[list[int]]:
        """Guessed next tokens of each row, within its limits."""
        most = min(_LOOKUP_TOKENS, _STEP_TOKENS // len(rows) - 1)
        most = min(most, self.context_limit - max(len(row.context) for row in rows))
        guesses = []
        for row in rows:
            for lookup in (row.lookup, self.lookup):
                lookup.learn(row.context, row.learned)
            row.learned = len(row.context)
            left = row.stop_checker.request.max_new_tokens - row.stop_checker.written - 1
            guesses.append(row.lookup.guess(row.context, min(most, left), self.lookup))
        return guesses

    def _forward(self, rows: slice, tokens: list[list[int]], starts: list[int], keep: int) -> Tensor:
        """Advance rows by tokens from each one's start on; returns the logits (B, `keep`, V) after the last ones."""
        device = self.model.device
        tokens_BT = torch.tensor(tokens, device=device)
        positions_T = torch.arange(tokens_BT.shape[1], device=device)
        positions_BT = torch.tensor(starts, device=device)[:, None] + positions_T
        self.cache.open(rows, positions_BT)
        positions_L = torch.arange(self.cache.length, device=device)
        mask_B1TL = (positions_L <= positions_BT[:, :, None])[:, None]
        output = self.model(
            input_ids=tokens_BT,
            attention_mask=mask_B1TL,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            # As positions, not as a number: of a slice, PyTorch would copy the whole vocabulary's matrix to multiply.
            logits_to_keep=positions_T[len(positions_T) - keep :],
        )
        return output.logits

    def _sample(self, logits_BV: Tensor, rows: Sequence[_Row]) -> list[tuple[int, float]]:
        heat_B = [row.stop_checker.request.temperature or 1.0 for row in rows]
        logits_BV = logits_BV.float() / torch.tensor(heat_B, device=logits_BV.device)[:, None]
        if logits_BV.isnan().any():
            raise DeepRecError("The language model's logits are not numbers: training diverged, or it is damaged.")
        logprobs_BV = logits_BV.log_softmax(-1)
        best_B = logits_BV.argmax(-1).tolist()
        picks: list[int] = []
        for position, row in enumerate(rows):
            scores_V = (logits_BV if row.generator is None else logprobs_BV)[position]
            draw = partial(_draw, top_p=row.stop_checker.request.top_p, generator=row.generator)
            if row.sampler is not None:
                picks.append(row.sampler.pick(scores_V, draw))
            else:
                picks.append(best_B[position] if row.generator is None else draw(scores_V))
        picked_B = torch.tensor(picks, device=logits_BV.device)
        values = logprobs_BV.gather(-1, picked_B[:, None])[:, 0].tolist()
        return list(zip(picks, values, strict=True))

    def _accept(self, rows: Sequence[_Row], guesses: Sequence[Sequence[int]], logits_BTV: Tensor) -> list[Chunk]:
        """Draw each row's tokens one after another, until one differs from its guess or ends the segment."""
        written: list[list[tuple[int, float]]] = [[] for _ in rows]
        finishes: list[Finish | None] = [None] * len(rows)
        open_ = list(range(len(rows)))
        for t in range(logits_BTV.shape[1]):
            picks = self._sample(logits_BTV[open_, t], [rows[b] for b in open_])
            for b, pick in zip(open_, picks, strict=True):
                written[b].append(pick)
                rows[b].cached = len(rows[b].context)
                rows[b].context.append(pick[0])
                finishes[b] = rows[b].stop_checker.after(pick[0])
                rows[b].writing = finishes[b] is None
            open_ = [b for b in open_ if finishes[b] is None and guesses[b][t : t + 1] == [written[b][t][0]]]
            if not open_:
                break
        return [
            Chunk(row.key, tuple(token for token, _ in pairs), tuple(logprob for _, logprob in pairs), finish)
            for row, pairs, finish in zip(rows, written, finishes, strict=True)
        ]


def _with_adapter(model: Any, adapter: Path, config: PolicyConfig) -> Any:
    try:
        from peft import PeftModel

        from deeprec.policies.fused_lora import fuse
    except ImportError:
        refuse_missing("policy.adapter", "peft", "peft")
    with explain_errors(f"policy.adapter={config.adapter!r} does not fit {config.model}"):
        model = PeftModel.from_pretrained(model, adapter)
        # In bfloat16, merging would round most of the adapter's changes away.
        return model.merge_and_unload() if model.dtype == torch.float32 else fuse(model)


def _common_prefix(a: Sequence[int], b: Sequence[int], limit: int) -> int:
    return next((position for position in range(limit) if a[position] != b[position]), limit)


def _draw(logprobs_V: Tensor, top_p: float, generator: torch.Generator | None) -> int:
    """One token from the smallest set that holds `top_p` of the probability; the best without a generator."""
    if generator is None:
        return int(logprobs_V.argmax())
    probabilities_V = logprobs_V.exp().cpu()
    if top_p == 1:
        return int(torch.multinomial(probabilities_V, 1, generator=generator))
    # The set is nearly always a few tokens, and sorting the whole vocabulary costs more than everything else here.
    best_K, order_K = probabilities_V.topk(min(_NUCLEUS, probabilities_V.numel()))
    if best_K.sum() < top_p:
        best_K, order_K = probabilities_V.sort(descending=True)
    best_K[best_K.cumsum(0) - best_K >= top_p] = 0
    return int(order_K[torch.multinomial(best_K, 1, generator=generator)])


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(found if name == "auto" else name)
    except RuntimeError:
        raise DeepRecError(f"policy.device={name!r} is no device: use auto, cpu or cuda.") from None
    if device.type == "cuda" and found == "cpu":
        raise DeepRecError(f"policy.device={name!r} was asked for, but torch sees no GPU: use cpu or auto.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it fast, else float32."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    fast = device.type == "cuda" or capabilities.get("avx512_bf16", False)
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and fast) else torch.float32
