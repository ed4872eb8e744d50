"""Frames: the messages between the server and a worker."""

from __future__ import annotations

from typing import Any

import msgspec

from .generation import Task

__all__ = [
    "Answered", "Call", "CallChunk", "Cancel", "Chunk", "Details", "Facts", "FactsOf", "Failed", "Generate",
    "Heartbeat", "LoadModel", "Loaded", "Loading", "Measures", "Message", "PromptLogprob", "Result", "Spoken", "Stop",
    "Threads", "Timings", "TokenCounts", "TokenLogprob", "Transcribed", "TranscribedSegment",
]  # fmt: skip

# From the server --------------------------------------------------------------------------------------------------------


class LoadModel(msgspec.Struct, tag="load", array_like=True):
    """Load a model. This frame comes first, and once. ``spec`` is the arguments of Service."""

    spec: dict[str, Any]


class Generate(msgspec.Struct, tag="generate", array_like=True):
    """Generate.

    Attributes:
        id: of the request, chosen by the server.
        what: is asked for.
        stream: send Chunks as they come, instead of all messages with Answered.
        partition: of the client: cached prefixes and grammars are shared only within it, and partitions have turns.
    """

    id: int
    what: Task
    stream: bool
    partition: str


class Call(msgspec.Struct, tag="call", array_like=True):
    """Return one Result for "stats", or for one of the functions of Calls and EngineCalls.

    Attributes:
        id: of the request.
        what: one of these.
        arguments: of its function; for "template" and "count" one, a Conversation.
        partition: of the client, as in Generate.
    """

    id: int
    what: str
    arguments: dict[str, Any]
    partition: str = ""


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """Stop a request: its client has gone."""

    id: int


class Threads(msgspec.Struct, tag="threads", array_like=True):
    """Compute with up to ``n`` threads from now on."""

    n: int


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """End the process."""


# From the worker --------------------------------------------------------------------------------------------------------


class TokenLogprob(msgspec.Struct, array_like=True):
    """The logprob of a token, and those of the most probable ones, each with its bytes; and the ids of all of these."""

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]] = []
    ids: list[int] = []


class PromptLogprob(msgspec.Struct, array_like=True):
    """The same of a token of a prompt, with its rank, 1 for the most probable one. The first one has neither."""

    piece: bytes
    logprob: float | None
    top: list[tuple[bytes, float]] = []
    ids: list[int] = []
    rank: int | None = None


class CallChunk(msgspec.Struct, array_like=True):
    """A part of a tool call. The first one of a call has its id and name."""

    index: int
    id: str
    name: str
    arguments: str


class Measures(msgspec.Struct, array_like=True):
    """How fast an answer comes.

    Attributes:
        n_prompt, n_cached, n_tokens: tokens of the prompt, of those that were computed before, and of the answer so far.
        prompt_seconds, completion_seconds: to compute the prompt; from the first token to the last.
        n_guessed, n_right: guesses of speculative decoding, and those that were right.
    """

    n_prompt: int
    n_cached: int
    n_tokens: int
    prompt_seconds: float = 0.0
    completion_seconds: float = 0.0
    n_guessed: int = 0
    n_right: int = 0


class Details(msgspec.Struct, array_like=True):
    """The facts that a request can be told of its answer besides its text.

    Attributes:
        tokens: their ids.
        prompt: as text, with its control tokens.
        seq_id: the sequence that it had.
        truncated: whether the sequence was too short.
        measures: see Measures.
        params: the SamplingParams that were used, without the grammar.
    """

    tokens: list[int]
    prompt: str
    seq_id: int
    truncated: bool
    measures: Measures
    params: dict[str, Any]


class Chunk(msgspec.Struct, tag="chunk", array_like=True):
    """A part of an answer, as it comes.

    Attributes:
        id: of the request.
        index: of the answer, from 0 to n - 1.
        content, reasoning, calls: the new text, reasoning and parts of tool calls.
        logprobs: of the new tokens, or None.
        finish_reason: with the last chunk of an answer, otherwise None.
        n_tokens: how many tokens the chunk has.
        warnings: with the last chunk of an answer: rules of tools that no grammar can hold, and calls that break one.
        stop: the stop text that has ended the answer, with its last chunk; "" if none has.
        tokens: of the request so far, with the first chunk of a conversation, otherwise None.
        n_computed: of the prompt's tokens, in a chunk that tells nothing else.
        token_ids, measures: the ids of the new tokens, and Measures, if the request asks for measures.
        details: with the last chunk of an answer, if the request asks for them.
        prompt: logprobs of the tokens of the prompt, with the first chunk of an answer, if the request asks for them.
        sound: a part of the sound of an Utterance, as it asks for it.
    """

    id: int
    index: int
    content: str
    reasoning: str = ""
    calls: list[CallChunk] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    n_tokens: int = 0
    warnings: list[str] = []
    stop: str = ""
    tokens: TokenCounts | None = None
    n_computed: int | None = None
    token_ids: list[int] = []
    measures: Measures | None = None
    details: Details | None = None
    prompt: list[PromptLogprob] | None = None
    sound: bytes = b""


