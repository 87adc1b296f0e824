"""A trained TRM for newer data: items are added, and training goes on from its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from deeprec.config import TRMConfig
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Dataset
from deeprec.errors import DeepRecError
from deeprec.trm.training import Epoch
from deeprec.trm.trm import IDS, TRM, Start

_SHAPE = ("width", "layers", "history", "text_encoder")  # keys of the configuration that the saved weights fix


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update did.

    Attributes:
        known: items that the old TRM knew and the new data have.
        kept: items that the old TRM knew and the new data lack; they can still be recommended.
        learned: new items with interactions.
        by_text: new items that the data set lacks, because nobody or too few chose them; known by their text alone.
        ndcg_before, ndcg_after: validation NDCG@10 on the new data, with the old weights and with the new ones.
    """

    known: int
    kept: int
    learned: int
    by_text: int
    ndcg_before: float
    ndcg_after: float


def update_trm(
    trm: TRM,
    dataset: Dataset,
    items: Catalog | None = None,
    config: TRMConfig | None = None,
    *,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> tuple[TRM, Changes]:
    """A new TRM that goes on from the weights of `trm`, which stays as it is.

    Its catalogue has the items of `dataset` first, then the others that `trm` knew, then the others of `items`. Item
    co-occurrence is counted in `dataset`; items that it lacks keep their earlier one. If training makes validation no
    better, the old weights stay. Figures of an updated TRM are no evaluation: the old one may have learned what is a
    target now.

    Args:
        dataset: the interactions as they are now, earlier ones included.
        items: items that nobody has chosen yet, as `load_items` gives them; known ones are skipped.
        config: of the training; default: that of `trm`. DeepRecError if the saved weights don't fit it.
        checkpoint, on_epoch: as in `TRM.fit`.
    """
    config = config or trm.config
    for key in _SHAPE:
        if (now := getattr(config, key)) != (before := getattr(trm.config, key)):
            raise DeepRecError(f"trm.{key}={now} does not fit the saved TRM, which has {before}: train a new one.")
    catalogs = [dataset.catalog, trm.catalog, *([items] if items else [])]
    frame = pl.concat([each.to_frame() for each in catalogs], how="vertical_relaxed")
    catalog = Catalog.from_frame(frame.unique("id", keep="first", maintain_order=True))
    updated = TRM.fit(
        dataset, config, trm.encoder, start=start_from(trm, catalog), checkpoint=checkpoint, on_epoch=on_epoch
    )
    old, used = {*trm.catalog.ids}, {*dataset.catalog.ids}
    quality = [epoch.ndcg for epoch in updated.curve]
    by_text = len(catalog) - len(old | used)
    return updated, Changes(len(used & old), len(old - used), len(used - old), by_text, quality[0], max(quality))


@torch.inference_mode()
def start_from(trm: TRM, catalog: Catalog) -> Start:
    """The weights and the co-occurrence of a TRM in a catalogue that has all of its items. The ids of other items begin
    as zeros, so that their text alone counts."""
    positions_I = np.array([catalog.index(item) for item in trm.catalog.ids], dtype=np.int64)
    # A saved TRM has no ids: they are what its item vectors have beside the text.
    own_ID = torch.from_numpy(np.array(trm.index.vectors_ID))
    own_ID -= trm.model.text(torch.from_numpy(trm.encoder.encode(trm.catalog.texts())))
    ids_ID = torch.zeros(len(catalog), trm.index.width)
    ids_ID[positions_I] = own_ID
    weights = {name: ids_ID if name == IDS else tensor for name, tensor in trm.model.state_dict().items()}
    return Start(catalog, weights, trm.cooccurrence.moved(positions_I, len(catalog)))
