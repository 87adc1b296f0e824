"""A tokenizer and a language model that need no download and no time, and titles that are hard to constrain to."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deeprec.policies.attention import GROUPED

AWKWARD = (
    "Alien (1979)",
    "Alien (1979) 2",
    "Alien",
    "2. Alien",
    "10",
    '"Crocodile" Dundee (1986)',
    'It\'s \\n a "Mad" World [uncut] {4} (1963)',
    "千と千尋の神隠し 🎬 (2001)",
    "Amélie (Le Fabuleux destin d'Amélie Poulain) (2001)",
    "‹recommendation_list›",
)


@functools.cache
def bytes_tokenizer() -> Any:
    """One token per byte, and an end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: position for position, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")


@functools.cache
def tiny(tokenizer: Any) -> Any:
    """A random model whose next token depends much on all before it; fewer heads for keys than for queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=GROUPED).to(torch.float32).eval()
