"""Options that all commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deeprec.errors import DeepRecError

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.cli.console import ConsoleProgress
    from deeprec.config import Config
    from deeprec.data.dataset import Dataset
    from deeprec.evaluation.models import Models
    from deeprec.trm.trm import TRM

User = Annotated[str | None, typer.Option("--user", help="A user of the data; default: one of the test users.")]
SavedTRM = Annotated[
    Path | None, typer.Option("--trm", help="Folder of a saved TRM; default: that of the configuration, trained first.")
]
Items = Annotated[list[str] | None, typer.Option("--item", help="Title or id in a new user's history, oldest first.")]


@dataclass
class Options:
    """What the shared options say."""

    file: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file, as in `deeprec runs show`.")] = None
    overrides: Annotated[list[str] | None, typer.Option("--set", "-s", help="Override, as in trm.width=128.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration or plan, and stop.")] = False
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache only, never the network.")] = False
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")] = Path("runs")

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The configuration, with more overrides before the user's own; a dry run prints it and ends the program."""
        from deeprec.config import dump_config

        config = self.parse(overrides)
        if self.dry_run:
            print(dump_config(config), end="")
            raise typer.Exit
        return config

    def parse(self, overrides: Sequence[str] = ()) -> Config:
        from deeprec.config import load_config

        return load_config(self.file, [*overrides, *(self.overrides or [])])

    def dataset(self, config: Config) -> Dataset:
        from deeprec.data.sources import load_dataset

        return load_dataset(config.data, offline=self.offline)

    def trm(
        self, dataset: Dataset, config: Config, saved: Path | None = None, *, again: bool = False
    ) -> tuple[TRM, Path]:
        """The TRM, saved or trained first where no finished run exists or `again`, and the folder of its run."""
        from deeprec.trm.run import load_or_train_trm

        if saved is not None:
            from deeprec.trm.trm import TRM

            trm = TRM.load(saved, offline=self.offline)
            if trm.catalog.ids[: len(dataset.catalog)] != dataset.catalog.ids:
                how = f"deeprec trm update {saved} --data {config.data.source}"
                raise DeepRecError(f"{saved} is a TRM of other items than {config.data.source} has now: {how}.")
            return trm, saved
        return load_or_train_trm(dataset, config, self.runs, again=again, offline=self.offline, progress=self.progress)

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        return Console()

    @cached_property
    def progress(self) -> ConsoleProgress:
        from deeprec.cli.console import ConsoleProgress

        return ConsoleProgress(self.console)

    @cached_property
    def models(self) -> Models:
        from deeprec.evaluation.models import Models

        return Models(self.runs, offline=self.offline, progress=self.progress)

    def say(self, text: str) -> None:
        """A line of plain text, not wrapped: paths and commands stay whole."""
        self.progress.message(text)


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command. The fields of a parameter that is a dataclass, as `Options`, become options,
    after the function's own."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        asked = inspect.signature(function, eval_str=True).parameters
        groups: dict[str, Any] = {
            name: each.annotation for name, each in asked.items() if is_dataclass(each.annotation)
        }
        fields = {name: inspect.signature(kind, eval_str=True).parameters for name, kind in groups.items()}
        own = [each for name, each in asked.items() if name not in groups]
        shared = [each for name in reversed(groups) for each in fields[name].values()]

        def run(**given: Any) -> None:
            from deeprec.assets import downloads
            from deeprec.cli.console import download_bar

            downloads.progress = download_bar
            options = {name: kind(**{key: given.pop(key) for key in fields[name]}) for name, kind in groups.items()}
            function(**options, **given)

        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(name, help=function.__doc__)(run)
        return function

    return register
