"""MCP: the tools of servers for a Chat, and a model as a server."""

from .servers import Allow, MCPServers

__all__ = ["Allow", "MCPServers"]
