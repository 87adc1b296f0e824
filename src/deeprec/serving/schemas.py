"""What goes over the wire: requests with their limits, and answers."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from deeprec.explore.explorer import ForcedSegment
from deeprec.explore.policy import Usage
from deeprec.explore.protocol import call_text

HISTORY = 500
"""Items of a history, at most."""
BATCH = 64
"""Queries of one `/retrieve`, at most."""
K = 100
"""Items of a ranking, at most."""
WORDS = 500
"""Characters of a title or a preference, at most."""


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is no letter, sign or space: control, format, half characters, breaks of lines."""


def _plain(text: str) -> str:
    if any(unicodedata.category(character) in _UNSEEN for character in text):
        raise ValueError("it holds a control character or an invisible one")
    return text


def _untagged(text: str) -> str:
    if "<" in text or ">" in text:
        raise ValueError("it holds < or >, of which the protocol's tags are made")
    return text


Plain = Annotated[str, Field(max_length=WORDS), AfterValidator(_plain)]
Name = Annotated[Plain, Field(min_length=1)]
"""An item's id or, where no item has this id, its title."""
Places = Annotated[int, Field(ge=1, le=K, strict=True)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_FILMS = ["Toy Story (1995)", "Fargo (1996)"]


def _examples(*bodies: dict[str, Any]) -> ConfigDict:
    """For the document; of MovieLens, as all examples."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class Call(_Schema):
    """A tool call that is given and not written by the policy."""

    preference: Annotated[Plain, AfterValidator(_untagged)]
    thought: Annotated[Plain, AfterValidator(_untagged)] = ""
    by_policy: bool = Field(
        False, strict=True, description="the policy made it in an exploration before, and is believed no more than then"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Call:
        if not (self.preference or self.by_policy):
            raise ValueError("a call needs a preference")
        return self


class Recommend(_Schema):
    """An exploration for a new user's history, or for a user of the data."""

    model_config = _examples(
        {"history": _FILMS, "k": 5},
        {"user": "1", "max_calls": 2},
        {"history": _FILMS, "calls": [{"preference": "Horror; 1970s"}], "stream": True},
    )

    history: tuple[Name, ...] = Field((), max_length=HISTORY, description="titles or ids, oldest first")
    user: Name | None = Field(None, description="a user of the data, in place of a history")
    k: Places = 10
    policy: Name | None = Field(None, description="one of those that /ready names; default: the first")
    max_calls: int | None = Field(
        None, ge=1, le=20, strict=True, description="budget of tool calls; at most the server's"
    )
    preference_weight: float | None = Field(
        None, ge=0, le=1, strict=True, description="how far preferences are believed"
    )
    calls: tuple[Call, ...] = Field((), max_length=20, description="first calls to make, before the policy goes on")
    stream: bool = Field(False, strict=True, description="answer with server-sent events: text, turn, ranking")

    def forced_prefix(self) -> list[ForcedSegment]:
        """The first calls as a policy would have written them."""
        return [ForcedSegment(call_text(call.thought, call.preference), call.by_policy) for call in self.calls]

    @model_validator(mode="after")
    def _one_user(self) -> Recommend:
        if bool(self.history) == (self.user is not None):
            raise ValueError("give a history or a user, and not both")
        if self.max_calls is not None and len(self.calls) > self.max_calls:
            raise ValueError("there are more calls than max_calls allows")
        return self


class RetrieveQuery(_Schema):
    """A question to the TRM."""

    history: tuple[Name, ...] = Field((), max_length=HISTORY, description="titles or ids, oldest first")
    preference: Plain = ""
    exclude: tuple[Name, ...] = Field((), max_length=HISTORY, description="beside the history")
    preference_weight: float | None = Field(None, ge=0, le=1, strict=True)


class Retrieve(_Schema):
    model_config = _examples({"queries": [{"history": _FILMS, "preference": "Horror; 1970s"}, {"history": []}], "k": 5})

    queries: tuple[RetrieveQuery, ...] = Field(min_length=1, max_length=BATCH)
    k: Places = 10


class Item(BaseModel):
    id: str
    title: str
    categories: tuple[str, ...]


class Found(Item):
    """An item that came back, with the TRM's score."""

    score: float


class Ranked(Item):
    """An item of the ranking: by which call it was found (from 1) and for what; null where no call found it."""

    call: int | None
    preference: str | None


class TurnSchema(BaseModel):
    """A tool call and what it brought; `own`: the policy made it, now or in an exploration before."""

    call: int
    by_policy: bool
    thought: str
    preference: str
    items: tuple[Found, ...]


class Ranking(BaseModel):
    """The end of an exploration.

    `origin` says where the ranking comes from; "answer" alone is wholly the policy's. `stop` and `faults` say how the
    exploration ended and what was wrong with it, `error` why the policy failed, where it did; `usage` is what a policy
    behind a server read and wrote.
    """

    items: tuple[Ranked, ...]
    origin: str
    stop: str
    faults: tuple[str, ...]
    error: str | None
    thought: str
    tokens: int
    usage: Usage | None
    seconds: float


class Recommended(BaseModel):
    policy: str
    turns: tuple[TurnSchema, ...]
    ranking: Ranking


class Retrieved(BaseModel):
    results: tuple[tuple[Found, ...], ...]


class Items(BaseModel):
    items: tuple[Item, ...]


class FoundItems(BaseModel):
    items: tuple[Found, ...]


class Details(Item):
    """All that the catalogue says of an item."""

    year: int | None
    brand: str
    description: str


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Projection(BaseModel):
    """Items on a plane; places lie in the unit square."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    points: tuple[Point, ...]


class Problem(BaseModel):
    """Why a request was refused or failed, in a sentence."""

    detail: str
