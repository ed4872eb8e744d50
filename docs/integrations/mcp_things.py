"""A small MCP server for with_mcp.py: over stdio, or over HTTP at a port.

python docs/integrations/mcp_things.py [PORT]
"""

from __future__ import annotations

import sys
from typing import Literal

import uvicorn

try:
    from mcp.server.fastmcp import FastMCP as Server
except ImportError:  # its name since mcp 2
    from mcp.server import MCPServer as Server

server = Server("things")


@server.tool()  # type: ignore[untyped-decorator]  # of another environment
def temperature(city: Literal["Bern", "Oslo"]) -> str:
    """Return the temperature in a city."""
    return {"Bern": "18 degrees", "Oslo": "4 degrees"}[city]


@server.tool()  # type: ignore[untyped-decorator]  # of another environment
def fail() -> str:
    """Fail."""
    raise RuntimeError("out of order")


def main() -> None:
    """Serve until the client goes."""
    if len(sys.argv) == 1:
        server.run()
    else:
        uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
