"""The TRM of a configuration from its run folder: loaded, resumed, trained, or updated to newer data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deeprec.config import Config
from deeprec.data.catalog import Catalog
from deeprec.data.dataset import Dataset
from deeprec.data.report import repeats_note
from deeprec.runs import Run, matching_runs
from deeprec.runs.progress import SILENT, Progress
from deeprec.trm.text_encoder import TextEncoder, coincidence_notes
from deeprec.trm.training import Epoch
from deeprec.trm.trm import FORMAT_VERSION, TRM
from deeprec.trm.update import Changes, update_trm


def trm_origin(dataset: Dataset) -> dict[str, Any]:
    """What decides a TRM besides the configuration, as the manifest of its run records it."""
    origin = {"dataset": dataset.fingerprint, "text": dataset.text_digest, "format_version": FORMAT_VERSION}
    return origin if dataset.exclude_history else origin | {"exclude_history": False}


def load_or_train_trm(
    dataset: Dataset,
    config: Config,
    runs: Path,
    *,
    again: bool = False,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[TRM, Path]:
    """The TRM of `config.data` and `config.trm`, and the folder of its run, one of those in `runs`.

    `again` trains even if a finished run exists. DeepRecError if training fails or the encoder can't be fetched.
    """
    origin, texts = trm_origin(dataset), dataset.catalog.texts()
    known = None if again else next(matching_runs(runs, "trm", config, ("data", "trm"), origin), None)
    if known and known.manifest["status"] == "finished":
        trm = TRM.load(known.path / "trm", offline=offline)
        for note in trm.notes:
            progress.message(note)
        return trm, known.path
    with progress.phase("load the text encoder"):
        encoder = TextEncoder.load(source=config.trm.text_encoder, offline=offline)
    with progress.phase("encode the items' text", len(texts), unit="item texts encoded") as advance:
        vectors_IE = encoder.encode(texts, advance)
        advance(len(texts), len(texts))  # the encoder counts equal texts once
    for note in coincidence_notes(texts, vectors_IE):  # before the training, which may be better broken off
        progress.message(note)
    run = known or Run.create(runs, None, config, sys.argv, kind="trm", fingerprint=dataset.fingerprint)
    if known is None:
        run.record(**origin)
    progress.message(f"{'Resuming' if known else 'Training'} the TRM in {run.path} (Ctrl-C is safe)")
    with run, _epochs(run, dataset, config, progress) as on_epoch:
        trm = TRM.fit(dataset, config.trm, encoder, checkpoint=run.checkpoints / "last.safetensors", on_epoch=on_epoch)
        _save(trm, run, progress)
    return trm, run.path


def load_or_update_trm(
    folder: Path,
    dataset: Dataset,
    items: Catalog,
    config: Config,
    runs: Path,
    *,
    offline: bool = False,
    progress: Progress = SILENT,
) -> tuple[TRM, Changes, Path]:
    """The saved TRM in `folder`, updated to newer data in a run of its own (see `update_trm`); the old one stays.

    An unfinished update of the same TRM with the same data is resumed. `config.trm` has what the user set for the
    training; the rest is as the saved TRM was trained.
    """
    with progress.phase("load the TRM"):
        trm = TRM.load(folder, offline=offline)
    own = config.trm.model_dump(exclude_unset=True)
    config = config.model_copy(update={"trm": trm.config.model_copy(update=own)})
    origin = trm_origin(dataset) | {"updates": trm.digest, "items": items.digest}
    known = next(matching_runs(runs, "trm-update", config, ("data", "trm"), origin), None)
    run = known or Run.create(runs, None, config, sys.argv, kind="trm-update", fingerprint=dataset.fingerprint)
    run.record(**origin, folder=str(folder))
    progress.message(f"Updating the TRM in {run.path}; {folder} stays as it is (Ctrl-C is safe)")
    with run, _epochs(run, dataset, config, progress) as on_epoch:
        checkpoint = run.checkpoints / "last.safetensors"
        updated, changes = update_trm(trm, dataset, items, config.trm, checkpoint=checkpoint, on_epoch=on_epoch)
        _save(updated, run, progress)
        run.record(changes=asdict(changes))
    return updated, changes, run.path


@contextmanager
def _epochs(run: Run, dataset: Dataset, config: Config, progress: Progress) -> Iterator[Callable[[Epoch], None]]:
    """Takes each epoch, for the run and for the reader."""
    if not dataset.exclude_history:
        of = len(dataset.repeated_targets("validation")), len(dataset.targets("validation"))
        progress.message(repeats_note(*of, "validation", exclude_history=False) + ".")
    with progress.phase("train the TRM", config.trm.epochs, unit="epoch") as advance:

        def on_epoch(epoch: Epoch) -> None:
            run.append_metrics(epoch.epoch, {"loss": epoch.loss, "validation NDCG@10": epoch.ndcg})
            advance(epoch.epoch, text=f"epoch, loss {epoch.loss:.3f}, validation NDCG@10 {epoch.ndcg:.4f}")

        yield on_epoch


def _save(trm: TRM, run: Run, progress: Progress) -> None:
    trm.save(run.path / "trm")
    run.record(preference_weight=trm.preference_weight)
    best = max(trm.curve, key=lambda epoch: epoch.ndcg)
    progress.message(
        f"TRM: best validation NDCG@10 {best.ndcg:.4f} in epoch {best.epoch} of {trm.curve[-1].epoch}, "
        f"{sum(epoch.seconds for epoch in trm.curve):.0f} s of training; preference weight {trm.preference_weight}"
    )
