"""EngineCalls: requests with one result about a worker's engine: its sequences, its adapters, its properties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.engine import Engine
from offgrid_llama.errors import StateError
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.sampling.sampling_params import SamplingParams

from .details import Told
from .failures import RequestError
from .fair_pool import FairPool
from .generation import Options

__all__ = ["EngineCalls"]


class EngineCalls:
    """Computes the result of a Call about an engine.

    Args:
        model: of the worker.
        engine: of the worker; None where the model does not generate.
        template: of conversations; None is the model's own.
        loras: the model's adapters, and their scales.
        sampling: SamplingParams for requests that do not set them.
        threads: for work that would block the event loop.

    Attributes:
        functions: by the name of the Call; they take the partition of the client, and the arguments of the Call.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine | None,
        template: ChatTemplate | None,
        loras: dict[LoRA, float],
        sampling: dict[str, Any],
        threads: FairPool,
    ) -> None:
        self._model = model
        self._engine = engine
        self._template = template
        self._loras = dict(loras)
        self._sampling = sampling
        self._threads = threads
        self.functions: dict[str, Callable[..., Awaitable[Any]]] = {
            name: partial(self._in_thread, function)
            for name, function in (
                ("props", self._props), ("slots", self._slots), ("save_slot", self._save), ("restore_slot", self._restore),
                ("erase_slot", self._erase), ("loras", self._adapters), ("set_loras", self._set_adapters),
            )
        }  # fmt: skip

    def _in_thread(self, function: Callable[..., Any], partition: str, **arguments: Any) -> Awaitable[Any]:
        return self._threads.run(partition, partial(function, partition, **arguments))

    def _the_engine(self) -> Engine:
        if self._engine is None:
            raise RequestError("this model makes vectors of texts, or ranks them; it does not write any", param="model")
        return self._engine

    def _props(self, _partition: str) -> dict[str, Any]:
        model, engine, vocab = self._model, self._engine, self._model.vocab
        found: dict[str, Any] = {
            "bos_token": _text(model, vocab.bos), "eos_token": _text(model, vocab.eos),
            "chat_template": self._template.source if self._template else model.chat_template() or "",
            "n_ctx": model.n_ctx_train if engine is None else engine.n_ctx_seq,
        }  # fmt: skip
        if engine is not None:
            media = engine.projector
            found["modalities"] = {name: media is not None and getattr(media, name) for name in ("vision", "audio")}
            params = SamplingParams(**self._sampling)
            found |= {"params": Told(engine, Options(), params, ()).used(), "n_slots": len(engine.sequences.views())}
        return found

    def _slots(self, _partition: str) -> list[dict[str, Any]]:
        return [asdict(view) for view in self._the_engine().sequences.views()]

    def _save(self, partition: str, seq_id: int, path: str) -> dict[str, Any]:
        return self._moved(self._the_engine().sequences.save, seq_id, path, partition)

    def _restore(self, partition: str, seq_id: int, path: str) -> dict[str, Any]:
        if not Path(path).is_file():
            raise RequestError(f"there is no file {Path(path).name!r}", param="filename")
        return self._moved(self._the_engine().sequences.load, seq_id, path, partition)

    def _erase(self, _partition: str, seq_id: int) -> dict[str, Any]:
        return self._moved(self._the_engine().sequences.erase, seq_id)

    def _moved(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            return asdict(function(*arguments))
        except (StateError, ValueError) as error:
            raise RequestError(getattr(error, "message", str(error)), param="id_slot") from error

    def _adapters(self, _partition: str) -> list[dict[str, Any]]:
        return [
            {
                "path": str(lora.path), "scale": scale, "invocation_tokens": [*lora.invocation_tokens],
                "invocation_text": "".join(_text(self._model, token) for token in lora.invocation_tokens),
            }
            for lora, scale in self._loras.items()
        ]  # fmt: skip

    def _set_adapters(self, _partition: str, scales: dict[int, float]) -> list[dict[str, Any]]:
        loras: Sequence[LoRA] = list(self._loras)
        if unknown := [number for number in scales if not 0 <= number < len(loras)]:
            raise RequestError(f"there is no adapter {unknown[0]}; this model has {len(loras)}", param="id")
        self._loras = {lora: scales.get(number, 0.0) for number, lora in enumerate(loras)}
        self._the_engine().set_loras(self._loras)
        return self._adapters(_partition)


def _text(model: Model, token: int | None) -> str:
    """Return a control token as text; "" for none."""
    return "" if token is None else model.vocab.piece(token, special=True).decode("utf-8", "replace")
