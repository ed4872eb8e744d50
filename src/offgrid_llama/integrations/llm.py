"""A plugin of the command line tool and library ``llm``: its models run on an Engine of this process.

The package's entry point registers it. Models are those of ``offgrid-llama models``, with ``offgrid/`` before their names;
``OFFGRID_LLAMA_LLM_MODELS`` adds files, as ``NAME=PATH`` separated by commas; ``NAME=PATH;PROJECTOR`` is a model that sees
or hears. All requests of a model share one engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import llm
from pydantic import Field

from .contents import content_of, media_part

if TYPE_CHECKING:
    from offgrid_llama.engine.chat_completion import ChatCompletion, Delta

__all__ = [
    "AsyncOffgridLlama",
    "OffgridLlama",
    "OffgridLlamaEmbeddings",
    "register_embedding_models",
    "register_models",
]

VARIABLE = "OFFGRID_LLAMA_LLM_MODELS"
PREFIX = "offgrid/"
_PICTURES = {"image/bmp", "image/gif", "image/jpeg", "image/png"}
_SOUNDS = {"audio/flac", "audio/mp3", "audio/mpeg", "audio/wav", "audio/x-wav"}


class Options(llm.Options):  # type: ignore[misc]  # the package's options have no types here
    """The options of a prompt, as ``-o NAME VALUE`` gives them."""

    max_tokens: int | None = Field(None, ge=1, description="The most tokens of the answer")
    temperature: float | None = Field(None, ge=0, le=10, description="0 is greedy")
    top_k: int | None = Field(None, ge=0, description="Draw among this number of tokens; 0 is all")
    top_p: float | None = Field(
        None, ge=0, le=1, description="Draw among the tokens that have this probability together"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Leave out tokens less probable than this share of the first"
    )
    seed: int | None = Field(None, ge=0, description="Of the draws")
    stop: str | None = Field(None, description="A text that ends the answer")
    reasoning_budget: int | None = Field(None, ge=0, description="The most tokens of reasoning; 0 is none")
    tool_choice: str | None = Field(None, description="auto, none, required, or the name of a tool to call")


class _Shared:
    """What both kinds of models have.

    Args:
        name: the name under which llm knows the model.
        file: the name or path of the model.
        projector: the same of what sees or hears for it; "" for none.
    """

    can_stream = True
    supports_schema = True
    supports_tools = True
    Options = Options

    def __init__(self, name: str, file: str, projector: str = "") -> None:
        self.model_id = name
        self.attachment_types = _PICTURES | _SOUNDS if projector else set()
        self._file = file
        self._engine_options = {"projector": projector} if projector else {}

    def _started(self, prompt: Any, conversation: Any) -> ChatCompletion[Any]:
        """Submit a prompt with what was said before it."""
        from .asking import submitted

        options = prompt.options.model_dump()
        if prompt.tools:
            options["tools"] = [_tool(tool) for tool in prompt.tools]
        if prompt.schema:
            options["response_format"] = {
                "type": "json_schema", "json_schema": {"name": "answer", "schema": prompt.schema},
            }  # fmt: skip
        return submitted(self._file, self._engine_options, messages_of(prompt, conversation), options)

    def _finish(self, completion: ChatCompletion[Any], response: Any) -> None:
        """Tell llm the calls and the numbers of tokens."""
        for call in completion.tool_calls:
            if call.is_whole:
                response.add_tool_call(llm.ToolCall(name=call.name, arguments=call.parsed, tool_call_id=call.id))
        usage = completion.usage
        response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens)


class OffgridLlama(_Shared, llm.Model):  # type: ignore[misc]
    """A model of llm."""

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[Any]:
        """Yield the answer as it comes, or whole. A generator that is dropped cancels the request."""
        del stream
        with self._started(prompt, conversation) as completion:
            for delta in completion:
                yield from _events(delta)
            self._finish(completion, response)


class AsyncOffgridLlama(_Shared, llm.AsyncModel):  # type: ignore[misc]
    """The same for asyncio."""

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[Any]:
        """Yield the answer as it comes. A task that is cancelled cancels the request."""
        import asyncio

        del stream
        with await asyncio.to_thread(self._started, prompt, conversation) as completion:
            async for delta in completion:
                for event in _events(delta):
                    yield event
            self._finish(completion, response)


class OffgridLlamaEmbeddings(llm.EmbeddingModel):  # type: ignore[misc]
    """An embedding model of llm; texts are pooled as the model says, or by the mean.

    Args:
        name: the name under which llm knows the model.
        file: the name or path of the model.
    """

    batch_size = 256

    def __init__(self, name: str, file: str) -> None:
        self.model_id = name
        self._file = file

    def embed_batch(self, items: Iterable[str | bytes], **_: Any) -> Iterator[list[float]]:
        """Yield the vector of each text, of length 1. Texts that are too long are cut."""
        from .engines import shared_embedder

        some = list(items)
        if some:
            yield from shared_embedder(self._file).embed(some, truncate=True).tolist()


def _events(delta: Delta) -> Iterator[Any]:
    if delta.reasoning and hasattr(llm, "StreamEvent"):  # versions without it have no place for reasoning
        yield llm.StreamEvent(type="reasoning", chunk=delta.reasoning)
    if delta.content:
        yield delta.content


def _tool(tool: Any) -> dict[str, Any]:
    """Return one of llm's tools as the engine takes it."""
    if not hasattr(tool, "input_schema"):
        raise TypeError(f"the tool {tool!r} runs on a server; models on this machine have functions only")
    schema = tool.input_schema or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description or "", "parameters": schema},
    }


