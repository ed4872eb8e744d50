"""From what a user types to the tokens of a prompt, through the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ChatTemplateError
from .exits import UsageError

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["prompt_tokens"]


def prompt_tokens(model: Model, prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """Return the tokens of the prompt: as it is with ``raw`` or where the model has no chat template, else as a chat."""
    source = None if raw else model.chat_template()
    vocab = model.vocab
    if source is None:
        if system is not None:
            why = "--raw uses none" if raw else f"{model.path.name} has none"
            raise UsageError(f"--system needs a chat template, and {why}")
        return vocab.tokenize(prompt)

    from ..chat import ChatTemplate
    from ..chat import prompt as of_parts

    messages = [{"role": "system", "content": system}] if system is not None else []
    try:
        parts = ChatTemplate.of(model, source).parts([*messages, {"role": "user", "content": prompt}])
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error.message}. --raw uses the prompt as it is") from error
    return of_parts.prompt_tokens(vocab, parts)
