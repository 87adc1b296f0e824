"""The Model Context Protocol: the recommender and the explorer as tools of any agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from deeprec import __version__
from deeprec.data.catalog import ItemId
from deeprec.errors import DeepRecError
from deeprec.retrieval.retriever import Query
from deeprec.serving import schemas
from deeprec.serving.exploration import Exploration
from deeprec.serving.schemas import HISTORY, Name, Places, Plain
from deeprec.serving.service import Service

History = Annotated[list[Name], Field(max_length=HISTORY, description="titles or ids of items, oldest first")]
User = Annotated[Name | None, Field(description="a user of the data, in place of a history")]
T = TypeVar("T")

_ABOUT = (
    "A preference-aware recommender over one catalogue. Ask retrieve_items with what to look for, in phrases parted by "
    "semicolons, as often as it helps, excluding what you have seen; or let explore do all of it."
)

_EXPLORE = "Let the server's own language model explore for a user, and rank what it found."


def create_mcp(service: Service) -> MCPServer:
    """The protocol's server of a service, for any transport."""
    server: MCPServer = MCPServer("deeprec", instructions=_ABOUT, version=__version__, log_level="WARNING")

    @server.tool()
    async def retrieve_items(
        preference: Annotated[Plain, Field(description='what to look for, as in "Comedy; 1990s"')] = "",
        history: History = [],  # noqa: B006 (never changed, and the schema shows it)
        user: User = None,
        k: Places = 10,
        exclude: Annotated[list[Name], Field(max_length=HISTORY, description="items not to return")] = [],  # noqa: B006
    ) -> schemas.FoundItems:
        """Items for a history and a preference, the best first; those of the history are left out."""

        def read() -> Query:
            asked = schemas.RetrieveQuery(history=tuple(history), preference=preference, exclude=tuple(exclude))
            return service.query(asked, user)

        query = await run_in_threadpool(_told, read)
        (hits,) = await _told(lambda: service.batcher.ask([query], k))
        return schemas.FoundItems(items=service.found(hits))

    @server.tool()
    async def search_titles(
        query: Annotated[str, Field(min_length=1, max_length=200)], limit: Annotated[int, Field(ge=1, le=50)] = 10
    ) -> schemas.Items:
        """Items by title; letters may be wrong or missing."""
        return schemas.Items(items=tuple(await run_in_threadpool(service.search, query, limit)))

    @server.tool(description=f"{_EXPLORE} Policies: {', '.join(service.policies())}.")
    async def explore(
        context: Context,
        history: History = [],  # noqa: B006
        user: User = None,
        k: Places = 10,
        policy: Annotated[Name | None, Field(description="who explores; default: the first")] = None,
        max_calls: Annotated[int | None, Field(ge=1, le=20)] = None,
    ) -> schemas.Recommended:
        def begin() -> Exploration:
            asked = schemas.Recommend(history=tuple(history), user=user, k=k, policy=policy, max_calls=max_calls)
            return Exploration(service, asked)

        exploration = await run_in_threadpool(_told, begin)
        _told(exploration.begin)
        # Clients of the protocol before 2026 do not say that they leave: their connection does.
        return await exploration.whole(context.request_context.request)

    @server.resource("item://{item}", mime_type="application/json")
    def details(item: str) -> schemas.Details:
        """An item's title, categories, brand and description."""
        try:
            return service.details(ItemId(item))
        except DeepRecError as error:
            raise ResourceNotFoundError(str(error)) from None

    return server


def _told(ask: Callable[[], T]) -> T:
    """What goes wrong through the caller's fault is said to it in the same sentence as everywhere."""
    try:
        return ask()
    except ValidationError as error:
        raise ToolError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    except DeepRecError as error:
        raise ToolError(str(error)) from None
