"""Options that all commands share."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deeprec.cli.console import ConsoleProgress
    from deeprec.config import Config

User = Annotated[str | None, typer.Option("--user", help="A user of the data; default: one of the test users.")]
Items = Annotated[list[str] | None, typer.Option("--item", help="Title or id in a new user's history, oldest first.")]


@dataclass
class Options:
    """What the shared options say."""

    file: Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see `deeprec runs show` for one.")]
    overrides: Annotated[list[str] | None, typer.Option("--set", "-s", help="Override, as in --set trm.width=128.")]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration or plan, and stop.")]
    offline: Annotated[bool, typer.Option("--offline", help="Use the cache only, never the network.")]
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]

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

    @cached_property
    def console(self) -> Console:
        from rich.console import Console

        return Console()

    @cached_property
    def progress(self) -> ConsoleProgress:
        from deeprec.cli.console import ConsoleProgress

        return ConsoleProgress(self.console)

    def say(self, text: str) -> None:
        """A line of plain text, not wrapped: paths and commands stay whole."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


_DEFAULTS = {"file": None, "overrides": None, "dry_run": False, "offline": False, "runs": Path("runs")}


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of `Options` and of its own parameters as a command that has the shared options too."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function, include_extras=True)
        shared = typing.get_type_hints(
            Options, localns={"Path": Path, "typer": typer, "Annotated": Annotated}, include_extras=True
        )
        keyword = inspect.Parameter.KEYWORD_ONLY

        @functools.wraps(function)
        def run(**given: Any) -> None:
            from deeprec.assets import downloads
            from deeprec.cli.console import download_bar

            downloads.progress = download_bar
            options = Options(**{key: given.pop(key) for key in _DEFAULTS})
            function(options, **given)

        signature = [parameter.replace(kind=keyword, annotation=hints[parameter.name]) for parameter in own]
        signature += [
            inspect.Parameter(key, keyword, default=default, annotation=shared[key])
            for key, default in _DEFAULTS.items()
        ]
        run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
        del run.__wrapped__  # typer would read the annotations of what is wrapped
        app.command(name)(run)
        return function

    return register
