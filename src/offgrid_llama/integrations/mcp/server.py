"""An MCP server on an Engine: a model of this machine as tools of other programs.

    python -m offgrid_llama.integrations.mcp.server MODEL [--http PORT]

It serves over stdio, or at an address of this machine. All clients share one engine.
"""

# Annotations are not put off in this module: the package reads those of tools as they are.

import argparse
import asyncio
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from offgrid_llama.engine.engine import Engine
from offgrid_llama.sampling.grammar.grammar import Grammar

try:
    from mcp.server.fastmcp import FastMCP as MCPServer
except ImportError:  # its name since mcp 2
    from mcp.server import MCPServer

__all__ = ["server_of"]

MAX_TOKENS = 512

_Question = Annotated[str, Field(description="What the model is asked.")]
_System = Annotated[str, Field(description="What the model is told before.")]


def server_of(engine: Engine, name: str = "offgrid-llama") -> Any:
    """Return a server of the package ``mcp`` with the tools "ask" and "choose" on an engine: for ``run()``, or as an app.

    A call that its client cancels cancels its request.

    Args:
        engine: answers.
        name: of the server.
    """
    server = MCPServer(name, instructions=f"Asks {engine.model.path.stem}, a language model that runs on this machine.")

    @server.tool()  # type: ignore[untyped-decorator]  # the package is not there for mypy
    async def ask(
        question: _Question,
        system: _System = "",
        max_tokens: Annotated[int, Field(ge=1, description="The most tokens of the answer.")] = MAX_TOKENS,
        schema: Annotated[dict[str, Any] | None, Field(description="A JSON Schema that the answer is held to.")] = None,
    ) -> str:
        """Ask the model, and return its answer."""
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}} if schema else None
        return await _answer(engine, question, system, max_tokens=max_tokens, response_format=wanted)

    @server.tool()  # type: ignore[untyped-decorator]
    async def choose(
        question: _Question,
        choices: Annotated[list[str], Field(min_length=1, description="The possible answers.")],
        system: _System = "",
    ) -> str:
        """Ask the model, and return the one of the choices that it takes."""
        return await _answer(engine, question, system, grammar=Grammar.choices(choices), temperature=0)

    return server


async def _answer(engine: Engine, question: str, system: str, **options: Any) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    with await asyncio.to_thread(partial(engine.chat, messages, **options)) as completion:
        await completion
        return completion.content


def main() -> None:
    """Serve a model until the client goes, or until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m offgrid_llama.integrations.mcp.server", description=__doc__)
    parser.add_argument("model", help="the name or path of a model")
    parser.add_argument("--http", type=int, metavar="PORT", help="serve at http://127.0.0.1:PORT/mcp instead of stdio")
    arguments = parser.parse_args()
    with Engine(arguments.model) as engine:
        server = server_of(engine)
        if arguments.http is None:
            server.run()
            return
        import uvicorn

        uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=arguments.http, log_level="warning")


if __name__ == "__main__":
    main()
