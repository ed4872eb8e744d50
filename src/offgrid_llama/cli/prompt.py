"""From what a user types to the tokens of a prompt, through the model's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ChatTemplateError
from ..params import TokenAttr
from .exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..chat import Part
    from ..model import Model
    from ..vocab import Vocab

__all__ = ["prompt_tokens", "tokenize_parts"]


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

    def text(token: int | None) -> str:
        return "" if token is None else vocab.text(token)

    template = ChatTemplate(source, bos_token=text(vocab.bos), eos_token=text(vocab.eos), name=model.path.name)
    messages = [{"role": "system", "content": system}] if system is not None else []
    try:
        parts = template.parts([*messages, {"role": "user", "content": prompt}])
    except ChatTemplateError as error:
        raise ChatTemplateError(f"{error.message}. --raw uses the prompt as it is") from error
    return tokenize_parts(vocab, parts)


def tokenize_parts(vocab: Vocab, parts: Iterable[Part]) -> list[int]:
    """Return the tokens of a rendered template: control tokens where it has them, and none in the user's own text.

    All text between two control tokens is tokenized as one, whoever wrote it: a word that begins in the template and
    ends in a message is cut as it was in training.
    """
    tokens: list[int] = []
    text = ""

    def flush() -> None:
        nonlocal text
        if text:
            tokens.extend(vocab.tokenize(text, add_special=False))
        text = ""

    for part in parts:
        rest = part.text
        if part.special:
            for token in vocab.tokenize(rest, add_special=False, parse_special=True):
                if not vocab.is_control(token):
                    continue
                before, found, after = rest.partition(vocab.text(token))
                if not found:  # its neighbour took it
                    continue
                attr = vocab.attr(token)
                text += before.rstrip() if attr & TokenAttr.LSTRIP else before
                flush()
                tokens.append(token)
                rest = after.lstrip() if attr & TokenAttr.RSTRIP else after
        text += rest
    flush()
    if vocab.add_bos and vocab.bos is not None and tokens[:1] != [vocab.bos]:
        tokens.insert(0, vocab.bos)
    return tokens
