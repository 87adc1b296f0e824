"""Which engine explores fastest on this machine: the same explorations replayed through each, side by side in one run.

The scripted explorer explores for some users, in the tokens of the language model. Then every engine goes the same way:
for each call it continues its own context greedily by as many tokens as the script wrote, whatever they are, and reads
the list that the script got. So prompts and the moments of waiting are the same, and what an engine keeps between turns
counts; `transformers` and `llama.cpp` end earlier where the model ends its text, and llama.cpp's tokens are pieces that
its server sends. Engines: `transformers` (policy.kind = "transformers"), `llama.cpp` (policy.kind = "openai" before
llama.cpp's own server in this process) with the asset's 4-bit weights and with 16-bit ones, and `openvino`, OpenVINO
GenAI with prefix caching, 16-bit (pip install openvino-genai), which takes a whole batch at a time.

    python benchmarks/engines.py [--users 16] [--at-once 1 16] [--rounds 2] [--engines transformers llama.cpp-4 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from deeprec import assets
from deeprec.config import Config, PolicyConfig, load_config
from deeprec.data.sources import load_dataset
from deeprec.explore.explorer import Explorer
from deeprec.explore.trace import Author, Trace
from deeprec.policies.openai import OpenAIPolicy
from deeprec.policies.policy import Chunk, Finish, Policy, Request
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import SegmentPolicy, TextPolicy
from deeprec.policies.tokens import TokenizerCodec
from deeprec.policies.transformers import TransformersPolicy
from deeprec.runs import environment
from deeprec.trm.retriever import TransitionRetriever

MODEL = "smollm2-135m-instruct"


class OpenVino(SegmentPolicy):
    """All open segments in one call of OpenVINO GenAI."""

    def __init__(self, weights: Path, codec: TokenizerCodec) -> None:
        import openvino_genai

        super().__init__(codec)
        settings = openvino_genai.SchedulerConfig()
        settings.enable_prefix_caching, settings.max_num_batched_tokens, settings.cache_size = True, 2048, 2
        self.pipeline = openvino_genai.LLMPipeline(str(weights), "CPU", scheduler_config=settings)
        self.config = openvino_genai.GenerationConfig(ignore_eos=True, apply_chat_template=False)

    def _write(self, requests: Sequence[Request]) -> list[Chunk]:
        self.config.max_new_tokens = max(request.max_new_tokens for request in requests)
        texts = self.pipeline.generate([self.decode(request.context) for request in requests], self.config).texts
        pairs = zip(requests, map(self.encode, texts), strict=True)
        return [Chunk(each.key, tuple(tokens[: each.max_new_tokens]), (), Finish.LENGTH) for each, tokens in pairs]


@dataclass
class Way:
    """An exploration to be gone again: texts to read, and lengths to write after each."""

    key: str
    texts: list[str]
    lengths: list[int]
    context: list[int] = field(default_factory=list)
    turn: int = 0


def ways(users: int, codec: TokenizerCodec, config: Config) -> list[Callable[[], Way]]:
    dataset = load_dataset(config.data)
    retriever = TransitionRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    script = TextPolicy(ScriptedWriter(config.explore.answer_size), codec)
    traces = Explorer(script, retriever, dataset.catalog, config.explore).run(dataset.tasks("test")[:users])

    def way(trace: Trace) -> Callable[[], Way]:
        texts = [segment.text for segment in trace.segments if segment.author is Author.ENVIRONMENT]
        lengths = [len(segment.tokens) for segment in trace.segments if segment.author is Author.POLICY]
        return lambda: Way(trace.task, texts, lengths)

    return [way(trace) for trace in traces]


def replay(policy: Policy, waiting: list[Way], at_once: int) -> tuple[int, float]:
    """Tokens written, and seconds."""
    started, written, under_way = time.perf_counter(), 0, dict[str, Way]()
    waiting = waiting[::-1]
    while waiting or under_way:
        while waiting and len(under_way) < at_once:
            way = waiting.pop()
            under_way[way.key] = way
            _go_on(policy, way)
        for chunk in policy.step():
            way = under_way[chunk.key]
            way.context += chunk.tokens
            written += len(chunk.tokens)
            if chunk.finish is Finish.FAILED:
                raise RuntimeError(chunk.error)
            if chunk.finish is not None:
                way.turn += 1
                if way.turn < len(way.lengths):
                    _go_on(policy, way)
                else:
                    policy.release([way.key])
                    del under_way[way.key]
    return written, time.perf_counter() - started


def _go_on(policy: Policy, way: Way) -> None:
    way.context += policy.encode(way.texts[way.turn], first=way.turn == 0)
    policy.submit([Request(way.key, tuple(way.context), (), way.lengths[way.turn])])


def in_16_bit(source: Path, target: Path) -> Path:
    """The weights of a GGUF file, unquantised."""
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


def llama(weights: Path, slots: int, threads: int) -> tuple[Policy, Any]:
    """The policy, and its server, which lives as long as it is held."""
    import xllamacpp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.verbosity = str(weights), {"m"}, -1
    params.port, params.n_parallel, params.n_ctx = port, slots, 2048 * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    url = f"{server.listening_address}/v1"
    return OpenAIPolicy.load(PolicyConfig(kind="openai", url=url, model="m", timeout=600)), server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engines", nargs="+", default=["transformers", "llama.cpp-4", "llama.cpp-16", "openvino"])
    parser.add_argument("--config", type=Path, default=Path("configs/cpu.toml"))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    config = load_config(args.config)
    ours = TransformersPolicy.load(PolicyConfig(model=MODEL, adapter="none"))
    (small,) = assets.fetch(MODEL).glob("*.gguf")
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        large = in_16_bit(small, Path(folder) / "f16.gguf")
        gone = ways(args.users, ours, config)
        engines: dict[str, Callable[[], tuple[Policy, Any]]] = {
            "transformers": lambda: (ours, None),
            "llama.cpp-4": lambda: llama(small, max(args.at_once), args.threads),
            "llama.cpp-16": lambda: llama(large, max(args.at_once), args.threads),
            "openvino": lambda: (OpenVino(large, ours), None),
        }
        for _ in range(args.rounds):
            for name in args.engines:
                policy, server = engines[name]()
                replay(policy, [gone[0]()], 1)  # warm
                for at_once in args.at_once:
                    users = gone[: max(2, args.users // 4)] if at_once == 1 else gone
                    tokens, seconds = replay(policy, [way() for way in users], at_once)
                    found[f"{name}, {at_once} at once"].append(tokens / seconds)
                    print(
                        f"{name}, {at_once} at once: {tokens} tokens, {tokens / seconds:.1f} a second", file=sys.stderr
                    )
                del policy, server
    turns = statistics.fmean(len(way().lengths) for way in gone)
    report = {name: {"tokens a second": [round(each, 1) for each in rates]} for name, rates in found.items()}
    print(
        json.dumps({"environment": environment(sys.argv), "turns": turns, "threads": args.threads} | report, indent=1)
    )


if __name__ == "__main__":
    main()
