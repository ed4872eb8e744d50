"""What ``Llama`` has as ``_model`` and ``_ctx``: pointers for the raw layer, to objects that it owns itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from . import library
from . import llama_cpp as raw
from ._internals import LlamaContext, LlamaModel, without_first_space

if TYPE_CHECKING:
    from offgrid_llama.context.context import Context
    from offgrid_llama.model.model import Model
    from offgrid_llama.model.params import ContextParams, ModelParams

__all__ = ["GuardedModel", "context_of", "model_of", "struct_of"]


class GuardedModel(LlamaModel):
    """A LlamaModel of a Model, whose tokenizer is that of the Model: it raises where llama.cpp would end the process."""

    _weights: Model

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Return the tokens of a text."""
        return self._weights.vocab.tokenize(text, add_special=add_bos, parse_special=special)

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that a token stands for."""
        return self._weights.vocab.piece(token, special=special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """Return the bytes of tokens, without the space that follows a first token that begins a text."""
        text = b"".join(self._weights.vocab.piece(token, special=special) for token in tokens)
        return without_first_space(text, tokens, self.token_bos())


def model_of(weights: Model, verbose: bool) -> GuardedModel:
    """Return the LlamaModel of a Model."""
    params = struct_of(raw.llama_model_default_params(), weights.params)
    made = cast("GuardedModel", GuardedModel.borrowed(library.address(weights), str(weights.path), params, verbose))
    made._weights = weights
    return made


def context_of(context: Context, model: LlamaModel) -> LlamaContext:
    """Return the LlamaContext of a Context."""
    params = struct_of(raw.llama_context_default_params(), context.params)
    return LlamaContext.borrowed(library.address(context), model, params, model.verbose)


def struct_of(struct: Any, params: ContextParams | ModelParams) -> Any:
    """Return a struct of llama.h with the numbers of a dataclass of ours."""
    for name, _ in struct._fields_:
        value = getattr(params, name, None)
        if isinstance(value, (bool, int, float)):
            setattr(struct, name, value)
    return struct
