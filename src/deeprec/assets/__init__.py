"""Named weights and data sets: where each comes from, its checksums, and the cache that keeps it."""

from deeprec.assets.cache import AssetStatus as AssetStatus
from deeprec.assets.cache import cache_folder as cache_folder
from deeprec.assets.cache import fetch as fetch
from deeprec.assets.cache import locate as locate
from deeprec.assets.cache import statuses as statuses
from deeprec.assets.cache import verify as verify
from deeprec.assets.downloads import sha256_of as sha256_of
from deeprec.assets.table import ASSETS as ASSETS
from deeprec.assets.table import SMOLLM2_GGUF as SMOLLM2_GGUF
from deeprec.assets.table import Asset as Asset
