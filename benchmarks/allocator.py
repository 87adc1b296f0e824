"""What the C library's memory allocator costs a training on a processor: learning beside the same with tcmalloc.

Two processes of one thread each learn side by side from explorations of 700 to 1,200 random tokens, of which 200 to 340
are scored, as a stage does: SmolLM2-135M with an adapter of rank 8, forward, backward, no optimiser. One of them has
tcmalloc in LD_PRELOAD (Debian: apt install libtcmalloc-minimal4). The heap ages as it goes, so the last rows count.

    python benchmarks/allocator.py [--explorations 60] [--library /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft.helpers import disable_input_dtype_casting

from deeprec.config import PolicyConfig
from deeprec.policies.transformers import TransformersPolicy
from deeprec.runs import environment
from deeprec.training.trainer import adapted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--explorations", type=int, default=60)
    parser.add_argument("--library", type=Path, default=Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"))
    parser.add_argument("--learn", action="store_true", help="be one of the two processes")
    args = parser.parse_args()
    if args.learn:
        print(json.dumps(learn(args.explorations)))
        return
    if not args.library.is_file():
        raise SystemExit(f"There is no {args.library}: name tcmalloc's file in --library.")
    command = [sys.executable, __file__, "--learn", "--explorations", str(args.explorations)]
    with_it = os.environ | {"LD_PRELOAD": str(args.library)}
    running = [subprocess.Popen(command, env=each, stdout=subprocess.PIPE) for each in (dict(os.environ), with_it)]
    outputs = [json.loads(process.communicate()[0]) for process in running]
    for name, found in zip(("C library", "tcmalloc"), outputs, strict=True):
        tenths = ", ".join(f"{each:.2f}" for each in found["milliseconds a token"])
        print(f"{name}: {tenths} ms a token, tenth after tenth; {found['memory']:.1f} GB at the end")
    ours, theirs = (sum(found["milliseconds a token"][5:]) for found in outputs)
    print(f"second half, C library to tcmalloc: {ours / theirs:.2f}")
    print(environment(sys.argv))


def learn(explorations: int) -> dict[str, object]:
    torch.set_num_threads(1)
    policy = TransformersPolicy.load(PolicyConfig(adapter="none"))
    model = adapted(policy.model, rank=8).train()
    rng = random.Random(0)
    torch.manual_seed(0)
    spent = []
    for _ in range(explorations):
        tokens, own = rng.randint(700, 1200), rng.randint(200, 340)
        ids_1T = torch.randint(0, model.config.vocab_size, (1, tokens))
        positions_N = torch.arange(tokens - own - 1, tokens - 1)
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16), disable_input_dtype_casting(model):
            output = model(input_ids=ids_1T, logits_to_keep=positions_N, use_cache=False)
        logprobs_1NV = output.logits.float().log_softmax(-1)
        (-logprobs_1NV.gather(-1, ids_1T[:, positions_N + 1, None]).mean()).backward()
        spent.append((time.perf_counter() - started) * 1000 / tokens)
    tenth = max(1, explorations // 10)
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    tenths = [sum(spent[first : first + tenth]) / tenth for first in range(0, tenth * 10, tenth)]
    return {"milliseconds a token": tenths, "memory": memory}


if __name__ == "__main__":
    main()