# Messages ---------------------------------------------------------------------------------------------------------------


def messages_of(prompt: Any, conversation: Any) -> list[dict[str, Any]]:
    """Return what a model is sent: the prompt, behind what was said in its conversation.

    Newer versions of llm give all of it as ``prompt.messages``, older ones a list of responses.
    """
    if hasattr(prompt, "messages"):
        return [found for message in prompt.messages for found in _of_message(message)]
    said: list[dict[str, Any]] = []
    for response in conversation.responses if conversation is not None else ():
        said += _asked(response.prompt)
        calls = [_call(call.name, call.arguments, call.tool_call_id) for call in response.tool_calls_or_raise()]
        said.append(
            {"role": "assistant", "content": response.text_or_raise(), **({"tool_calls": calls} if calls else {})}
        )
    return [*said, *_asked(prompt)]


def _asked(prompt: Any) -> Iterator[dict[str, Any]]:
    if prompt.system:
        yield {"role": "system", "content": prompt.system}
    for result in prompt.tool_results:
        yield {"role": "tool", "tool_call_id": result.tool_call_id, "name": result.name, "content": result.output}
    said = [*([prompt.prompt] if prompt.prompt else []), *map(_attached, prompt.attachments)]
    if said:
        yield {"role": "user", "content": content_of(said, "\n")}


def _attached(attachment: Any) -> dict[str, Any]:
    """Return the part of a message that a picture or a sound is."""
    kind = attachment.resolve_type() or ""
    if kind not in _PICTURES | _SOUNDS:
        raise ValueError(f"a model takes no attachment of the type {kind or 'unknown'!r}")
    return media_part("image" if kind in _PICTURES else "audio", attachment.content_bytes())


def _of_message(message: Any) -> Iterator[dict[str, Any]]:
    """Yield a message of llm as OpenAI has it: each result of a tool is one of its own."""
    said: list[str | dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for part in message.parts:
        kind = type(part).__name__
        if kind == "TextPart":
            said.append(part.text)
        elif kind == "ToolCallPart":
            calls.append(_call(part.name, part.arguments, part.tool_call_id))
        elif kind == "ToolResultPart":
            content = part.output or part.exception or ""
            yield {"role": "tool", "tool_call_id": part.tool_call_id, "name": part.name, "content": content}
        elif kind == "AttachmentPart":
            said.append(_attached(part.attachment))
    if said or calls:
        yield {"role": message.role, "content": content_of(said, "\n"), **({"tool_calls": calls} if calls else {})}


def _call(name: str, arguments: Any, call_id: str | None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


# The plugin -------------------------------------------------------------------------------------------------------------


def models() -> Sequence[tuple[str, str, str, bool]]:
    """Return the models: name, what the store or the disk knows them and their projectors by, and whether they chat."""
    from offgrid_llama import store

    found = [(entry.name, entry.name, "", entry.chat) for entry in store.catalog()]
    for pair in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, path = pair.partition("=")
        if not path:
            raise ValueError(f"{VARIABLE}: {pair!r} must be NAME=PATH, or NAME=PATH;PROJECTOR")
        path, _, projector = path.partition(";")
        found.append((name.strip(), path.strip(), projector.strip(), True))
    return found


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    """Register the models that hold conversations."""
    for name, file, projector, chats in models():
        if chats:
            own = (PREFIX + name, file, projector)
            register(OffgridLlama(*own), AsyncOffgridLlama(*own), aliases=(name,))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_embedding_models(register: Callable[..., None]) -> None:
    """Register all models for vectors."""
    for name, file, *_ in models():
        register(OffgridLlamaEmbeddings(PREFIX + name, file), aliases=(name,))
