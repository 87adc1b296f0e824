"""RecBole's SASRec.

RecBole reads an atomic file of the training sequences, where item i is the token str(i), and a list of all items, so
that its vocabulary is the whole catalogue. Its own splits and evaluation are not used: every training interaction is
a training row, and validation and test are asked through `full_sort_predict`.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer import Data, Ints, Job, Ragged, TrainingLog, ndcg, padded, rankings
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

NAME = "export"


class Timed:
    """A loader that ends at the budget: RecBole's epochs have no hook between two batches."""

    def __init__(self, loader: Any, log: TrainingLog) -> None:
        self.loader, self.log, self.done = loader, log, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.done = 0
        for batch in self.loader:
            yield batch
            self.done += 1
            if self.log.over():
                return


class Peer:
    """RecBole's SASRec on one data set, from the arrays to a scorer."""

    def __init__(self, data: Data, settings: dict[str, Any], seed: int, folder: Path) -> None:
        write_atomic(data.train, data.n_items, folder)
        self.data, self.length = data, settings["history"]
        own = {name: value for name, value in settings.items() if name not in ("history", "validate_every", "dropout")}
        config = {
            **own,
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": settings["dropout"],
            "MAX_ITEM_LIST_LENGTH": settings["history"],
            "data_path": str(folder),
            "checkpoint_dir": str(folder),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
            "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "TO", "group_by": "none", "mode": "full"},
            "train_neg_sample_args": None,  # the loss is over all items
            "loss_type": "CE",
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
        }
        self.config = Config(model="SASRec", dataset=NAME, config_dict=config)
        init_seed(seed, reproducibility=True)
        logging.getLogger().setLevel(logging.WARNING)
        dataset = create_dataset(self.config)
        self.loader = data_preparation(self.config, dataset)[0]
        self.model = SASRec(self.config, self.loader.dataset)
        self.trainer = Trainer(self.config, self.model)
        tokens_I = dataset.field2token_id["item_id"]
        self.rows_I = np.array([tokens_I[str(item)] for item in range(data.n_items)])

    def scorer(self, histories: Sequence[Ints]) -> NDArray[np.floating]:
        rows_BT = padded([self.rows_I[history] for history in histories], self.length, left=False)
        lengths_B = torch.tensor([min(len(history), self.length) for history in histories])
        batch = Interaction({"item_id_list": torch.from_numpy(rows_BT), "item_length": lengths_B})
        with torch.inference_mode():
            return self.model.full_sort_predict(batch).numpy()[:, self.rows_I]

    def fit(self, log: TrainingLog, every: int) -> None:
        """RecBole's training epochs until the log says stop; the best validation's weights are loaded."""
        loader = Timed(self.loader, log)
        for epoch in range(100_000):
            log.epoch_begins()
            self.trainer._train_epoch(loader, epoch)
            log.epoch_ends(loader.done / len(loader))
            if log.over() or (epoch + 1) % every == 0:
                self.model.eval()
                if log.validate(lambda: ndcg(self.scorer, self.data.validation), self.state):
                    break
        self.model.load_state_dict(log.best)
        self.model.eval()

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def write_atomic(sequences: Ragged, n_items: int, folder: Path) -> None:
    """RecBole's atomic files; the time is the position in the sequence."""
    (folder / NAME).mkdir()
    columns = (sequences.users(), sequences.items_N, sequences.positions())
    with open(folder / NAME / f"{NAME}.inter", "w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        file.writelines(f"{user}\t{item}\t{position}\n" for user, item, position in zip(*columns, strict=True))
    with open(folder / NAME / f"{NAME}.item", "w", encoding="utf-8") as file:
        file.write("item_id:token\n")
        file.writelines(f"{item}\n" for item in range(n_items))


def main() -> None:
    job = Job.parse()
    sys.argv = sys.argv[:1]  # RecBole would read this program's options as its own
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job.threads)
    data, log = Data.load(job.data, job.last), job.log()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # RecBole writes logs where it stands
        peer = Peer(data, job.settings, job.seed, Path(folder))
        peer.fit(log, job.settings["validate_every"])
    record = log.record(len(data.train.items_N) - len(data.train))
    packages = ("recbole", "numpy", "pandas", "scipy", "torch")
    job.finish(rankings(peer.scorer, data.test.histories), packages, record)


if __name__ == "__main__":
    main()
