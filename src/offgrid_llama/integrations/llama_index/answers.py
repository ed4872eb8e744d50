"""An Engine's answers as LlamaIndex's: whole, or as they grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
)
from pydantic_core import from_json

from offgrid_llama.chat.tools.deltas import CallDelta
from offgrid_llama.chat.tools.tool import ToolCall
from offgrid_llama.engine.chat_completion import ChatCompletion, Delta
from offgrid_llama.engine.completion import Completion, Piece, TokenLogprobs, Usage

__all__ = ["AnswerReader", "CompletionReader", "TextReader", "json_so_far"]

_THINKING = getattr(types, "ThinkingBlock", None)  # earlier versions of LlamaIndex have no such blocks
_TOOL_CALL = getattr(types, "ToolCallBlock", None)


class AnswerReader:
    """Reads the answer to a conversation as ChatResponses, each with the whole message so far.

    ``raw`` of the last one, and of a whole one, is a dict with the model, why the answer has ended, and the numbers of
    tokens, in OpenAI's words; of those before it is None.

    Args:
        completion: the answer.
        model_name: the name of its model.
        piece: returns the bytes of a token, for logprobs.
    """

    def __init__(self, completion: ChatCompletion[Any], model_name: str, piece: Callable[[int], bytes]) -> None:
        self.completion = completion
        self._model_name = model_name
        self._piece = piece
        self._text = ""
        self._thought = ""
        self._calls: list[ToolCall] = []

    def whole(self) -> ChatResponse:
        """Return the answer, which has ended."""
        told = self.completion.message()
        self._text, self._thought = told["content"], told.get("reasoning_content", "")
        self._calls = [ToolCall(call["id"], **call["function"]) for call in told.get("tool_calls", ())]
        answer = self.completion.completion.answers[0]
        return self._response(True, logprobs=_logprobs(answer.tokens, answer.logprobs, self._piece))

    def grown(self, delta: Delta) -> ChatResponse:
        """Return the answer with some more of it."""
        self._text += delta.content
        self._thought += delta.reasoning
        for call in delta.tool_calls:
            self._add(call)
        found = self._response(
            delta.finish_reason is not None,
            delta=delta.content,
            logprobs=_logprobs(delta.tokens, delta.logprobs, self._piece),
        )
        if delta.reasoning:
            found.additional_kwargs["thinking_delta"] = delta.reasoning  # where LlamaIndex's agents look for it
        return found

    def _add(self, call: CallDelta) -> None:
        if call.index == len(self._calls):
            self._calls.append(ToolCall(call.id, call.name))
        self._calls[call.index].arguments += call.arguments

    def _response(self, has_ended: bool, **told: Any) -> ChatResponse:
        if not has_ended:
            return ChatResponse(message=self._message(None), **told)
        n_thought = self.completion.reasoning_tokens()
        reason, usage = self.completion.finish_reason, self.completion.usage
        raw = _raw(self._model_name, reason, usage)
        raw["usage"]["completion_tokens_details"] = {"reasoning_tokens": n_thought}
        if warnings := self.completion.warnings:
            raw["warnings"] = warnings
        return ChatResponse(message=self._message(n_thought), raw=raw, additional_kwargs=_counts(usage), **told)

    def _message(self, n_thought: int | None) -> ChatMessage:
        """Return the message so far; ``n_thought``, the tokens of its reasoning, is known at its end."""
        others: dict[str, Any] = {}
        blocks: list[Any] = [TextBlock(text=self._text)]
        if self._thought and _THINKING is not None:
            blocks.insert(0, _THINKING(content=self._thought, num_tokens=n_thought))
        elif self._thought:
            others["reasoning_content"] = self._thought
        if self._calls:  # in both places: some of LlamaIndex looks into one of them only
            others["tool_calls"] = [call.as_dict() for call in self._calls]
            if _TOOL_CALL is not None:
                blocks += [_block(call, n_thought is not None) for call in self._calls]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=others)


def _block(call: ToolCall, has_ended: bool) -> Any:
    """Return a call as a block; its arguments are a text as long as they may grow, and where they are cut off."""
    arguments = call.parsed if has_ended and call.is_whole else call.arguments
    return _TOOL_CALL(tool_call_id=call.id, tool_name=call.name, tool_kwargs=arguments)  # type: ignore[misc]


class CompletionReader:
    """Reads the answer to a conversation as CompletionResponses, which have its text.

    Args:
        answer: what reads it as ChatResponses.
    """

    def __init__(self, answer: AnswerReader) -> None:
        self.completion = answer.completion
        self._answer = answer

    def whole(self) -> CompletionResponse:
        """Return the answer, which has ended."""
        return self._told(self._answer.whole())

    def grown(self, delta: Delta) -> CompletionResponse:
        """Return the answer with some more of it."""
        return self._told(self._answer.grown(delta))

    @staticmethod
    def _told(answer: ChatResponse) -> CompletionResponse:
        return CompletionResponse(
            text=answer.message.content or "", delta=answer.delta, raw=answer.raw, logprobs=answer.logprobs,
            additional_kwargs=answer.additional_kwargs,
        )  # fmt: skip


class TextReader:
    """Reads the text that follows a prompt as CompletionResponses, with the arguments and the ``raw`` of AnswerReader."""

    def __init__(self, completion: Completion, model_name: str, piece: Callable[[int], bytes]) -> None:
        self.completion = completion
        self._model_name = model_name
        self._piece = piece
        self._text = ""

    def whole(self) -> CompletionResponse:
        """Return the text, which has ended."""
        self._text, answer = self.completion.text, self.completion.answers[0]
        return self._response(True, logprobs=_logprobs(answer.tokens, answer.logprobs, self._piece))

    def grown(self, piece: Piece) -> CompletionResponse:
        """Return the text with some more of it."""
        self._text += piece.text
        logprobs = _logprobs(piece.tokens, piece.logprobs, self._piece)
        return self._response(piece.finish_reason is not None, delta=piece.text, logprobs=logprobs)

    def _response(self, has_ended: bool, **told: Any) -> CompletionResponse:
        if not has_ended:
            return CompletionResponse(text=self._text, **told)
        usage = self.completion.usage
        raw = _raw(self._model_name, self.completion.finish_reason, usage)
        return CompletionResponse(text=self._text, raw=raw, additional_kwargs=_counts(usage), **told)


def json_so_far(text: str) -> Any:
    """Return the value of JSON that goes on, with its texts as far as they have come. Raises ValueError for no value yet."""
    try:
        return from_json(text, allow_partial="trailing-strings")
    except TypeError:  # Pydantic 2.8 leaves out a text that goes on
        return from_json(text, allow_partial=True)


def _raw(model_name: str, reason: str | None, usage: Usage) -> dict[str, Any]:
    """Return what is known of an answer that has ended, as plain values."""
    details = {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return {"model": model_name, "finish_reason": reason and str(reason), "usage": {**_counts(usage), **details}}


def _counts(usage: Usage) -> dict[str, Any]:
    n_prompt, n_answer = usage.prompt_tokens, usage.completion_tokens
    return {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}


def _logprobs(
    tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], piece: Callable[[int], bytes]
) -> list[list[LogProb]] | None:
    """Return for each token its own logprob, and then those of the most probable others; None where none are asked for."""
    if not logprobs:
        return None

    def told(token: int, logprob: float) -> LogProb:
        text = piece(token)
        return LogProb(token=text.decode("utf-8", "replace"), logprob=logprob, bytes=[*text])

    return [
        [told(token, own), *(told(each, logprob) for each, logprob in top if each != token)]
        for token, (own, top) in zip(tokens, logprobs, strict=True)
    ]
