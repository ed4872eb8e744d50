"""The answers of an Engine as LiteLLM has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from litellm.types.utils import Choices, Message, ModelResponse, ModelResponseStream, StreamingChoices, Usage
from litellm.types.utils import Delta as Said

from offgrid_llama.integrations.logprobs import told_logprobs

if TYPE_CHECKING:
    from typing_extensions import Self

    from offgrid_llama.engine.chat_completion import ChatCompletion, Delta
    from offgrid_llama.engine.prompt_logprobs import TokenLogprobs
    from offgrid_llama.model.vocab import Vocab

__all__ = ["Answers"]


class Answers:
    """The answers to a conversation, whole or as they come. When its ``with`` block ends, what still runs is cancelled.

    Args:
        completion: the engine's.
        model: the name under which LiteLLM knows the model.
        vocab: the model's.

    Attributes:
        completion: as given.
    """

    def __init__(self, completion: ChatCompletion[Any], model: str, vocab: Vocab) -> None:
        self.completion = completion
        self._model = model
        self._vocab = vocab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.completion.cancel()

    def response(self, response: ModelResponse) -> ModelResponse:
        """Return the response that LiteLLM has made, with the answers, which have ended."""
        response.model = self._model
        response.choices = [self._choice(index) for index in range(len(self.completion.completion.answers))]
        response.usage = self._usage()
        return response

    def _choice(self, index: int) -> Choices:
        told, answer = self.completion.message(index), self.completion.completion.answers[index]
        calls = told.get("tool_calls")
        thought = {"reasoning_content": told["reasoning_content"]} if "reasoning_content" in told else {}
        content = told["content"] if told["content"] or not calls else None
        return Choices(
            finish_reason=_reason(self.completion.finish_reason_of(index)),
            index=index,
            message=Message(content=content, role="assistant", tool_calls=calls, **thought),
            **self._logprobs(answer.tokens, answer.logprobs),
        )

    def chunks(self, delta: Delta) -> Iterator[ModelResponseStream]:
        """Yield some of an answer as LiteLLM's chunks: what is said, the numbers of tokens, and why it has ended."""
        told: dict[str, Any] = {"role": "assistant", "content": delta.content or None}
        if delta.reasoning:
            told["reasoning_content"] = delta.reasoning
        if delta.tool_calls:
            told["tool_calls"] = [
                {
                    "id": call.id or None, "type": "function", "index": call.index,
                    "function": {"name": call.name or None, "arguments": call.arguments},
                }
                for call in delta.tool_calls
            ]  # fmt: skip
        if delta.content or len(told) > 2:
            yield self._chunk(Said(**told), **self._logprobs(delta.tokens, delta.logprobs))
        if delta.finish_reason is not None:
            last = self._chunk(Said(content=""), finish_reason=_reason(delta.finish_reason))
            last.usage = self._usage()
            yield last

    def _chunk(self, delta: Said, **of_choice: Any) -> ModelResponseStream:
        return ModelResponseStream(model=self._model, choices=[StreamingChoices(index=0, delta=delta, **of_choice)])

    def _usage(self) -> Usage:
        usage = self.completion.usage
        n_thought = sum(map(self.completion.reasoning_tokens, range(len(self.completion.completion.answers))))
        return Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details={"cached_tokens": usage.cached_tokens},
            completion_tokens_details={"reasoning_tokens": n_thought},
        )

    def _logprobs(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Return the logprobs of a choice, where they are asked for."""
        found = told_logprobs(self._vocab, tokens, logprobs)
        return {} if found is None else {"logprobs": found}


def _reason(reason: Any) -> str:
    """Return why an answer has ended in LiteLLM's words, which know nothing of cancelled ones."""
    return str(reason) if reason in ("stop", "length", "tool_calls") else "stop"
