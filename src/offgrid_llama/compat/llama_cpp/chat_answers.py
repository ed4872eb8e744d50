"""Text completions as chat completions: as a message, or as the call of one tool; whole, or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["chat_answer", "chat_chunk", "completion_with", "logprobs_of_chat", "tool_answer", "tool_call"]

Completion = Mapping[str, Any]
Answer = dict[str, Any]


def chat_answer(completion_or_chunks: Any, stream: bool = False) -> Any:
    """Return a text completion as a chat completion; with ``stream`` its chunks as an iterator of chunks."""
    return _chat_chunks(completion_or_chunks) if stream else _chat_completion(completion_or_chunks)


def tool_answer(tool_name: str, completion_or_chunks: Any, stream: bool) -> Any:
    """Return a text completion, which has the arguments of a tool, as a chat completion that calls the tool."""
    if stream:
        return _tool_chunks(tool_name, completion_or_chunks)
    return _tool_completion(tool_name, completion_or_chunks)


def tool_call(name: str, completion: Completion, *, at: int = 0, id_: str | None = None) -> Answer:
    """Return a completion's text as the call of a tool: the one at the place ``at`` in a message."""
    return {
        "id": f"call__{at}_{name}_{completion['id']}" if id_ is None else id_,
        "type": "function",
        "function": _function(name, completion),
    }


def completion_with(completion: Completion, message: Answer, finish_reason: Any, usage: Any) -> Answer:
    """Return a chat completion with a message, which has the id and the logprobs of a text completion."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", **message},
        "logprobs": logprobs_of_chat(completion["choices"][0]["logprobs"]),
        "finish_reason": finish_reason,
    }
    return {**_head(completion, "chat.completion"), "choices": [choice], "usage": usage}


def logprobs_of_chat(logprobs: Mapping[str, Any] | None) -> Answer | None:
    """Return the logprobs of a text completion in the shape that those of chat completions have."""
    if logprobs is None:
        return None
    tokens = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=False)
    return {
        "content": [
            {
                **_token(token, logprob),
                "top_logprobs": [_token(*each) for each in (most_probable or {}).items()],
            }
            for token, logprob, most_probable in tokens
        ],
        "refusal": None,
    }


def _token(token: str, logprob: float | None) -> Answer:
    return {"token": token, "logprob": logprob, "bytes": None}


def _head(completion: Completion, kind: str) -> Answer:
    return {
        "id": "chat" + completion["id"],
        "object": kind,
        "created": completion["created"],
        "model": completion["model"],
    }


def chat_chunk(completion: Completion, delta: Answer, finish_reason: Any = None, logprobs: Any = None) -> Answer:
    """Return a chunk of a chat completion, which has the id of a text completion or of its chunks."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**_head(completion, "chat.completion.chunk"), "choices": [choice]}


def _function(name: str, completion: Completion) -> Answer:
    return {"name": name, "arguments": completion["choices"][0]["text"]}


def _chat_completion(completion: Completion) -> Answer:
    choice = completion["choices"][0]
    return completion_with(completion, {"content": choice["text"]}, choice["finish_reason"], completion["usage"])


def _chat_chunks(chunks: Iterator[Completion]) -> Iterator[Answer]:
    for at, chunk in enumerate(chunks):
        if at == 0:
            yield chat_chunk(chunk, {"role": "assistant"})
        choice = chunk["choices"][0]
        reason = choice["finish_reason"]
        delta = {"content": choice["text"]} if reason is None else {}
        yield chat_chunk(chunk, delta, reason, logprobs_of_chat(choice["logprobs"]))


def _tool_completion(name: str, completion: Completion) -> Answer:
    call = tool_call(name, completion)
    message = {"content": None, "function_call": {**call["function"]}, "tool_calls": [call]}
    return completion_with(completion, message, "tool_calls", completion["usage"])


def _tool_chunks(name: str, chunks: Iterator[Completion]) -> Iterator[Answer]:
    first, id_ = None, ""
    nothing = {"content": None, "function_call": None, "tool_calls": None}
    for chunk in chunks:
        if first is None:
            first, id_ = chunk, tool_call(name, chunk)["id"]
            yield chat_chunk(chunk, {"role": "assistant", **nothing})
        call = tool_call(name, chunk, id_=id_)
        delta = {"content": None, "function_call": {**call["function"]}, "tool_calls": [{"index": 0, **call}]}
        logprobs = logprobs_of_chat(chunk["choices"][0]["logprobs"])
        yield chat_chunk(chunk, {"role": None, **delta}, logprobs=logprobs)
    if first is not None:
        yield chat_chunk(first, {"role": None, **nothing}, "tool_calls")
