"""What MCP servers ask of a model (sampling), answered by an Engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import OffgridLlamaError

if TYPE_CHECKING:
    from offgrid_llama.engine.engine import Engine

__all__ = ["SAMPLING", "Sampling"]

SAMPLING = "sampling/createMessage"
"""The name under which it is asked whether a server may have an answer."""

_REASONS = {"stop": "endTurn", "length": "maxTokens", "tool_calls": "toolUse"}
_MAX_TOKENS = 4096


class Sampling:
    """Answers a server's requests for text.

    Args:
        server: the server's name.
        engine: writes the answers.
        allow: asked before the first answer with (server, SAMPLING, what the server wants), in a thread; None allows all.
    """

    def __init__(
        self, server: str, engine: Engine, allow: Callable[[str, str, Mapping[str, Any]], bool] | None
    ) -> None:
        self._server = server
        self._engine = engine
        self._allow = allow
        self._is_allowed = allow is None

    async def __call__(self, context: Any, params: Any) -> Any:
        """Return what the package sends back: an answer, or an error."""
        del context
        types = _types()
        asked = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            if self._allow is not None and not self._is_allowed:
                self._is_allowed = await asyncio.to_thread(self._allow, self._server, SAMPLING, asked)
            if not self._is_allowed:
                return types.ErrorData(code=types.INVALID_REQUEST, message="the user has not allowed it")
            reason, text = await self._answered(asked)
        except (OffgridLlamaError, ValueError, TypeError) as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error))
        answer = {
            "role": "assistant", "content": {"type": "text", "text": text}, "model": self._engine.model.path.stem,
            "stopReason": reason,
        }  # fmt: skip
        return types.CreateMessageResult.model_validate(answer)

    async def _answered(self, asked: Mapping[str, Any]) -> tuple[str, str]:
        """Return why an answer has ended, and its text."""
        messages = [{"role": each["role"], "content": _text(each["content"])} for each in asked["messages"]]
        if system := asked.get("systemPrompt"):
            messages.insert(0, {"role": "system", "content": system})
        options: Any = {
            "max_tokens": min(asked.get("maxTokens") or _MAX_TOKENS, self._engine.n_ctx_seq),
            "temperature": asked.get("temperature"), "stop": asked.get("stopSequences") or (),
        }  # fmt: skip
        with await asyncio.to_thread(partial(self._engine.chat, messages, **options)) as completion:
            await completion
            stopped = completion.completion.answers[0].stop is not None
            reason = "stopSequence" if stopped else _REASONS.get(str(completion.finish_reason), "endTurn")
            return reason, completion.content


def _text(content: Any) -> str:
    """Return the text of a message. Raises ValueError for pictures and sounds."""
    parts: Sequence[Mapping[str, Any]] = content if isinstance(content, list) else [content]
    for part in parts:
        if part.get("type") != "text":
            raise ValueError(f"this model takes texts only, and no {part.get('type')}")
    return "\n".join(part["text"] for part in parts)


def _types() -> Any:
    try:
        import mcp_types as types  # since mcp 2
    except ImportError:
        from mcp import types
    return types
