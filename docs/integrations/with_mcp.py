"""Tools of MCP servers in a Chat, in process and on the command line: over stdio and over HTTP, with consent, and errors.

python docs/integrations/with_mcp.py [IGNORED]
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import offgrid_llama as og
from offgrid_llama.errors import ToolError
from offgrid_llama.integrations.mcp import MCPServers
from offgrid_llama.integrations.mcp.sampling import SAMPLING

MODEL = "smollm2-135m-instruct"
THINGS = str(Path(__file__).with_name("mcp_things.py"))


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Wait until something listens on a port."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")


def check(servers: dict[str, Any]) -> None:
    """Use the tools of the same server over stdio and over HTTP."""
    asked: list[str] = []

    def allow(server: str, tool: str, arguments: Mapping[str, Any]) -> bool:
        asked.append(f"{server}: {tool} {'' if tool == SAMPLING else json.dumps(arguments)}")
        return server != "refused"

    with (
        og.Engine(MODEL, n_ctx=4096, n_seq_max=1) as engine,
        MCPServers(servers, allow=allow, engine=engine) as connected,
    ):
        tools = {tool.name: tool for tool in connected.tools}
        kinds = ("fail", "summary", "temperature")
        assert sorted(tools) == sorted(f"{name}__{kind}" for name in servers["mcpServers"] for kind in kinds)
        for name in ("near", "far"):
            assert result(tools[f"{name}__temperature"], city="Oslo") == "4 degrees"
            assert result(tools[f"{name}__temperature"], city="Bern") == "18 degrees"
        assert result(tools["far__fail"]).startswith("error: ")
        assert result(tools["refused__fail"]) == "error: the user has not allowed a call of fail"
        oslo = 'temperature {"city": "Oslo"}'
        assert asked == [f"near: {oslo}", f"far: {oslo}", "far: fail {}", "refused: fail {}"]
        for _ in range(2):  # the server asks our model; we are asked once whether it may
            summed = result(tools["far__summary"], text="It rains in Oslo, and will rain tomorrow.")
            assert summed
            assert not summed.startswith("error")
        assert asked[4:] == ['far: summary {"text": "It rains in Oslo, and will rain tomorrow."}', f"far: {SAMPLING} "]
        print("a server has asked the model:", summed)
        chat = og.Chat(engine, tools=[tools["near__temperature"]], temperature=0, max_tokens=100)
        reply = chat.run("How warm is it in Oslo?", tool_choice="required", parallel_tool_calls=False, max_turns=2)
        (told,) = [message["content"] for message in chat.messages if message["role"] == "tool"]
        assert told in ("4 degrees", "18 degrees")
        print(f"the tool said {told}, the model: {reply.content}")
    assert result(tools["near__temperature"], city="Oslo") == "error: the MCP server near is closed"


def check_own_server(url: str) -> None:
    """Use a model as a server of tools, over stdio and over HTTP."""
    command = {"command": sys.executable, "args": ["-m", "offgrid_llama.integrations.mcp.server", MODEL]}
    with MCPServers({"mcpServers": {"stdio": command, "http": {"url": url}}}) as connected:
        tools = {tool.name: tool for tool in connected.tools}
        assert sorted(tools) == ["http__ask", "http__choose", "stdio__ask", "stdio__choose"]
        for name in ("stdio", "http"):
            chosen = result(tools[f"{name}__choose"], question="Is snow white?", choices=["yes", "no"])
            assert chosen in ("yes", "no")
            assert result(tools[f"{name}__ask"], question="What is 2+2?", max_tokens=20)
            shape = {"type": "object", "properties": {"age": {"enum": [24, 25]}}, "required": ["age"]}
            read = json.loads(result(tools[f"{name}__ask"], question="Jason is 25.", schema=shape, max_tokens=60))
            assert read["age"] in (24, 25)
        assert result(tools["http__choose"], question="Yes?", choices=[]).startswith("error: ")
        print("our own server:", chosen, read)


def result(tool: og.Tool, **arguments: Any) -> str:
    """Return what a tool gives, or its error."""
    assert tool.function is not None
    try:
        return str(tool.function(**arguments))
    except ToolError as error:
        return f"error: {error}"


def main() -> None:
    """Start the server for HTTP, and use it."""
    port = free_port()
    near = {"command": sys.executable, "args": [THINGS]}
    far = {"url": f"http://127.0.0.1:{port}/mcp"}
    own = [sys.executable, "-m", "offgrid_llama.integrations.mcp.server", MODEL, "--http", str(own_port := free_port())]
    with subprocess.Popen(own) as server:
        try:
            wait_for(own_port)
            check_own_server(f"http://127.0.0.1:{own_port}/mcp")
        finally:
            server.terminate()
    with subprocess.Popen([sys.executable, THINGS, str(port)]) as server, tempfile.TemporaryDirectory() as folder:
        try:
            wait_for(port)
            check({"mcpServers": {"near": near, "far": far, "refused": near}})
            file = Path(folder) / "mcp.json"
            file.write_text(json.dumps({"mcpServers": {"near": near}}), encoding="utf-8")
            command = [
                sys.executable,
                "-m",
                "offgrid_llama.cli",
                "chat",
                "--model",
                MODEL,
                "--mcp",
                str(file),
                "--allow-tools",
            ]
            options = ["--temperature", "0", "--max-tokens", "40"]
            done = subprocess.run(
                [*command, *options], input="What is 2+2?\n", capture_output=True, text=True, timeout=240, check=True
            )
            assert done.stdout.strip()
            print("on the command line:", done.stdout.strip())
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