class TokenCounts(msgspec.Struct, array_like=True):
    """Tokens of a request: of its prompt, of that from the prefix cache, of its completion.

    Of those that it has predicted, some were accepted, as they came in the completion, and the others rejected. Those of
    reasoning are part of the completion, and known at its end.
    """

    prompt: int
    cached: int
    completion: int
    accepted: int = 0
    rejected: int = 0
    reasoning: int = 0


class Timings(msgspec.Struct, array_like=True):
    """Seconds of the first answer: waiting in the queue, computing the prompt, and from the first token to the last."""

    waiting: float = 0.0
    prompt: float = 0.0
    completion: float = 0.0


class Message(msgspec.Struct, array_like=True):
    """A whole answer, with the stop text that has ended it, "" if none has, and Details if the request asks for them."""

    content: str
    reasoning: str
    calls: list[CallChunk]
    finish_reason: str
    logprobs: list[TokenLogprob] | None = None
    stop: str = ""
    details: Details | None = None


class TranscribedSegment(msgspec.Struct, array_like=True):
    """What is said in a part of a sound; its times are in seconds. The logprobs are there if the request asks for them."""

    start: float
    end: float
    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob] = []


class Transcribed(msgspec.Struct, array_like=True):
    """What is said in a sound of some seconds: all of it, and by its parts."""

    text: str
    seconds: float
    segments: list[TranscribedSegment] = []


class Spoken(msgspec.Struct, array_like=True):
    """A text that was spoken.

    Attributes:
        seconds: of the sound.
        sound: all of it, unless it was streamed.
    """

    seconds: float
    sound: bytes


class Answered(msgspec.Struct, tag="answered", array_like=True):
    """A request has ended.

    Attributes:
        id: of the request.
        tokens: how many it had.
        messages: its answers, unless they were streamed.
        timings: of the first answer; None where it has no token.
        warnings: those of all answers.
        told_tokens: token ids of the prompt and the first answer, where the request asks for them.
        prompts: for each prompt the logprobs of its tokens, unless they were streamed, where the request asks for them.
        transcribed: where a Sound was asked for. spoken: where an Utterance was.
    """

    id: int
    tokens: TokenCounts
    messages: list[Message] = []
    timings: Timings | None = None
    warnings: list[str] = []
    told_tokens: list[int] = []
    prompts: list[list[PromptLogprob]] = []
    transcribed: Transcribed | None = None
    spoken: Spoken | None = None


class Result(msgspec.Struct, tag="result", array_like=True):
    """The value that a Call has given."""

    id: int
    value: Any


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """A request has failed, or with ``id`` 0 the load.

    Attributes:
        id: of the request.
        status: of HTTP.
        message, code, param, details: see ApiError.
    """

    id: int
    status: int
    message: str
    code: str | None = None
    param: str | None = None
    details: dict[str, int] = {}


class Loading(msgspec.Struct, tag="loading", array_like=True):
    """How much of the model is loaded, from 0 to 1."""

    fraction: float


class Loaded(msgspec.Struct, tag="loaded", array_like=True):
    """The model is ready. ``info`` has facts about it, for ``/v1/models``."""

    info: dict[str, Any]


class Heartbeat(msgspec.Struct, tag="heartbeat", array_like=True):
    """The worker lives. It sends this once a second, with its memory in bytes and the numbers of EngineStats."""

    rss_bytes: int
    stats: dict[str, float]


# Of models that are not loaded --------------------------------------------------------------------------------------------


class FactsOf(msgspec.Struct):
    """Tell the Facts of a model, by its first file.

    Attributes:
        file: this one.
        template: the source of a chat template to use instead of its own.
        projector: the file of what sees or hears for it.
    """

    file: str
    template: str | None = None
    projector: str | None = None


class Facts(msgspec.Struct):
    """The facts in the headers of a model's files.

    Attributes:
        size: of all files, in bytes.
        digest: 64 hexadecimal digits, the same for the same weights.
        architecture: for instance ``llama``.
        file_type: the mixture of its types, for instance ``Q4_K_M``; "" for one without a name.
        n_params: number of weights. n_ctx_train, n_embd: of the model; 0 where the file does not say.
        template: the source of its chat template; "" for none.
        metadata: by key, without the template; long arrays are empty.
        generates, chats, reasons, fills, embeds: whether it writes texts, answers conversations, reasons before that, fills
            gaps, and was made for vectors.
        sees, hears, speaks: whether its projector takes pictures, takes sound, and makes sound.
    """

    size: int
    digest: str
    architecture: str
    file_type: str
    n_params: int
    n_ctx_train: int
    n_embd: int
    template: str
    metadata: dict[str, Any]
    generates: bool
    chats: bool
    reasons: bool
    fills: bool
    embeds: bool
    sees: bool = False
    hears: bool = False
    speaks: bool = False


ToWorker = LoadModel | Generate | Call | Cancel | Threads | Stop
FromWorker = Chunk | Answered | Result | Failed | Loading | Loaded | Heartbeat
