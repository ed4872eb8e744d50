"""A small MCP server for with_mcp.py: over stdio, or over HTTP at a port.

python docs/integrations/mcp_things.py [PORT]
"""

from __future__ import annotations

import sys
from typing import Literal

import uvicorn

try:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as Server
    from mcp.types import SamplingMessage, TextContent
except ImportError:  # their places since mcp 2
    from mcp.server import MCPServer as Server
    from mcp.server.mcpserver import Context
    from mcp_types import SamplingMessage, TextContent

server = Server("things")


@server.tool()  # type: ignore[untyped-decorator]  # of another environment
def temperature(city: Literal["Bern", "Oslo"]) -> str:
    """Return the temperature in a city."""
    return {"Bern": "18 degrees", "Oslo": "4 degrees"}[city]


@server.tool()  # type: ignore[untyped-decorator]  # of another environment
def fail() -> str:
    """Fail."""
    raise RuntimeError("out of order")


@server.tool()  # type: ignore[untyped-decorator]
async def summary(text: str, ctx: Context) -> str:
    """Summarize a text, by the model of the client."""
    said = SamplingMessage(role="user", content=TextContent(type="text", text=f"Summarize: {text}"))
    found = await ctx.session.create_message([said], max_tokens=30, system_prompt="Be short.", temperature=0)
    return str(found.content.text)


def main() -> None:
    """Serve until the client goes."""
    if len(sys.argv) == 1:
        server.run()
    else:
        uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
