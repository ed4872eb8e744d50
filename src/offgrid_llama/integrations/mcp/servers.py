"""Tools of MCP servers for a Chat, over stdio and HTTP, by the package ``mcp``, from the file that other clients use.

All servers of a file are connected on an event loop in a thread of its own. So their tools are plain functions, for
``Chat.run`` and ``Chat.run_async`` alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama.chat.tools.tool import Tool
from offgrid_llama.errors import ToolError

from .sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Self

    from offgrid_llama.engine.engine import Engine

__all__ = ["Allow", "MCPServers"]

Allow = Callable[[str, str, Mapping[str, Any]], bool]
"""A function of (server, tool, arguments) that says whether a tool may be called."""

TIMEOUT_SECONDS = 60.0
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_NAME = 128


class MCPServers:
    """Servers of tools. Use it in a ``with`` block, or call ``close()``.

    Args:
        servers: the file, or what it holds: ``{"mcpServers": {NAME: SERVER}}``, where a SERVER has a "command", with "args",
            "env" and "cwd", or a "url", with "headers"; its "type" may be "sse" for the older kind of HTTP.
        allow: asked before the first call of each tool, in the thread of the call; where it returns False the tool is not
            called, and the model is told so. None allows all. A server's first use of ``engine`` is asked for,
            too: the tool is "sampling/createMessage", and the arguments are what the server wants.
        engine: answers what servers ask of a model (sampling); None refuses that.
        timeout: the most seconds for a connection, and for a call.

    Raises ToolError for a server that cannot be reached, with its name; ValueError for another file than described; OSError
    for one that cannot be read; ImportError without the package ``mcp``.

    Attributes:
        tools: a Tool for each of the servers' tools, by its own name, or as SERVER__NAME where several servers have that.
    """

    def __init__(
        self,
        servers: str | os.PathLike[str] | Mapping[str, Any],
        *,
        allow: Allow | None = None,
        engine: Engine | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        _package()
        self._servers = _read(servers)
        self._allow = allow
        self._engine = engine
        self._allowed: set[tuple[str, str]] = set()
        self._timeout = timeout
        self._sessions: dict[str, Any] = {}
        self._found: list[tuple[str, dict[str, Any]]] = []
        self._connecting = ""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._errors: list[ToolError] = []
        self._thread = threading.Thread(target=self._run, name="MCP servers", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._errors:
            self._thread.join()
            raise self._errors[0]
        self.tools: list[Tool] = self._made()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections, and the processes of servers that were started."""
        with suppress(RuntimeError):  # it is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # The thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            first = _first(error)
            told = str(first) or type(first).__name__
            self._errors.append(ToolError(f"the MCP server {self._connecting} cannot be reached: {told}"))
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        """Connect, and keep the connections until the end."""
        async with AsyncExitStack() as stack:
            for name, server in self._servers.items():
                self._connecting = name
                with _within(self._timeout):
                    self._sessions[name] = session = await _connected(stack, server, self._sampling(name))
                    self._found += [(name, tool) async for tool in _listed(session)]
            self._ready.set()
            await self._stop.wait()

    def _sampling(self, server: str) -> Sampling | None:
        return None if self._engine is None else Sampling(server, self._engine, self._allow)

    # Tools ------------------------------------------------------------------------------------------------------------

    def _made(self) -> list[Tool]:
        times = Counter(tool["name"] for _, tool in self._found)
        made = []
        for server, tool in self._found:
            name = tool["name"] if times[tool["name"]] == 1 else f"{server}__{tool['name']}"
            made.append(
                Tool(
                    _NOT_IN_NAMES.sub("_", name)[:_MAX_NAME],
                    tool.get("description") or tool.get("title") or "",
                    tool.get("inputSchema") or {"type": "object", "properties": {}},
                    partial(self._called, server, tool["name"]),
                )
            )
        return made

    def _called(self, server: str, tool: str, /, **arguments: Any) -> str:
        """Call a tool, and return the text of its result."""
        if self._allow is not None and (server, tool) not in self._allowed:
            if not self._allow(server, tool, arguments):
                raise ToolError(f"the user has not allowed a call of {tool}")
            self._allowed.add((server, tool))
        call = self._sessions[server].call_tool(tool, arguments)
        try:
            running = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError as error:
            call.close()
            raise ToolError(f"the MCP server {server} is closed") from error
        try:
            result = running.result(self._timeout)
        except TimeoutError as error:
            running.cancel()
            raise ToolError(f"{tool} has not answered within {self._timeout:.0f} seconds") from error
        except BaseException:
            running.cancel()  # Ctrl-C
            raise
        found = result.model_dump(by_alias=True, mode="json")
        text = "\n".join(map(_text, found.get("content") or ()))
        if found.get("isError"):
            raise ToolError(text or f"{tool} has failed")
        return text or json.dumps(found.get("structuredContent") or {}, ensure_ascii=False)


