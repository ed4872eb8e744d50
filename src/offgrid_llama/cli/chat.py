"""``offgrid-llama chat``: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import store
from ..errors import ContextLengthError, OffgridLlamaError
from . import output
from .exits import INTERRUPTED
from .options import GpuLayers, ModelName, Verbose, decode, gpu_layers, to_file

if TYPE_CHECKING:
    from ..engine import Chat, ChatCompletion, Engine

__all__ = ["chat"]

DEFAULT_N_CTX = 8192


def chat(
    model: ModelName = store.DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system message.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens of an answer.")] = 2048,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="0 always takes the most probable token.")
    ] = 0.8,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 2, help="Repeat a random choice.", show_default="random")
    ] = None,
    reasoning_budget: Annotated[
        int | None, typer.Option(min=0, help="Most tokens to think before an answer.", show_default="no limit")
    ] = None,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions of the context.", show_default=f"{DEFAULT_N_CTX} at most")
    ] = None,
    n_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="physical cores")] = None,
    n_gpu_layers: GpuLayers = "auto",
    verbose: Verbose = False,
) -> None:
    """Talk with a model. Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, /help has the rest.

    Where stdin is no terminal each of its lines is a message, and the answers alone go to stdout.
    """
    from ..engine import Engine
    from ..model import Model

    layers = gpu_layers(n_gpu_layers)
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if reasoning_budget is not None:
        options["reasoning_budget"] = reasoning_budget
    with Model(to_file(model), n_gpu_layers=layers) as loaded:
        n_ctx = n_ctx or min(loaded.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        with Engine(loaded, n_seq_max=1, n_ctx=n_ctx, n_threads=n_threads) as engine:
            engine._format(None)  # a model without a template is refused before anybody has typed something
            talk = Talk(engine, system, options)
            if sys.stdin is not None and sys.stdin.isatty():
                talk.at_the_terminal(loaded.path.name)
            else:
                talk.from_a_pipe()


class Talk:
    """A conversation and the commands on it."""

    def __init__(self, engine: Engine, system: str | None, options: dict[str, Any]) -> None:
        self._engine = engine
        self._options = options
        self._chat = self._new(system)
        self._last: ChatCompletion | None = None
        self._pretty = False
        self._over = False
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "help": ("this list", self._help),
            "clear": ("forget the conversation, but for the system message", self._clear),
            "system": (
                "TEXT: another system message, in a new conversation; without a text there is none",
                self._system,
            ),
            "undo": ("take back the last question and its answer", lambda _: self._chat.undo()),
            "retry": ("answer the last question once more", self._retry),
            "save": ("FILE: write the conversation as JSON", self._save),
            "load": ("FILE: go on with a conversation", self._load),
            "stats": ("tokens and seconds of the last answer", self._stats),
            "exit": ("leave, as Ctrl-D does", self._exit),
        }

    def _new(self, system: str | None) -> Chat:
        from ..engine import Chat

        return Chat(self._engine, system or None, **self._options)

    # Where it comes from ----------------------------------------------------------------------------------------------

    def from_a_pipe(self) -> None:
        """Take each line of stdin as a message."""
        for line in sys.stdin.buffer if sys.stdin is not None else ():
            text = decode(line, "stdin").rstrip("\r\n")
            if text.strip() and not self._take(text):
                return
            if self._over:
                return

    def at_the_terminal(self, name: str) -> None:
        """Take what is typed."""
        self._pretty = sys.stdout is not None and sys.stdout.isatty()
        output.err(f"{name}. /help lists the commands, Ctrl-D leaves.")
        for text in _typed():
            if text.strip():
                self._take(text)
            if self._over:
                return

    def _take(self, text: str) -> bool:
        """Do what a line says; return whether to go on."""
        try:
            if text.startswith("/"):
                name, _, argument = text[1:].partition(" ")
                if name not in self._commands:
                    output.err(f"There is no command /{output.one_line(name, 40)}; /help lists them.")
                else:
                    self._commands[name][1](argument.strip())
            else:
                self._say(text)
        except ContextLengthError as error:
            output.err(f"The conversation is too long: {error.message}. /clear begins anew, /undo takes back a turn.")
        except (OffgridLlamaError, OSError, ValueError) as error:
            output.err(f"error: {output.one_line(str(error))}")
        except KeyboardInterrupt:
            if not self._pretty:
                raise typer.Exit(INTERRUPTED) from None
        return True

    # What it does -----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        reply = self._last = self._chat.say(text)
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
    def _show_plain(reply: ChatCompletion) -> None:
        for delta in reply:
            if delta.content:
                output.put(delta.content)
        output.put("\n")

    @staticmethod
    def _show_pretty(reply: ChatCompletion) -> None:
        from rich.console import Console

        from .markdown import MarkdownStream

        console = Console()
        with MarkdownStream(console, "dim") as thought, MarkdownStream(console) as answer:
            for delta in reply:
                if delta.reasoning:
                    thought.push(delta.reasoning)
                if delta.content:
                    thought.__exit__()  # all of it stands before the answer
                    answer.push(delta.content)

    def _help(self, _: str) -> None:
        for name, (what, _function) in self._commands.items():
            output.err(f"/{name:8} {what}")

    def _clear(self, _: str) -> None:
        messages = self._chat.messages
        del messages[messages[:1] != [] and messages[0]["role"] == "system" :]

    def _system(self, text: str) -> None:
        self._chat = self._new(text)

    def _retry(self, _: str) -> None:
        asked = [message["content"] for message in self._chat.messages if message["role"] == "user"]
        if not asked:
            output.err("Nothing was said yet.")
            return
        self._chat.undo()
        self._say(str(asked[-1]))

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save takes the name of a file")
        text = json.dumps(self._chat.messages, indent=1, ensure_ascii=False)
        Path(file).expanduser().write_text(text + "\n", encoding="utf-8")

    def _load(self, file: str) -> None:
        from ..chat.messages import plain_messages

        if not file:
            raise ValueError("/load takes the name of a file")
        path = Path(file).expanduser()
        try:
            messages = plain_messages(json.loads(decode(path.read_bytes(), file)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is no conversation: {error}") from error
        self._chat = self._new(None)
        self._chat.messages.extend(messages)
        output.err(f"{len(messages)} messages")

    def _stats(self, _: str) -> None:
        if self._last is None:
            output.err("Nothing was said yet.")
            return
        usage, timings = self._last.usage, self._last.timings
        line = f"{usage.prompt_tokens:,} prompt tokens, {usage.cached_tokens:,} of them known"
        line += f"; {usage.completion_tokens:,} tokens"
        if timings.first_token is not None and timings.decode:
            speed = usage.completion_tokens / timings.decode
            line += f"; the first after {timings.first_token:.2f} s, then {speed:.1f} tokens/s"
        output.err(line)

    def _exit(self, _: str) -> None:
        self._over = True


def _typed() -> Iterator[str]:
    """Yield what is typed at the terminal, until Ctrl-D."""
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
        output.err(f"What you type is not remembered: {error}")
    session: PromptSession[str] = PromptSession("> ", multiline=True, key_bindings=keys, history=history)
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            output.err("Ctrl-D or /exit leaves.")
        except EOFError:
            return
