"""The Model Context Protocol: the recommender and the explorer as tools of any agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote, unquote

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.server.mcpserver.resources.templates import ResourceSecurity
from pydantic import BeforeValidator, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from deeprec import __version__
from deeprec.data.catalog import ItemId
from deeprec.errors import DeepRecError, reason
from deeprec.serving import schemas
from deeprec.serving.exploration import Exploration
from deeprec.serving.schemas import MAX_CHARACTERS, MAX_HISTORY, Filtered, History, ListSize, Name, Plain
from deeprec.serving.service import Service

_INSTRUCTIONS = (
    "A preference-aware recommender over one catalogue. Call retrieve_items with a preference in phrases separated by "
    "semicolons, as often as it helps, and exclude what you have seen; titles and names in it lead. Or let explore do "
    "all of it."
)


User = Annotated[
    str,
    BeforeValidator(lambda user: "" if user is None else user),
    Field(max_length=MAX_CHARACTERS, description="a user of the data, in place of a history"),
]
"""Empty for nobody. It is a text alone: the package reads an optional text such as `null` or `[1]` as JSON first."""


class _Server(MCPServer):
    async def read_resource(self, uri: Any, context: Any = None) -> Any:
        """Ids may hold what separates the parts of an address, and agents may not have encoded it."""
        scheme, _, item = str(uri).partition("://")
        return await super().read_resource(f"{scheme}://{quote(unquote(item), safe='')}", context)


def create_mcp(service: Service) -> MCPServer:
    """The protocol's server of a service, for any transport."""
    server = _Server("deeprec", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING")

    rest = ", without those of the history" if service.exclude_history else ""

    @server.tool(description=f"Items for a history and a preference, best first{rest}.")
    async def retrieve_items(
        preference: Annotated[Plain, Field(description='what to look for, as in "Comedy; 1990s"')] = "",
        history: History = (),
        user: User = "",
        k: ListSize = 10,
        exclude: Annotated[tuple[Name, ...], Field(max_length=MAX_HISTORY, description="items to leave out")] = (),
        filter: Filtered = None,
    ) -> schemas.ScoredItemList:
        with _tool_errors():
            body = schemas.RetrieveQuery(history=history, preference=preference, exclude=exclude, filter=filter)
            query = await run_in_threadpool(service.query, body, user or None)
            (hits,) = await service.batcher.retrieve([query], k)
        return schemas.ScoredItemList(items=service.scored(hits))

    @server.tool()
    async def search_titles(
        query: Annotated[str, Field(min_length=1, max_length=200)], limit: Annotated[int, Field(ge=1, le=50)] = 10
    ) -> schemas.ItemList:
        """Items by title; letters may be wrong or missing."""
        return schemas.ItemList(items=await run_in_threadpool(service.search, query, limit))

    what = "Let the server's own language model explore for a user and rank what it found."

    @server.tool(description=f"{what} Policies: {', '.join(service.policies())}.")
    async def explore(
        context: Context,
        history: History = (),
        user: User = "",
        k: ListSize = 10,
        policy: Annotated[Name | None, Field(description="who explores; default: the first")] = None,
        max_calls: Annotated[int | None, Field(ge=1, le=20)] = None,
        filter: Filtered = None,
    ) -> schemas.RecommendResponse:
        with _tool_errors():
            body = schemas.RecommendRequest(
                history=history, user=user or None, k=k, policy=policy, max_calls=max_calls, filter=filter
            )
            exploration = await run_in_threadpool(Exploration, service, body)
            exploration.begin()
        # Clients of the protocol before 2026 do not say that they leave: their connection does.
        return await exploration.result(context.request_context.request)

    # An id is a key and never a path: one that looks like a path is let through.
    @server.resource("item://{item}", mime_type="application/json", security=ResourceSecurity(exempt_params={"item"}))
    def details(item: str) -> schemas.ItemDetails:
        """An item's title, year, categories, brand and description."""
        try:
            return service.details(ItemId(item))
        except DeepRecError as error:
            raise ResourceNotFoundError(str(error)) from None

    return server


@contextmanager
def _tool_errors() -> Iterator[None]:
    """A mistake of the caller becomes the tool's answer, in the same sentence as over HTTP."""
    try:
        yield
    except ValidationError as error:
        raise ToolError(reason(error.errors()[0])) from None
    except DeepRecError as error:
        raise ToolError(str(error)) from None
