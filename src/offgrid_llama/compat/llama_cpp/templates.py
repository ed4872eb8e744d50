"""The chat templates of a model's file, as handlers of chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import llama_chat_format

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model

__all__ = ["format_of", "handlers_of"]

KEY = "tokenizer.chat_template"
DEFAULT, FALLBACK = "chat_template.default", "llama-2"


def handlers_of(weights: Model) -> dict[str, Any]:
    """Return the handlers of the templates in a model's file, by their names there."""
    vocab = weights.vocab
    found = {
        name.removeprefix("tokenizer."): text for name, text in weights.metadata.items() if name.startswith(KEY + ".")
    }
    if KEY in weights.metadata:
        found[DEFAULT] = weights.metadata[KEY]
    eos, bos = ("" if token is None else vocab.text(token) for token in (vocab.eos, vocab.bos))
    stop = [] if vocab.eos is None else [vocab.eos]
    return {
        name: llama_chat_format.Jinja2ChatFormatter(
            template=text, eos_token=eos, bos_token=bos, stop_token_ids=stop
        ).to_chat_handler()
        for name, text in found.items()
    }  # fmt: skip


def format_of(metadata: Mapping[str, str]) -> str:
    """Return the name of the format that a model's file asks for: one that is known by name, or its own template."""
    if KEY not in metadata:
        return FALLBACK
    return llama_chat_format.guess_chat_format_from_gguf_metadata(dict(metadata)) or DEFAULT
