"""OpenAI's API: embeddings."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from offgrid_llama.server.api_error import ApiError

from .openai_schemas import EmbeddingRequest

__all__ = ["AskedVectors", "read_embedding"]


@dataclass(frozen=True)
class AskedVectors:
    """A request of ``/v1/embeddings``.

    Attributes:
        model: that the client named, or None.
        texts: each as text or token ids.
        dimensions: values of a vector that the client wants; None is as many as the model has.
        as_base64: whether vectors are written as base64, not as numbers.
    """

    model: str | None
    texts: list[Any]
    dimensions: int | None
    as_base64: bool

    def arguments(self, matryoshka: bool | Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the Call "embed".

        Args:
            matryoshka: as ModelSettings has it.
        """
        if self.dimensions is None:
            return {"texts": self.texts}
        numbers = matryoshka if isinstance(matryoshka, bool) else list(matryoshka)
        return {"texts": self.texts, "n_values": self.dimensions, "matryoshka": numbers}

    def body(self, found: dict[str, Any], model: str) -> dict[str, Any]:
        """Return the body of the response.

        Args:
            found: that the Call has returned.
            model: the name of the model that answered.

        Raises ApiError where the vectors have fewer values than the client wants.
        """
        n_embd, data, n_tokens = found["n_embd"], found["data"], found["n_tokens"]
        if self.dimensions not in (None, n_embd):
            message = f"dimensions: {model} has vectors of {n_embd} values only"
            raise ApiError(400, message, code="invalid_value", param="dimensions")
        encode = _as_base64 if self.as_base64 else _as_numbers
        rows = [data[at : at + 4 * n_embd] for at in range(0, len(data), 4 * n_embd)]
        return {
            "object": "list", "model": self.model or model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "data": [{"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(rows)],
        }  # fmt: skip


def read_embedding(body: EmbeddingRequest) -> AskedVectors:
    """Return what a request asks for."""
    single = isinstance(body.input, str) or isinstance(body.input[0], int)
    texts: list[Any] = [body.input] if single else list(body.input)
    return AskedVectors(body.model, texts, body.dimensions, body.encoding_format == "base64")


def _as_base64(row: bytes) -> str:
    return base64.b64encode(row).decode()


def _as_numbers(row: bytes) -> list[float]:
    return array("f", row).tolist()
