"""The tokens of a prompt that a user typed, through the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offgrid_llama.errors import ChatTemplateError

from .exits import UsageError

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model

__all__ = ["prompt_tokens"]


def prompt_tokens(model: Model, prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """Return the tokens of a prompt: of the text itself with ``raw`` or without a chat template, else of a chat."""
    from offgrid_llama.chat.chat_formats import ChatFormats
    from offgrid_llama.chat.template.choice import has_template

    if raw or not has_template(model):
        if system is not None:
            why = "--raw uses none" if raw else f"{model.path.name} has none"
            raise UsageError(f"--system needs a chat template, and {why}")
        return model.vocab.tokenize(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    try:
        return ChatFormats(model).of().prompt([*messages, {"role": "user", "content": prompt}], False, {}).tokens
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error.message}. --raw uses the prompt without the template") from error
