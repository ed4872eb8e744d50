"""The types of requests and answers in OpenAI's shapes, with the names and fields that they have in llama-cpp-python 0.3.36.

A class whose name begins with ``_`` has the fields that are required, and the class below it adds those that may be missing.
They are those of typing_extensions where that is installed, because pydantic takes no others before Python 3.12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Literal, Union  # noqa: UP035 - `import *` brings them

if TYPE_CHECKING:
    from typing import TypedDict
else:
    try:
        from typing_extensions import TypedDict
    except ImportError:
        from typing import TypedDict

JsonType = Union[None, int, str, bool, List[Any], Dict[str, Any]]  # noqa: UP006, UP007 - as theirs, for code that takes it apart


class EmbeddingUsage(TypedDict):
    """The tokens of an embedding request."""

    prompt_tokens: int
    total_tokens: int


class Embedding(TypedDict):
    """One vector, or one for each token."""

    index: int
    object: str
    embedding: list[float] | list[list[float]]


class CreateEmbeddingResponse(TypedDict):
    """The answer to an embedding request."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class CompletionLogprobs(TypedDict):
    """The logprobs of a text completion, token by token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """A text, and why it ends."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionUsage(TypedDict):
    """The tokens of a request and its answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _CreateCompletionResponse(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]


class CreateCompletionResponse(_CreateCompletionResponse, total=False):
    """A text completion, or a chunk of one."""

    usage: CompletionUsage


class ChatCompletionResponseFunctionCall(TypedDict):
    """A call of a function, with its arguments as JSON."""

    name: str
    arguments: str


class ChatCompletionMessageToolCallFunction(TypedDict):
    """The function of a tool call, with its arguments as JSON."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(TypedDict):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: ChatCompletionMessageToolCallFunction


ChatCompletionMessageToolCalls = List[ChatCompletionMessageToolCall]  # noqa: UP006


class _ChatCompletionResponseMessage(TypedDict):
    content: str | None
    role: Literal["assistant", "function"]


class ChatCompletionResponseMessage(_ChatCompletionResponseMessage, total=False):
    """The message that a model has written."""

    tool_calls: ChatCompletionMessageToolCalls
    function_call: ChatCompletionResponseFunctionCall


class _ChatCompletionFunction(TypedDict):
    name: str
    parameters: dict[str, JsonType]


class ChatCompletionFunction(_ChatCompletionFunction, total=False):
    """A function that a model may call, with the JSON Schema of its arguments."""

    description: str


class ChatCompletionTopLogprobToken(TypedDict):
    """One of the most probable tokens."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatCompletionLogprobToken(ChatCompletionTopLogprobToken):
    """A token, and the most probable ones in its place."""

    top_logprobs: list[ChatCompletionTopLogprobToken]


class ChatCompletionLogprobs(TypedDict):
    """The logprobs of a chat completion."""

    content: list[ChatCompletionLogprobToken] | None
    refusal: list[ChatCompletionLogprobToken] | None


class ChatCompletionResponseChoice(TypedDict):
    """A message, and why it ends."""

    index: int
    message: ChatCompletionResponseMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: str | None


class CreateChatCompletionResponse(TypedDict):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: CompletionUsage


class ChatCompletionMessageToolCallChunkFunction(TypedDict):
    """The function of a tool call, and a piece of its arguments."""

    name: str | None
    arguments: str


class _ChatCompletionMessageToolCallChunk(TypedDict):
    index: int
    type: Literal["function"]
    function: ChatCompletionMessageToolCallChunkFunction


class ChatCompletionMessageToolCallChunk(_ChatCompletionMessageToolCallChunk, total=False):
    """A piece of a tool call."""

    id: str


class ChatCompletionStreamResponseDeltaEmpty(TypedDict):
    """Nothing more."""


class ChatCompletionStreamResponseDeltaFunctionCall(TypedDict):
    """A piece of a call of a function."""

    name: str
    arguments: str


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """A piece of a message."""

    content: str | None
    function_call: ChatCompletionStreamResponseDeltaFunctionCall | None
    tool_calls: list[ChatCompletionMessageToolCallChunk] | None
    role: Literal["system", "user", "assistant", "tool"] | None


class _ChatCompletionStreamResponseChoice(TypedDict):
    index: int
    delta: ChatCompletionStreamResponseDelta | ChatCompletionStreamResponseDeltaEmpty
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"] | None


class ChatCompletionStreamResponseChoice(_ChatCompletionStreamResponseChoice, total=False):
    """A piece of a message; the last one says why it ends."""

    logprobs: ChatCompletionLogprobs | None


class CreateChatCompletionStreamResponse(TypedDict):
    """A chunk of a chat completion."""

    id: str
    model: str
    object: Literal["chat.completion.chunk"]
    created: int
    choices: list[ChatCompletionStreamResponseChoice]


class ChatCompletionFunctionCallOption(TypedDict):
    """The function that the model must call."""

    name: str


class _ChatCompletionRequestResponseFormat(TypedDict):
    type: Literal["text", "json_object"]


class ChatCompletionRequestResponseFormat(_ChatCompletionRequestResponseFormat, total=False):
    """Text, or JSON: any object, or one that is valid under a JSON Schema."""

    schema: JsonType


class ChatCompletionRequestMessageContentPartText(TypedDict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class _ChatCompletionRequestMessageContentPartImageImageUrl(TypedDict):
    url: str


class ChatCompletionRequestMessageContentPartImageImageUrl(
    _ChatCompletionRequestMessageContentPartImageImageUrl, total=False
):
    """The address of a picture."""

    detail: Literal["auto", "low", "high"]


class ChatCompletionRequestMessageContentPartImage(TypedDict):
    """A part of a message that is a picture."""

    type: Literal["image_url"]
    image_url: str | ChatCompletionRequestMessageContentPartImageImageUrl


ChatCompletionRequestMessageContentPart = Union[  # noqa: UP007
    ChatCompletionRequestMessageContentPartText, ChatCompletionRequestMessageContentPartImage
]


class ChatCompletionRequestSystemMessage(TypedDict):
    """The system's message."""

    role: Literal["system"]
    content: str | None


