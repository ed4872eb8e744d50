"""Facts: what clients are told of models that are not loaded, read from the headers of their files.

``python -m offgrid_llama.worker.facts`` reads a request in JSON, writes the facts of each file as a line of it, and ends.
A hostile file ends this process and no other.
"""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from offgrid_llama.chat.reasoning import find_reasoning
from offgrid_llama.chat.template.template import ChatTemplate
from offgrid_llama.errors import ChatTemplateError
from offgrid_llama.files.architecture import HAS_ENCODER
from offgrid_llama.files.gguf import GGUF
from offgrid_llama.files.model_files import ModelFiles
from offgrid_llama.files.quantize_params import FTYPES

from .frames import Facts, FactsOf

__all__ = ["facts_of"]

_LONGEST_ARRAY = 5
"""Arrays with more items are left out: tokens and merges, which have tens of thousands."""
_TEMPLATE = "tokenizer.chat_template"
_MIDDLE = "tokenizer.ggml.fim_mid_token_id"
_MIDDLE_TOKENS = {
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\u2581<MID>", "<|code_middle|>",
    "<\uff5cfim\u2581end\uff5c>",
}  # fmt: skip
"""Tokens with which a model fills a gap, where its file does not say which one it is."""
_NO_POOLING = (0, -1, 2**32 - 1)
_FTYPE_NAMES = {number: name for name, number in FTYPES.items()}


def facts_of(file: str, template: str | None, projector: str | None = None) -> Facts:
    """Return the facts of a model's files.

    Args:
        file: the first one.
        template: the source of the chat template to use instead of the model's.
        projector: the file of what sees or hears for it.

    Raises GGUFError and OSError.
    """
    files = ModelFiles(file, download="never")
    with files.opened() as headers:
        header = headers[0]
        short = {key: header[key] for key in header if (header.array_length(key) or 0) <= _LONGEST_ARRAY}
        long: dict[str, Any] = {key: [] for key in header if key not in short}
        fills = _MIDDLE in short or not _MIDDLE_TOKENS.isdisjoint(_tokens(header))
        size = sum(each.identity.size for each in headers)
        n_ctx_train, n_embd = header.hparam("context_length"), header.hparam("embedding_length")
    template = _own_template(short) if template is None else template
    architecture = str(short.get("general.architecture", ""))
    makes_texts = _generates(short, architecture)
    sees, hears, speaks = _senses(projector if makes_texts else None)
    generates = makes_texts and not speaks
    return Facts(
        size=size, digest=hashlib.sha256(files.fingerprint({}).encode()).hexdigest(), architecture=architecture,
        file_type=_FTYPE_NAMES.get(_number(short.get("general.file_type")), ""),
        n_params=sum(tensor.n_elements for tensor in files.tensors.values()), n_ctx_train=n_ctx_train, n_embd=n_embd,
        template=template, metadata={**short, **long}, generates=generates, chats=generates and bool(template),
        reasons=generates and _reasons(template), fills=generates and fills,
        embeds=not makes_texts or _number(short.get(f"{architecture}.pooling_type", 0)) not in _NO_POOLING,
        sees=sees, hears=hears, speaks=speaks,
    )  # fmt: skip


def _own_template(short: dict[str, Any]) -> str:
    """Take the template of a model out of its metadata, which need not tell it twice."""
    return str(short.pop(_TEMPLATE, "") or short.pop(f"{_TEMPLATE}.tool_use", "") or "")


def _tokens(header: Mapping[str, Any]) -> list[str]:
    tokens = header.get("tokenizer.ggml.tokens", [])
    return tokens if isinstance(tokens, list) else []


def _generates(metadata: Mapping[str, Any], architecture: str) -> bool:
    return metadata.get(f"{architecture}.attention.causal") is not False and architecture not in HAS_ENCODER


def _senses(projector: str | None) -> tuple[bool, bool, bool]:
    """Return whether it sees, hears and speaks. Where it speaks, its encoder of sound is for voices."""
    if projector is None:
        return False, False, False
    with GGUF(projector) as header:
        sees, hears, speaks = (
            header.get(f"clip.has_{name}_encoder") is True for name in ("vision", "audio", "gen_audio")
        )
        return sees, hears and not speaks, speaks


def _reasons(source: str) -> bool:
    try:
        return bool(source) and find_reasoning(ChatTemplate(source)) is not None
    except ChatTemplateError:
        return False


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


def main() -> None:
    """Answer the request of standard input."""
    for asked in msgspec.json.decode(sys.stdin.buffer.read(), type=list[FactsOf]):
        try:
            told: Facts | str = facts_of(asked.file, asked.template, asked.projector)
        except Exception as error:
            told = f"{type(error).__name__}: {error}".partition("\n")[0]
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
