"""The tokens of a prompt that a user typed, through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offgrid_llama.errors import ChatTemplateError

from .exits import UsageError

if TYPE_CHECKING:
    from offgrid_llama.chat.chat_format import Prompt
    from offgrid_llama.media.audio import Audio
    from offgrid_llama.media.image import Image
    from offgrid_llama.media.projector import Media
    from offgrid_llama.model.model import Model

__all__ = ["media_prompt", "prompt_tokens"]


def prompt_tokens(model: Model, prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """Return the tokens of a prompt: of the text itself with ``raw`` or without a chat template, else of a chat."""
    if _is_raw(model, system, raw):
        return model.vocab.tokenize(prompt)
    return _chat(model, prompt, system).token_ids


def media_prompt(
    model: Model, prompt: str, media: Sequence[Media], *, system: str | None, raw: bool
) -> list[int | Image | Audio]:
    """Return such a prompt with pictures and sounds before its text: token ids, and the pictures and sounds themselves."""
    vocab = model.vocab
    if _is_raw(model, system, raw):
        bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
        return [*bos, *media, *vocab.tokenize(prompt, add_special=False)]
    return _chat(model, [*media, {"type": "text", "text": prompt}], system).tokens


def _is_raw(model: Model, system: str | None, raw: bool) -> bool:
    """Return whether a prompt goes to the model as it is: with ``raw``, or without a chat template."""
    from offgrid_llama.chat.template.choice import has_template

    if not raw and has_template(model):
        return False
    if system is not None:
        why = "--raw uses none" if raw else f"{model.path.name} has none"
        raise UsageError(f"--system needs a chat template, and {why}")
    return True


def _chat(model: Model, content: str | Sequence[object], system: str | None) -> Prompt:
    from offgrid_llama.chat.chat_formats import ChatFormats

    messages = [{"role": "system", "content": system}] if system is not None else []
    try:
        return ChatFormats(model).of().prompt([*messages, {"role": "user", "content": content}], False, {})
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error.message}. --raw uses the prompt without the template") from error