class ChatCompletionRequestUserMessage(TypedDict):
    """A message of the user."""

    role: Literal["user"]
    content: str | list[ChatCompletionRequestMessageContentPart] | None


class ChatCompletionRequestAssistantMessageFunctionCall(TypedDict):
    """A call that an earlier message of the model has made."""

    name: str
    arguments: str


class _ChatCompletionRequestAssistantMessage(TypedDict):
    role: Literal["assistant"]


class ChatCompletionRequestAssistantMessage(_ChatCompletionRequestAssistantMessage, total=False):
    """An earlier message of the model."""

    content: str
    tool_calls: ChatCompletionMessageToolCalls
    function_call: ChatCompletionRequestAssistantMessageFunctionCall


class ChatCompletionRequestToolMessage(TypedDict):
    """The result of a tool call."""

    role: Literal["tool"]
    content: str | None
    tool_call_id: str


class ChatCompletionRequestFunctionMessage(TypedDict):
    """The result of a function."""

    role: Literal["function"]
    content: str | None
    name: str


ChatCompletionRequestMessage = Union[  # noqa: UP007
    ChatCompletionRequestSystemMessage,
    ChatCompletionRequestUserMessage,
    ChatCompletionRequestAssistantMessage,
    ChatCompletionRequestToolMessage,
    ChatCompletionRequestFunctionMessage,
]


class ChatCompletionRequestFunctionCallOption(TypedDict):
    """The function that the model must call."""

    name: str


ChatCompletionRequestFunctionCall = Union[Literal["none", "auto"], ChatCompletionRequestFunctionCallOption]  # noqa: UP007
ChatCompletionFunctionParameters = Dict[str, JsonType]  # noqa: UP006


class _ChatCompletionToolFunction(TypedDict):
    name: str
    parameters: ChatCompletionFunctionParameters


class ChatCompletionToolFunction(_ChatCompletionToolFunction, total=False):
    """The function of a tool, with the JSON Schema of its arguments."""

    description: str


class ChatCompletionTool(TypedDict):
    """A tool that a model may call."""

    type: Literal["function"]
    function: ChatCompletionToolFunction


class ChatCompletionNamedToolChoiceFunction(TypedDict):
    """The name of the function that the model must call."""

    name: str


class ChatCompletionNamedToolChoice(TypedDict):
    """The tool that the model must call."""

    type: Literal["function"]
    function: ChatCompletionNamedToolChoiceFunction


ChatCompletionToolChoiceOption = Union[Literal["none", "auto", "required"], ChatCompletionNamedToolChoice]  # noqa: UP007

# Further names of the same types.
EmbeddingData = Embedding
CompletionChunk = Completion = CreateCompletionStreamResponse = CreateCompletionResponse
ChatCompletionMessage = ChatCompletionResponseMessage
ChatCompletionChoice = ChatCompletionResponseChoice
ChatCompletion = CreateChatCompletionResponse
ChatCompletionChunkDeltaEmpty = ChatCompletionStreamResponseDeltaEmpty
ChatCompletionChunkChoice = ChatCompletionStreamResponseChoice
ChatCompletionChunkDelta = ChatCompletionStreamResponseDelta
ChatCompletionChunk = ChatCompletionStreamResponse = CreateChatCompletionStreamResponse
ChatCompletionResponseFunction = ChatCompletionFunctions = ChatCompletionFunction
ChatCompletionFunctionCall = ChatCompletionResponseFunctionCall
