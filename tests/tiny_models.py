"""Tokenizers and models that need no download and no time, and titles that are hard to constrain to."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789:千尋神隠犬猫茶手机壳ต้มยำกุง"


def write_text_encoder(
    folder: Path, *, pooling: str | None = "mean", max_tokens: int = 12, prompt: str = "", seed: int = 0
) -> Path:
    """A random BERT that reads `LETTERS` one by one, in the sentence-transformers layout as repositories publish it;
    without `pooling` the model and its tokenizer alone. `pooling` is mean, cls or lasttoken.
    """
    vocabulary = {token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(LETTERS)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).eval().save_pretrained(folder)
    if pooling is None:
        return folder
    kind = "sentence_transformers.models"
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"{kind}.{name}"} for n, (path, name) in enumerate(parts)
    ]
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    pooled = {f"pooling_mode_{mode}": name == pooling for name, mode in modes.items()}
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": 32, **pooled}),
        ("sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False}),
        ("config_sentence_transformers.json", {"prompts": {"query": prompt}} if prompt else {}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder
