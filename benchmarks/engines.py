"""Which engine explores fastest on this machine: the same explorations replayed through each, side by side in one run.

The scripted explorer explores for some users, in the tokens of the language model. Then every engine goes the same way:
for each call it continues its own context greedily by as many tokens as the script wrote, whatever they are, and reads
the list that the script got. So prompts and the moments of waiting are the same, and what an engine keeps between turns
counts; they end earlier where the model ends its text, and llama.cpp's tokens are pieces that its server
sends. Engines: `transformers` and `openvino` (the policies of these kinds), and `llama.cpp` (policy.kind =
"openai" before llama.cpp's own server in this process) with the asset's 4-bit weights and with 16-bit ones.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeprec import assets
from deeprec.config import Config, PolicyConfig, load_config
from deeprec.data.sources import load_dataset
from deeprec.explore.explorer import Explorer
from deeprec.explore.policy import Finish, Policy, Request
from deeprec.explore.trace import Author, Trace
from deeprec.policies.openai import OpenAIPolicy
from deeprec.policies.openvino import OpenVinoPolicy
from deeprec.policies.openvino_model import in_16_bit
from deeprec.policies.scripted import ScriptedWriter
from deeprec.policies.text import TextPolicy
from deeprec.policies.tokenizer import TokenizerCodec
from deeprec.policies.transformers import TransformersPolicy
from deeprec.retrieval.baselines import TransitionRetriever
from deeprec.runs import environment

MODEL = "smollm2-135m-instruct"


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
            "openvino": lambda: (
                OpenVinoPolicy.load(PolicyConfig(kind="openvino", adapter="none"), rows=max(args.at_once)),
                None,
            ),
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
