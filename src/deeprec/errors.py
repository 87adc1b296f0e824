"""The one exception that users see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DeepRecError(Exception):
    """A fault that the user can mend.

    The message is one clear sentence: what is wrong, where, and how to mend it. The command line prints it
    without a traceback and exits with status 2.
    """


def one_line(error: Exception) -> str:
    """The message of another library's error on one line, to quote in a sentence."""
    return " ".join(str(error).split())


def reason(error: Mapping[str, Any]) -> str:
    """The sentence of one of pydantic's errors, without its full stop."""
    return str(error["msg"]).removeprefix("Value error, ")
