"""``offgrid-llama chat``: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store
from offgrid_llama.errors import ContextLengthError, OffgridLlamaError

from . import output
from .exits import INTERRUPTED
from .options import (
    GpuLayers,
    ModelName,
    Seed,
    SystemMessage,
    Temperature,
    Threads,
    Verbose,
    decode,
    gpu_layers,
    to_file,
)

if TYPE_CHECKING:
    from offgrid_llama.chat.tools.tool import Tool, ToolCall
    from offgrid_llama.engine import Chat, ChatCompletion, Engine
    from offgrid_llama.engine.chat_options import TurnArguments
    from offgrid_llama.integrations.mcp import MCPServers

__all__ = ["chat"]

MAX_TURNS = 8
"""Answers to a message: the last one cannot call a tool any more."""
DEFAULT_N_CTX = 8192
"""Positions of a context without ``--n-ctx``: enough for a long talk, and of most models not all that they allow."""


def chat(
    model: ModelName = store.DEFAULT_MODEL,
    system: SystemMessage = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, help="End an answer after this number of tokens.")
    ] = 2048,
    temperature: Temperature = 0.8,
    seed: Seed = None,
    reasoning_budget: Annotated[
        int | None, typer.Option(min=0, help="End reasoning after this number of tokens.", show_default="no limit")
    ] = None,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions of the context.", show_default=f"up to {DEFAULT_N_CTX}")
    ] = None,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    projector: Annotated[
        Path | None,
        typer.Option("--projector", "--mmproj", metavar="FILE", help="The model's projector, for /image and /audio."),
    ] = None,
    mcp: Annotated[
        Path | None,
        typer.Option("--mcp", metavar="FILE", help="Let the model call the tools of the MCP servers in a file."),
    ] = None,
    allow_tools: Annotated[bool, typer.Option("--allow-tools", help="Call tools without asking.")] = False,
    verbose: Verbose = False,
) -> None:
    """Talk with a model. Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, /help lists the commands.

    Where stdin is no terminal, each of its lines is a message, and only the answers go to stdout.
    """
    from offgrid_llama.engine import Engine
    from offgrid_llama.model.model import Model

    layers = gpu_layers(n_gpu_layers)
    options: TurnArguments = {
        "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "reasoning_budget": reasoning_budget,
    }  # fmt: skip
    with Model(to_file(model), n_gpu_layers=layers) as loaded, ExitStack() as stack:
        n_ctx = n_ctx or min(loaded.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        engine = stack.enter_context(Engine(loaded, n_seq_max=1, n_ctx=n_ctx, n_threads=n_threads, projector=projector))
        engine.chat_format()  # a model without a template is refused before the first message is typed
        if mcp is not None:
            options["tools"] = stack.enter_context(_servers(mcp, allow_tools, engine)).tools
        talk = Talk(engine, system, options)
        if sys.stdin is not None and sys.stdin.isatty():
            talk.at_the_terminal(loaded.path.name)
        else:
            talk.from_a_pipe()


def _servers(file: Path, allow_tools: bool, engine: Engine) -> MCPServers:
    """Connect to the servers of tools, which may use the model, too."""
    from offgrid_llama.integrations.mcp import MCPServers

    try:
        return MCPServers(file, allow=None if allow_tools else _allowed, engine=engine)
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--mcp") from error


def _allowed(server: str, tool: str, arguments: Mapping[str, Any]) -> bool:
    """Ask whether a tool may be called, now and later. Without a terminal it may not."""
    if sys.stdin is None or not sys.stdin.isatty():
        output.err(f"(the tool {tool} of {server} was not called: --allow-tools allows it)")
        return False
    shown = output.one_line(json.dumps(arguments, ensure_ascii=False), 200)
    return typer.confirm(f"{server}: call {tool} {shown}? (and further calls of it)", err=True)


class Talk:
    """A conversation, and the commands that begin with "/".

    Args:
        engine: answers the messages.
        system: the system message, if any.
        options: of each answer.
    """

    def __init__(self, engine: Engine, system: str | None, options: TurnArguments) -> None:
        self._engine = engine
        self._options = options
        self._tools: list[Tool] = list(options.get("tools") or ())  # type: ignore[arg-type]  # they are Tools here
        self._chat = self._new(system)
        self._last: ChatCompletion[Any] | None = None
        self._pretty = False
        self._over = False
        self._attached: list[dict[str, Any]] = []  # pictures and sounds for the next message
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("list the commands", self._help),
            "clear": ("remove all messages but the system message", self._clear),
            "system": (
                "TEXT: begin a new conversation with this system message, or without one",
                self._system,
            ),
            "image": ("FILE: show the model a picture with the next message", self._image),
            "audio": ("FILE: let the model hear a sound with the next message", self._audio),
            "undo": ("remove the last question and its answer", lambda _: self._chat.undo()),
            "retry": ("answer the last question again", self._retry),
            "save": ("FILE: write the conversation as JSON", self._save),
            "load": ("FILE: continue a conversation that was saved", self._load),
            "stats": ("tokens and seconds of the last answer", self._stats),
            "exit": ("end, as Ctrl-D does", self._exit),
        }

    def _new(self, system: str | None) -> Chat:
        from offgrid_llama.engine import Chat

        return Chat(self._engine, system or None, **self._options)

    # Input ------------------------------------------------------------------------------------------------------------

    def from_a_pipe(self) -> None:
        """Take each line of stdin for a message."""
        for line in sys.stdin.buffer if sys.stdin is not None else ():
            text = decode(line, "stdin").rstrip("\r\n")
            if text.strip():
                self._take(text)
            if self._over:
                return

    def at_the_terminal(self, name: str) -> None:
        """Take each input at the terminal for a message, or a command."""
        self._pretty = sys.stdout is not None and sys.stdout.isatty()
        output.err(f"{name}. /help lists the commands, Ctrl-D ends.")
        for text in _typed():
            if text.strip():
                self._take(text)
            if self._over:
                return

    def _take(self, text: str) -> None:
        """Carry out one input: a command, or a message."""
        try:
            if text.startswith("/"):
                name, _, argument = text[1:].partition(" ")
                if name not in self._commands:
                    output.err(f"There is no command /{output.one_line(name, 40)}; /help lists them.")
                else:
                    self._commands[name][1](argument.strip())
            else:
                attached, self._attached = self._attached, []
                self._say([{"type": "text", "text": text}, *attached] if attached else text)
        except ContextLengthError as error:
            output.err(
                f"The conversation is too long: {error.message}. /clear removes its messages, /undo the last turn."
            )
        except (OffgridLlamaError, OSError, ValueError) as error:
            output.err(f"error: {output.one_line(str(error))}")
        except KeyboardInterrupt:
            if not self._pretty:
                raise typer.Exit(INTERRUPTED) from None

    # Answers and commands ---------------------------------------------------------------------------------------------

    def _say(self, content: str | list[dict[str, Any]]) -> None:
        reply = self._chat.say(content)
        self._show(reply)
        for turn in range(1, MAX_TURNS):
            if not (calls := reply.tool_calls):
                return
            for call in calls:
                self._chat.add_tool_result(call, self._called(call))
            reply = self._chat.reply(tool_choice="none" if turn == MAX_TURNS - 1 else "auto")
            self._show(reply)

    def _called(self, call: ToolCall) -> object:
        """Carry out a call, and say so; return what goes back to the model."""
        from offgrid_llama.engine.tool_calls import result

        output.err(f"({call.name} {output.one_line(call.arguments, 200)})")
        try:
            return result(call, self._tools)
        except KeyboardInterrupt:
            output.err("(stopped)")
            return "The call was interrupted."

    def _show(self, reply: ChatCompletion[Any]) -> None:
        self._last = reply
        try:
            (self._show_pretty if self._pretty else self._show_plain)(reply)
        except KeyboardInterrupt:
            reply.cancel()
            reply.result()
            output.err("(stopped)")
            if not self._pretty:
                raise
        if reply.finish_reason is not None and reply.finish_reason.value == "length":
            output.err("(cut off: --max-tokens, or the context is full)")

    @staticmethod
    def _show_plain(reply: ChatCompletion[Any]) -> None:
        for delta in reply:
            if delta.content:
                output.put(delta.content)
        output.put("\n")

    @staticmethod
    def _show_pretty(reply: ChatCompletion[Any]) -> None:
        from rich.console import Console

        from .markdown import MarkdownStream

        console = Console()
        with MarkdownStream(console, "dim") as thought, MarkdownStream(console) as answer:
            for delta in reply:
                if delta.reasoning:
                    thought.push(delta.reasoning)
                if delta.content:
                    thought.__exit__()  # all of it is written before the answer
                    answer.push(delta.content)

    def _help(self, _: str) -> None:
        for name, (description, _function) in self._commands.items():
            output.err(f"/{name:8} {description}")

    def _clear(self, _: str) -> None:
        messages = self._chat.messages
        del messages[messages[:1] != [] and messages[0]["role"] == "system" :]

    def _system(self, text: str) -> None:
        self._chat = self._new(text)

    def _retry(self, _: str) -> None:
        asked = [message["content"] for message in self._chat.messages if message["role"] == "user"]
        if not asked:
            output.err("There is no question yet.")
            return
        self._chat.undo()
        self._say(asked[-1])

    def _image(self, file: str) -> None:
        from offgrid_llama.media.image import Image

        data = self._media_file("image", file)
        Image(data)  # raises for what is none
        self._attached.append(
            {"type": "image_url", "image_url": {"url": f"data:;base64,{base64.b64encode(data).decode()}"}}
        )

    def _audio(self, file: str) -> None:
        from offgrid_llama.media.audio import Audio

        data = self._media_file("audio", file)
        Audio(data)
        self._attached.append({"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode()}})

    def _media_file(self, command: str, file: str) -> bytes:
        if self._engine.projector is None:
            raise ValueError(f"/{command} needs a model with a projector: offgrid-llama chat --projector FILE")
        if not file:
            raise ValueError(f"/{command} takes the name of a file")
        return Path(file).expanduser().read_bytes()

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save takes the name of a file")
        text = json.dumps(self._chat.messages, indent=1, ensure_ascii=False)
        Path(file).expanduser().write_text(text + "\n", encoding="utf-8")

    def _load(self, file: str) -> None:
        from offgrid_llama.chat.media_parts import take_media
        from offgrid_llama.chat.messages import plain_messages

        if not file:
            raise ValueError("/load takes the name of a file")
        path = Path(file).expanduser()
        try:
            messages = json.loads(decode(path.read_bytes(), file))
            plain_messages(take_media(messages)[0])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is no conversation: {error}") from error
        self._chat = self._new(None)
        self._chat.messages.extend(messages)
        output.err(f"{len(messages)} messages")

    def _stats(self, _: str) -> None:
        if self._last is None:
            output.err("There is no answer yet.")
            return
        usage, timings = self._last.usage, self._last.timings
        line = f"{usage.prompt_tokens:,} prompt tokens, {usage.cached_tokens:,} of them cached"
        line += f"; {usage.completion_tokens:,} tokens"
        if timings.first_token is not None and timings.decode:
            speed = usage.completion_tokens / timings.decode
            line += f"; the first after {timings.first_token:.2f} s, then {speed:.1f} tokens/s"
        output.err(line)

    def _exit(self, _: str) -> None:
        self._over = True


def _typed() -> Iterator[str]:
    """Yield each input at the terminal, until Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "offgrid-llama"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        history = FileHistory(str(folder / "chat_history"))
    except OSError as error:
        output.err(f"The history of your input cannot be saved: {error}")
    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=keys, history=history)
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            output.err("Ctrl-D or /exit ends.")
        except EOFError:
            return
