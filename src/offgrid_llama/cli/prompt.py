"""The tokens of a prompt that a user typed, through the model's chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from secrets import token_hex
from typing import TYPE_CHECKING

from offgrid_llama.errors import ChatTemplateError

from .exits import UsageError

if TYPE_CHECKING:
    from offgrid_llama.chat.template.template import PromptPart as RenderedPart
    from offgrid_llama.media.projector import Media, PromptPart
    from offgrid_llama.model.model import Model

__all__ = ["media_prompt", "prompt_tokens"]


def prompt_tokens(model: Model, prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """Return the tokens of a prompt: of the text itself with ``raw`` or without a chat template, else of a chat."""
    parts = _rendered(model, prompt, system, raw)
    return model.vocab.tokenize(prompt) if parts is None else _tokens(model, parts)


def media_prompt(
    model: Model, prompt: str, media: Sequence[Media], *, system: str | None, raw: bool
) -> list[PromptPart]:
    """Return such a prompt with pictures and sounds before its text: token ids, and the pictures and sounds themselves."""
    vocab = model.vocab
    marks = [token_hex(16) for _ in media]  # where they stand in what the template writes
    parts = _rendered(model, "".join(marks) + prompt, system, raw)
    if parts is None:
        bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
        return [*bos, *media, *vocab.tokenize(prompt, add_special=False)]
    pieces = list(_split(parts, marks))
    if len(pieces) != len(media) + 1:
        raise ChatTemplateError(
            f"the template of {model.path.name} shows no place for pictures and sounds; --raw uses none"
        )
    found: list[PromptPart] = [*_tokens(model, pieces[0])]
    for each, piece in zip(media, pieces[1:], strict=True):
        tokens = _tokens(model, piece)
        has_bos = vocab.add_bos and tokens[:1] == [vocab.bos]
        found += [each, *tokens[has_bos:]]
    return found


def _rendered(model: Model, prompt: str, system: str | None, raw: bool) -> list[RenderedPart] | None:
    """Return the parts that the chat template writes of a prompt; None with ``raw`` or without a chat template."""
    from offgrid_llama.chat.chat_formats import ChatFormats
    from offgrid_llama.chat.template.choice import has_template

    if raw or not has_template(model):
        if system is not None:
            why = "--raw uses none" if raw else f"{model.path.name} has none"
            raise UsageError(f"--system needs a chat template, and {why}")
        return None
    messages = [{"role": "system", "content": system}] if system is not None else []
    try:
        return ChatFormats(model).of().parts([*messages, {"role": "user", "content": prompt}], {})
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error.message}. --raw uses the prompt without the template") from error


def _tokens(model: Model, parts: Sequence[RenderedPart]) -> list[int]:
    from offgrid_llama.chat.prompt import prompt_tokens as tokens_of

    return tokens_of(model.vocab, parts)


def _split(parts: Sequence[RenderedPart], marks: Sequence[str]) -> Iterator[list[RenderedPart]]:
    """Yield the parts before, between and behind the marks, which come in this order; a part may have several."""
    left = list(marks)
    piece: list[RenderedPart] = []
    for part in parts:
        rest = part.text
        while left and left[0] in rest:
            before, _, rest = rest.partition(left.pop(0))
            yield [*piece, part._replace(text=before)]
            piece = []
        piece.append(part._replace(text=rest))
    yield piece
