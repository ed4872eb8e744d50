"""Encoder: the thread that encodes pictures and sounds beside the steps of an engine, and keeps their embeddings."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ClosedError
from offgrid_llama.media.projector import Projector
from offgrid_llama.native.kinds import path_of

from .planning.media_tokens import Chunk, MediaHeads, next_chunk
from .yielding import yield_to_others

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.media.chunk import Chunks, MediaChunk
    from offgrid_llama.model.model import Model

    from .media_prompt import Part
    from .request import EngineRequest

__all__ = ["Encoder", "encoder_of"]

MAX_EMBEDDING_BYTES = 2**28
"""Bytes of embeddings that are kept for later prompts. Those that a request waits for come on top."""


class Encoder:
    """Encodes what requests wait for, each picture once for all of them, in the order in which they began to wait.

    Args:
        projector: the Projector.
        max_bytes: MAX_EMBEDDING_BYTES.

    Attributes:
        projector: as given.
        on_done: called in the encoder's thread when embeddings are there, or have failed; the loop sets it.
        n_encoded: chunks that were encoded.
    """

    def __init__(self, projector: Projector, max_bytes: int = MAX_EMBEDDING_BYTES) -> None:
        self.projector = projector
        self.on_done: Callable[[], object] = lambda: None
        self.n_encoded = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # for all below
        self._heads = MediaHeads()
        self._embeddings: OrderedDict[int, npt.NDArray[np.float32]] = OrderedDict()  # the least recently used first
        self._n_bytes = 0
        self._failed: dict[int, Exception] = {}
        self._wanted: dict[EngineRequest, tuple[int, ...]] = {}  # the heads that a request needs next
        self._queued: set[int] = set()
        self._jobs: SimpleQueue[tuple[int, Part] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    # From any thread --------------------------------------------------------------------------------------------------

    def head(self, chunk: MediaChunk) -> int:
        """Return the media token that begins a chunk of this content."""
        with self._lock:
            return self._heads.of((chunk.id, chunk.index))

    def has(self, head: int) -> bool:
        """Return whether the embeddings of a chunk are there."""
        return head in self._embeddings

    # From the engine's thread -----------------------------------------------------------------------------------------

    def want(self, request: EngineRequest, chunk: Chunk) -> Exception | None:
        """Have a chunk of a request's prompt encoded, and the next one. Returns why it cannot be, if it has failed."""
        media = request.media
        if media is None:
            return None
        after = next_chunk(media.chunks, chunk.end)
        chunks = [chunk] if after is None else [chunk, after]
        with self._lock:
            self._wanted[request] = tuple(each.head for each in chunks)
            for each in chunks:
                if not self.has(each.head) and each.head not in self._queued and each.head not in self._failed:
                    self._queued.add(each.head)
                    self._jobs.put((each.head, media.part(each)))
            failure = self._failed.get(chunk.head)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="offgrid_llama encoder", daemon=True)
                self._thread.start()
        return failure

    def embeddings(self, head: int) -> npt.NDArray[np.float32]:
        """Return the embeddings of a chunk, float32[n_tokens, n_embd], which are there."""
        with self._lock:
            self._embeddings.move_to_end(head)
            return self._embeddings[head]

    def make_room(self) -> None:
        """Forget the embeddings used least recently that no request waits for; before a step is planned that reads some."""
        if self._n_bytes > self._max_bytes:
            with self._lock:
                pinned = self._pinned()
                for head in [head for head in self._embeddings if head not in pinned]:
                    if self._n_bytes <= self._max_bytes:
                        break
                    self._n_bytes -= self._embeddings.pop(head).nbytes

    def forget(self, request: EngineRequest) -> None:
        """Take that a request needs no more embeddings."""
        with self._lock:
            gone = self._wanted.pop(request, ())
            left = self._pinned()
            for head in gone:
                if head not in left:
                    self._failed.pop(head, None)

    def close(self) -> None:
        """End the thread, after what it encodes now."""
        with self._lock:
            self._wanted.clear()
            thread, self._thread = self._thread, None
        self._jobs.put(None)
        if thread is not None:
            thread.join()
        self._embeddings.clear()

    # In its own thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        yield_to_others()
        chunks: Chunks | None = None
        while (job := self._jobs.get()) is not None:
            head, part = job
            with self._lock:
                is_wanted = head in self._pinned()
            found: npt.NDArray[np.float32] | Exception | None = None
            if is_wanted:
                if chunks is not None and chunks.media[0].id != part.media.id:
                    chunks.close()
                    chunks = None
                try:
                    chunks = chunks or self.projector.tokenize([part.media], add_special=False)
                    found = self.projector.encode(chunks.media[part.index])
                except Exception as error:
                    found = error
            self._put(head, found)
            if self._jobs.empty() and chunks is not None:
                chunks.close()
                chunks = None
        if chunks is not None:
            chunks.close()

    def _put(self, head: int, found: npt.NDArray[np.float32] | Exception | None) -> None:
        """Take what has become of a job; None is nothing, as no request waits for it any more."""
        with self._lock:
            self._queued.discard(head)
            if isinstance(found, Exception):
                self._failed[head] = found
            elif found is not None:
                self._embeddings[head] = found
                self._n_bytes += found.nbytes
                self.n_encoded += 1
        with suppress(ClosedError):
            self.on_done()

    def _pinned(self) -> set[int]:
        return {head for heads in self._wanted.values() for head in heads}


def encoder_of(
    model: Model, given: Projector | str | os.PathLike[str] | None, loaded: list[Any]
) -> tuple[Projector | None, Encoder | None]:
    """Return a Projector of a model, and an Encoder with it; one that is loaded here is put first into ``loaded``.

    Raises ValueError for that of another Model, and as Projector does.
    """
    if given is None:
        return None, None
    if not isinstance(given, Projector):
        given = Projector(model, path_of("projector", given))
        loaded.insert(0, given)
    elif given.model is not model:
        raise ValueError(f"{given.handle.name} is that of another Model; load it for this one")
    return given, Encoder(given)
