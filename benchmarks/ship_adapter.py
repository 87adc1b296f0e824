"""Put a training's adapter into the package, in bfloat16: half the size, and the precision it explores in.

    python benchmarks/ship_adapter.py RUN/recommendation [--preference-weight 0.1]

The training's configuration is kept beside it, without the adapter that it continued from. The model card, README.md in
the same folder, is written by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from deeprec.config import dump_config, load_config
from deeprec.policies.adapters import SHIPPED, write_prompt_defaults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument(
        "--preference-weight", type=float, help="to explore with; default: the calibrated one of the catalogue's TRM"
    )
    args = parser.parse_args()
    settings = json.loads((args.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    folder = SHIPPED / settings["base_model_name_or_path"]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.adapter / "adapter_config.json", folder)
    config = load_config(args.adapter.parent / "config.toml")
    train = config.train.model_copy(update={"adapter": None})  # its path means nothing elsewhere
    (folder / "training.toml").write_text(dump_config(config.model_copy(update={"train": train})), encoding="utf-8")
    write_prompt_defaults(folder, config.explore.model_copy(update={"preference_weight": args.preference_weight}))
    weights = load_file(args.adapter / "adapter_model.safetensors")
    small = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(small, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
