"""llama-server's own API: completions of texts and tokens, and its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.worker.frames import Answered, Chunk, Details, Measures, Message, TokenLogprob
from offgrid_llama.worker.generation import Texts

from .dialect import Asked, Dialect, Writer
from .llama_server_options import generation_settings, model_of, options, progress, prompts, timings
from .llama_server_schemas import CompletionRequest, InfillRequest

__all__ = [
    "LLAMA_SERVER",
    "LlamaWriter",
    "event",
    "probabilities",
    "progress",
    "read_completion",
    "read_infill",
    "result",
]

_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip
_STOPS = {"stop": "eos", "tool_calls": "eos", "length": "limit"}
_LOWEST = -3.4028234663852886e38
"""The number that llama-server writes for the logprob of a token that is impossible."""


def _error(error: ApiError) -> dict[str, Any]:
    """Return the body of an error: with its status as code, and the numbers of a prompt that is too long."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    body: dict[str, Any] = {"code": error.status, "message": error.message, "type": kind}
    if error.code == "context_length_exceeded" and {"n_tokens", "n_ctx"} <= error.details.keys():
        n_tokens, n_ctx = error.details["n_tokens"], error.details["n_ctx"]
        body |= {
            "message": f"request ({n_tokens} tokens) exceeds the available context size ({n_ctx} tokens), try increasing it",
            "type": "exceed_context_size_error", "n_prompt_tokens": n_tokens, "n_ctx": n_ctx,
        }  # fmt: skip
    return {"error": body}


LLAMA_SERVER = Dialect("llama-server", _error)


def read_completion(body: CompletionRequest, server: LlamaServer | None) -> Asked:
    """Return what a request of ``/completion`` asks for."""
    said = body.said()
    found, single = prompts(body.prompt)
    return _asked(said, Texts(prompts=found, parse_special=True), server, single and said.get("n_cmpl", 1) == 1)


def read_infill(body: InfillRequest, server: LlamaServer | None) -> Asked:
    """Return what a request of ``/infill`` asks for."""
    said = body.said()
    what = Texts(
        prompts=[body.input_prefix], suffix=body.input_suffix, middle=body.prompt,
        files=[(each.filename or "tmp", each.text) for each in body.input_extra or ()],
    )  # fmt: skip
    return _asked(said, what, server, said.get("n_cmpl", 1) == 1)


def _asked(said: dict[str, Any], what: Texts, server: LlamaServer | None, single: bool) -> Asked:
    what.options = options(said, server, said.get("n_probs") or None)
    what.names = {name: name for name in said}
    writer = partial(LlamaWriter, said=said, server=server, single=single)
    return Asked(model_of(said, server), what, bool(said.get("stream")), writer)


class LlamaWriter(Writer):
    """Writes the response to a completion.

    Args:
        model: its name.
        said: the parameters of the request.
        server: as ``options`` takes it.
        single: whether the request has one answer, so that the body is no list.
    """

    def __init__(self, model: str, said: Mapping[str, Any], server: LlamaServer | None, single: bool) -> None:
        self._model = model
        self._said = said
        self._server = server
        self._single = single

    def event(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk: of the tokens that it brings, and of the end of its answer."""
        events = b"".join(event(each) for each in self._parts(chunk))
        if chunk.details is None:
            return events
        last = Message("", "", [], chunk.finish_reason or "stop", None, chunk.stop, chunk.details)
        return events + event(self._final(chunk.index, last, streamed=True))

    def _parts(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        measures = chunk.measures or Measures(0, 0, 0)
        part: dict[str, Any] = {
            "index": chunk.index, "content": chunk.content, "tokens": chunk.token_ids, "stop": False, "id_slot": -1,
            "tokens_predicted": measures.n_tokens, "tokens_evaluated": measures.n_prompt,
        }  # fmt: skip
        if chunk.n_computed is not None:
            part["prompt_progress"] = progress(chunk.n_computed, measures)
            measures = _begun(chunk.n_computed, measures)
        if self._said.get("timings_per_token"):
            part["timings"] = timings(measures)
        if not chunk.logprobs:
            if chunk.content or chunk.token_ids or chunk.n_computed is not None:
                yield part
            return
        sampled = bool(self._said.get("post_sampling_probs"))
        for at, logprob in enumerate(chunk.logprobs):  # llama-server has an event for each token
            is_last = at == len(chunk.logprobs) - 1
            yield {
                **part, "content": chunk.content if is_last else "", "tokens": chunk.token_ids[at : at + 1],
                "completion_probabilities": probabilities([logprob], sampled),
            }  # fmt: skip

    def end(self, answered: Answered) -> bytes:
        """Return nothing: the last event of each answer has said that it ends."""
        return b""

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        return event(_error(error))

    def whole(self, answered: Answered) -> Any:
        """Return the body of a response that is not streamed."""
        found = [self._final(index, message) for index, message in enumerate(answered.messages)]
        return found[0] if self._single else found

    def _final(self, index: int, message: Message, *, streamed: bool = False) -> dict[str, Any]:
        body = result(index, message, self._model, self._said, self._server)
        if not self._said.get("return_tokens") or streamed:
            body["tokens"] = []
        if message.logprobs:
            body["completion_probabilities"] = probabilities(
                message.logprobs, bool(self._said.get("post_sampling_probs"))
            )
        fields = self._said.get("response_fields")
        return _chosen(body, fields) if fields else body


def result(
    index: int, message: Message, model: str, said: Mapping[str, Any], server: LlamaServer | None
) -> dict[str, Any]:
    """Return llama-server's whole description of an answer."""
    details = message.details or Details([], "", 0, False, Measures(0, 0, 0), {})
    measures = details.measures
    return {
        "index": index, "content": message.content, "tokens": details.tokens, "id_slot": details.seq_id, "stop": True,
        "model": model, "tokens_predicted": measures.n_tokens, "tokens_evaluated": measures.n_prompt,
        "generation_settings": generation_settings(details.params, said, server) if details.params else {},
        "prompt": details.prompt, "has_new_line": "\n" in message.content, "truncated": details.truncated,
        "stop_type": "word" if message.stop else _STOPS.get(message.finish_reason, "none"),
        "stopping_word": message.stop, "tokens_cached": max(measures.n_prompt + measures.n_tokens - 1, 0),
        "timings": timings(measures),
    }  # fmt: skip


def _chosen(body: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a body that a client asks for; a path, such as "a/b", leads into an object."""
    found: dict[str, Any] = {}
    for path in fields:
        value: Any = body
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found[path] = value
    return found


def _begun(n_computed: int, measures: Measures) -> Measures:
    """Return the measures of a prompt of which the first tokens are computed."""
    seconds = 0.0 if n_computed == measures.n_cached else measures.prompt_seconds
    return Measures(n_computed, measures.n_cached, 0, seconds)


def probabilities(logprobs: Sequence[TokenLogprob], sampled: bool) -> list[dict[str, Any]]:
    """Return the probabilities of tokens: their logarithms, or with ``sampled`` themselves."""
    name, top = ("prob", "top_probs") if sampled else ("logprob", "top_logprobs")

    def one(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
        value = math.exp(logprob) if sampled else max(logprob, _LOWEST)
        return {"id": token, "token": piece.decode("utf-8", "ignore"), "bytes": list(piece), name: value}

    return [
        {
            **one(each.ids[0], each.piece, each.logprob),
            top: [one(token, piece, value) for token, (piece, value) in zip(each.ids[1:], each.top, strict=True)],
        }
        for each in logprobs
    ]


def event(value: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
