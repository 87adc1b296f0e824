"""Which engine explores fastest on this machine: the same explorations replayed through each, side by side in one run.

The scripted explorer explores for some users, in the tokens of the language model. Then every engine replays them: for
each call it continues its context greedily by as many tokens as the script wrote, whatever they are, and reads the list
that the script got. So prompts and waiting times are the same, and what an engine keeps between turns counts. A segment
is shorter if the model ends its text; llama.cpp's tokens are the pieces that its server sends. Engines: `transformers`
and `openvino` (the policies of these kinds), and `llama.cpp` (policy.kind = "openai" with llama.cpp's server in this
process) with the asset's 4-bit weights and with 16-bit ones.

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
class Replay:
    """An exploration to repeat: texts to read, and lengths to write after each."""

    key: str
    texts: list[str]
    lengths: list[int]
    context: list[int] = field(default_factory=list)
    turn: int = 0


def replays(users: int, codec: TokenizerCodec, config: Config) -> list[Callable[[], Replay]]:
    dataset = load_dataset(config.data)
    retriever = TransitionRetriever.fit(dataset.train_sequences(), len(dataset.catalog))
    script = TextPolicy(ScriptedWriter(), codec)
    traces = Explorer(script, retriever, dataset.catalog, config.explore).run(dataset.tasks("test")[:users])

    def replay_of(trace: Trace) -> Callable[[], Replay]:
        texts = [segment.text for segment in trace.segments if segment.author is Author.ENVIRONMENT]
        lengths = [len(segment.tokens) for segment in trace.segments if segment.author is Author.POLICY]
        return lambda: Replay(trace.task, texts, lengths)

    return [replay_of(trace) for trace in traces]


def replay(policy: Policy, waiting: list[Replay], at_once: int) -> tuple[int, float]:
    """Tokens written, and seconds."""
    started, written, in_flight = time.perf_counter(), 0, dict[str, Replay]()
    waiting = waiting[::-1]
    while waiting or in_flight:
        while waiting and len(in_flight) < at_once:
            exploration = waiting.pop()
            in_flight[exploration.key] = exploration
            _continue(policy, exploration)
        for chunk in policy.step():
            exploration = in_flight[chunk.key]
            exploration.context += chunk.tokens
            written += len(chunk.tokens)
            if chunk.finish is Finish.FAILED:
                raise RuntimeError(chunk.error)
            if chunk.finish is not None:
                exploration.turn += 1
                if exploration.turn < len(exploration.lengths):
                    _continue(policy, exploration)
                else:
                    policy.release([exploration.key])
                    del in_flight[exploration.key]
    return written, time.perf_counter() - started


def _continue(policy: Policy, exploration: Replay) -> None:
    exploration.context += policy.encode(exploration.texts[exploration.turn], first=exploration.turn == 0)
    policy.submit([Request(exploration.key, tuple(exploration.context), (), exploration.lengths[exploration.turn])])


def llama(weights: Path, slots: int, threads: int) -> tuple[Policy, Any]:
    """The policy, and its server, which lives as long as the object."""
    import xllamacpp
    from openai import AsyncOpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.exploration, params.model_alias, params.verbosity = str(weights), {"m"}, -1
    params.port, params.n_parallel, params.n_ctx = port, slots, 2048 * slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    url = f"{server.listening_address}/v1"
    return OpenAIPolicy(AsyncOpenAI(base_url=url, api_key="none", timeout=600), "m"), server


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
        explorations = replays(args.users, ours, config)
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
                replay(policy, [explorations[0]()], 1)  # warm
                for at_once in args.at_once:
                    users = explorations[: max(2, args.users // 4)] if at_once == 1 else explorations
                    tokens, seconds = replay(policy, [make() for make in users], at_once)
                    found[f"{name}, {at_once} at once"].append(tokens / seconds)
                    print(
                        f"{name}, {at_once} at once: {tokens} tokens, {tokens / seconds:.1f} a second", file=sys.stderr
                    )
                del policy, server
    turns = statistics.fmean(len(make().lengths) for make in explorations)
    report = {name: {"tokens a second": [round(each, 1) for each in rates]} for name, rates in found.items()}
    print(
        json.dumps({"environment": environment(sys.argv), "turns": turns, "threads": args.threads} | report, indent=1)
    )


if __name__ == "__main__":
    main()
