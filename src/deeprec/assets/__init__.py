"""Named weights and data sets: where each comes from, its checksums, and the cache that keeps it."""

from deeprec.assets.cache import AssetStatus, cache_folder, fetch, locate, statuses, verify
from deeprec.assets.downloads import sha256_of
from deeprec.assets.table import ASSETS, SMOLLM2_GGUF, Asset

__all__ = [
    "ASSETS",
    "SMOLLM2_GGUF",
    "Asset",
    "AssetStatus",
    "cache_folder",
    "fetch",
    "locate",
    "sha256_of",
    "statuses",
    "verify",
]