def _package() -> Any:
    try:
        import mcp
    except ImportError as error:
        raise ImportError("MCP servers take a package: pip install 'offgrid-llama[mcp]'") from error
    return mcp


def _read(servers: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the servers of a file by name. Raises ValueError for what is none."""
    said: Any = servers
    if isinstance(servers, (str, os.PathLike)):
        try:
            said = json.loads(Path(servers).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(servers)} is not JSON: {error}") from error
    named = said.get("mcpServers", said) if isinstance(said, Mapping) else None
    if not isinstance(named, Mapping) or not named:
        raise ValueError('servers must be {"mcpServers": {NAME: {"command": ...} or {"url": ...}}}')
    for name, server in named.items():
        if not isinstance(server, Mapping) or not {"command", "url"} & server.keys():
            raise ValueError(f'servers: {name} must have a "command" or a "url"')
    return {str(name): dict(server) for name, server in named.items() if not server.get("disabled")}


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in this task after ``seconds``. What is entered meanwhile may go on after the block."""
    task, is_over = asyncio.current_task(), []

    def end() -> None:
        is_over.append(True)
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except asyncio.CancelledError:
        if not is_over:
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None
    finally:
        timer.cancel()


async def _connected(stack: AsyncExitStack, server: Mapping[str, Any], sampling: Sampling | None) -> Any:
    """Return a session with a server, which ends with the stack."""
    from mcp import ClientSession, StdioServerParameters, stdio_client

    if "command" in server:
        known = ("command", "args", "env", "cwd")
        transport = stdio_client(StdioServerParameters(**{key: server[key] for key in known if key in server}))
    elif server.get("type") == "sse":
        from mcp.client.sse import sse_client

        transport = sse_client(server["url"], headers=dict(server.get("headers") or {}))
    else:
        transport = await _http(stack, server["url"], dict(server.get("headers") or {}))
    streams = await stack.enter_async_context(transport)
    session = await stack.enter_async_context(ClientSession(streams[0], streams[1], sampling_callback=sampling))
    await session.initialize()
    return session


async def _http(stack: AsyncExitStack, url: str, headers: dict[str, str]) -> Any:
    """Return the transport of streamable HTTP, which takes headers by itself in earlier versions of the package."""
    from mcp.client import streamable_http

    earlier = getattr(streamable_http, "streamablehttp_client", None)
    if earlier is not None:
        return earlier(url, headers=headers)
    from mcp.shared._httpx_utils import create_mcp_http_client

    client = await stack.enter_async_context(create_mcp_http_client(headers=headers))
    return streamable_http.streamable_http_client(url, http_client=client)


async def _listed(session: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the tools of a server, page by page."""
    cursor = None
    while True:
        page = (await session.list_tools(**({} if cursor is None else {"cursor": cursor}))).model_dump(by_alias=True)
        for tool in page["tools"]:
            yield tool
        cursor = page.get("nextCursor")
        if not cursor:
            return


def _text(part: Mapping[str, Any]) -> str:
    """Return a part of a result as text: of a picture or a sound its kind, in brackets."""
    if part.get("type") == "text":
        return str(part["text"])
    resource = part.get("resource") or part
    if "text" in resource:
        return str(resource["text"])
    return f"[{part.get('type')} {resource.get('uri') or resource.get('mimeType') or ''}".rstrip() + "]"


def _first(error: BaseException) -> BaseException:
    """Return an error, of a group the first one."""
    inner: Sequence[BaseException] = getattr(error, "exceptions", ())
    return _first(inner[0]) if inner else error
