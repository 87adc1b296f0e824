"""Requests with their limits, and answers: the JSON of the API and of the tools."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from deeprec.explore.policy import Usage

MAX_HISTORY = 500  # items of a history
MAX_CHARACTERS = 500  # characters of a title, an id or a preference
MAX_NAMES = 100  # categories or brands of a filter
MAX_IDS = 10_000  # ids of a filter

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories: control, format, surrogate, private, line and paragraph separator. Characters without a category
may be emoji that are newer than Python's Unicode."""
_JOINERS = "\u200c\u200d"  # format characters that belong to the spelling of words, and to emoji
_RENAMED = {"trust": "preference_weight", "own": "by_policy"}  # old names of fields, each with the name of today
_FILMS: list[JsonValue] = ["Toy Story (1995)", "Fargo (1996)"]  # of MovieLens, for the examples of the OpenAPI document
_RECOMMEND_EXAMPLES: list[JsonValue] = [
    {"history": _FILMS, "k": 5},
    {"user": "1", "max_calls": 2},
    {"user": "1", "filter": {"categories": ["Comedy"], "years": [1990, 1999]}},
    {"history": _FILMS, "calls": [{"preference": "Horror; 1970s"}], "stream": True},
]
_QUERIES: JsonValue = [{"history": _FILMS, "preference": "Horror; 1970s"}, {"history": []}]


def check_visible(text: str) -> str:
    """The text itself; ValueError for one with control or invisible characters."""
    if any(unicodedata.category(each) in _INVISIBLE and each not in _JOINERS for each in text):
        raise ValueError("it holds a control character or an invisible one")
    return text


def _check_untagged(text: str) -> str:
    if "<" in text or ">" in text:
        raise ValueError("it holds < or >, which are reserved for the protocol's tags")
    return text


Plain = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(check_visible)]
Untagged = Annotated[Plain, AfterValidator(_check_untagged)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
"""An item's id or, where no item has this id, its title. An id may hold any character; a title is checked later."""
ListSize = Annotated[int, Field(ge=1, le=100, strict=True)]
History = Annotated[tuple[Name, ...], Field(max_length=MAX_HISTORY, description="titles or ids of items, oldest first")]
User = Annotated[Name | None, Field(description="a user of the data, in place of a history")]
Weight = Annotated[
    float | None,
    Field(ge=0, le=1, strict=True, description="how strongly a preference moves the ranking; 0 ignores it"),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_renamed_field(cls, data: Any) -> Any:
        for old, new in _RENAMED.items():
            if new in cls.model_fields and isinstance(data, dict) and old in data:
                raise ValueError(f"the field {old!r} is now called {new!r}")
        return data


class ForcedCall(_Request):
    """A tool call that the client gives, as if the policy had written it."""

    preference: Untagged
    thought: Untagged = ""
    by_policy: bool = Field(
        False, strict=True, description="the policy made it earlier, so it keeps the policy's preference weight"
    )

    @model_validator(mode="after")
    def _check_preference(self) -> ForcedCall:
        if not (self.preference or self.by_policy):
            raise ValueError("a call needs a preference")
        return self


Year = Annotated[int, Field(ge=0, le=9999, strict=True)]
Names = Annotated[tuple[Name, ...], Field(max_length=MAX_NAMES)]


class Filter(_Request):
    """Which items may come back: those that pass every part that is given."""

    categories: Annotated[Names, Field(description="an item needs one of them")] = ()
    brands: Annotated[Names, Field(description="an item needs one of them")] = ()
    years: tuple[Year, Year] | None = Field(None, description="first and last year; an item needs a year")
    ids: tuple[Name, ...] | None = Field(
        None, min_length=1, max_length=MAX_IDS, description="the only items that may come back, by id or title"
    )


Filtered = Annotated[Filter | None, Field(description="which items may come back; default: all")]


class RecommendRequest(_Request):
    """An exploration for a new user's history, or for a user of the data."""

    model_config = ConfigDict(json_schema_extra={"examples": _RECOMMEND_EXAMPLES})

    history: History = ()
    user: User = None
    k: ListSize = 10
    policy: Name | None = Field(None, description="one of those that /ready names; default: the first")
    max_calls: int | None = Field(None, ge=1, le=20, strict=True, description="budget of calls; at most the server's")
    preference_weight: Weight = None
    filter: Filtered = None
    calls: tuple[ForcedCall, ...] = Field((), max_length=20, description="first calls, before the policy continues")
    stream: bool = Field(False, strict=True, description="answer with server-sent events: text, turn, ranking")

    @model_validator(mode="after")
    def _check_user_and_calls(self) -> RecommendRequest:
        if bool(self.history) == (self.user is not None):
            raise ValueError("give a history or a user, and not both")
        if self.max_calls is not None and len(self.calls) > self.max_calls:
            raise ValueError("there are more calls than max_calls allows")
        return self


class RetrieveQuery(_Request):
    """A query to the TRM."""

    history: History = ()
    preference: Plain = ""
    exclude: tuple[Name, ...] = Field((), max_length=MAX_HISTORY, description="further items to leave out")
    preference_weight: Weight = None
    filter: Filtered = None


class RetrieveRequest(_Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": _QUERIES, "k": 5}]})

    queries: tuple[RetrieveQuery, ...] = Field(min_length=1, max_length=64)
    k: ListSize = 10


class Item(BaseModel):
    id: str
    title: str
    categories: tuple[str, ...]


class ItemDetails(Item):
    year: int | None
    brand: str
    description: str


class ScoredItem(Item):
    """A retrieved item with the TRM's score."""

    score: float


class RankedItem(Item):
    """An item of the ranking, with the number (from 1) and the preference of the call that found it first.

    Both are null for an item that no call found.
    """

    call: int | None
    preference: str | None


class Turn(BaseModel):
    """A tool call and the items that it found. `by_policy`: the policy made it, now or in an earlier exploration."""

    call: int
    by_policy: bool
    thought: str
    preference: str
    items: tuple[ScoredItem, ...]


class Ranking(BaseModel):
    """The end of an exploration.

    `origin` says where the ranking comes from; "answer" means the policy alone. `stop` says why the exploration
    ended, `faults` what was wrong with it, and `error` why the policy failed, if it did. `usage` holds the tokens
    that a policy's server counted.
    """

    items: tuple[RankedItem, ...]
    origin: str
    stop: str
    faults: tuple[str, ...]
    error: str | None
    thought: str
    tokens: int
    usage: Usage | None
    seconds: float


class RecommendResponse(BaseModel):
    policy: str
    turns: tuple[Turn, ...]
    ranking: Ranking


class RetrieveResponse(BaseModel):
    results: tuple[tuple[ScoredItem, ...], ...]


class ItemList(BaseModel):
    items: tuple[Item, ...]


class ScoredItemList(BaseModel):
    items: tuple[ScoredItem, ...]


class FilterChoices(BaseModel):
    """What a filter may name: the most frequent categories and brands, and the first and last year, if any."""

    categories: tuple[str, ...]
    brands: tuple[str, ...]
    years: Annotated[tuple[int, ...], Field(min_length=2, max_length=2)] | None


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Projection(BaseModel):
    """All items in two dimensions, in the unit square."""

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    points: tuple[Point, ...]


class Problem(BaseModel):
    """Why a request was refused or failed, in a sentence."""

    detail: str
