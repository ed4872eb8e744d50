"""Context: the state of a computation over a Model, and the calls that compute (``llama_context``)."""

from __future__ import annotations

import threading
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ._callbacks import forget_log, pending
from ._capi import ffi, lib
from ._check import decoded, not_null, number, raise_caught, sequence
from ._handle import Handle, Owner
from .errors import ContextError
from .feasibility import check_context
from .memory import Memory
from .params import (
    AttentionType,
    ContextParams,
    FlashAttention,
    PoolingType,
    RopeScaling,
    member,
)
from .perf import ContextPerf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from .adapter import ControlVector, LoRA
    from .batch import Batch
    from .logits import Logits
    from .model import Model
    from .state import Snapshot, State
    from .threadpool import ThreadPool

__all__ = ["Context"]

DEFAULT_N_CTX = 4096
_MAIN_THREAD = threading.main_thread().ident
_NODES_OF_A_TURN = 16  # of a layer, at most, when keys are turned: 5 where they are quantized, in one or two caches


class Context(Owner):
    """A KV cache and the buffers to compute with. One thread computes at a time; others wait for their turn.

    Args:
        model: the Model; the context is its child and is closed with it.
        n_ctx: positions in all sequences together. None is the model's training length, 4,096 at most. Without
            ``kv_unified`` each sequence gets ``n_ctx / n_seq_max``.
        n_batch: most tokens of one decode. n_ubatch: most tokens that are computed at once (a micro-batch).
        n_seq_max: sequences, 1 to 256.
        n_outputs_max: most rows with logits in one decode; 0 is ``n_batch``. Few save memory with a large vocabulary.
        n_threads: threads for one token; None is the number of physical cores.
        n_threads_batch: threads for more than one token; None is ``n_threads``.
        threadpool: a ThreadPool that several contexts share; it has at least as many threads, and is the default for how
            many.
        type_k, type_v: types of the KV cache: "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl".
            A quantized ``type_v`` needs flash attention.
        flash_attn_type: "auto", "enabled" or "disabled".
        kv_unified: one buffer for all sequences: shared prefixes share cells, and a sequence may use all of n_ctx.
        swa_full: keep the whole context of sliding-window layers, so that sequences can be trimmed.
        embeddings: compute embeddings as well; pooled ones of several sequences need ``kv_unified``.
        pooling_type, attention_type: for embedding models.
        rope_scaling_type, rope_freq_base, rope_freq_scale: RoPE; 0 and "unspecified" are the model's own.
        offload_kqv, op_offload: keep the KV cache, and run large operations, on the GPU where there is one.
        no_perf: False measures time for ``perf()``.

    Raises:
        ContextError: llama.cpp refused, or the KV cache is larger than this machine's memory.
        ClosedError: the model is closed.

    Attributes:
        model: the Model.
        memory: the Memory, borrowed.
        params: the ContextParams.
        pooling_type: how embeddings are pooled, resolved: the model's own where none was asked for.
        n_ctx, n_ctx_seq, n_batch, n_ubatch, n_seq_max: what llama.cpp made of them; ``n_ctx_seq`` is for one sequence.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int | None = None,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_outputs_max: int = 0,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        threadpool: ThreadPool | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        flash_attn_type: FlashAttention | str = FlashAttention.AUTO,
        kv_unified: bool = False,
        swa_full: bool = True,
        embeddings: bool = False,
        pooling_type: PoolingType | str = PoolingType.UNSPECIFIED,
        attention_type: AttentionType | str = AttentionType.UNSPECIFIED,
        rope_scaling_type: RopeScaling | str = RopeScaling.UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        offload_kqv: bool = True,
        op_offload: bool = True,
        no_perf: bool = True,
    ) -> None:
        model._handle.check_open()
        if model.params.vocab_only:
            raise ContextError(f"{model._handle.name} has no weights to compute with: vocab_only=True")
        if n_ctx is None:
            n_ctx = min(model.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        if threadpool is not None and n_threads is None:
            n_threads = threadpool.n_threads
        self.model: Model = model
        self.params: ContextParams = ContextParams(
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max, n_outputs_max=n_outputs_max,
            n_threads=n_threads, n_threads_batch=n_threads_batch, type_k=type_k, type_v=type_v,
            flash_attn_type=member("flash_attn_type", flash_attn_type, FlashAttention),
            kv_unified=kv_unified, swa_full=swa_full, embeddings=embeddings,
            pooling_type=member("pooling_type", pooling_type, PoolingType),
            attention_type=member("attention_type", attention_type, AttentionType),
            rope_scaling_type=member("rope_scaling_type", rope_scaling_type, RopeScaling),
            rope_freq_base=rope_freq_base, rope_freq_scale=rope_freq_scale,
            offload_kqv=offload_kqv, op_offload=op_offload, no_perf=no_perf,
        )  # fmt: skip
        check_context(model, self.params)
        self._threadpool = threadpool
        self._refuse_threads(self.params)

        cancel = ffi.new("og_cancel *")  # ggml reads it between the nodes of a graph, as long as the context lives
        c_params = self.params.to_c()
        c_params.abort_callback = ffi.addressof(lib, "og_should_abort")
        c_params.abort_callback_data = cancel
        self._loras: dict[LoRA, tuple[Any, float]] = {}  # in use, with pointer and scale; held, as llama.h reads them
        self._open(c_params, cancel)
        self._cancel = cancel
        self._step = 0  # counts the calls that overwrite the outputs
        self._rows: frozenset[int] = frozenset()  # what llama.h may be asked for
        self._encoded: frozenset[int] = frozenset()  # the sequences whose text the encoder has read
        self._adapters: dict[str, float] = {}  # fingerprints and scales of what changes the results
        self._snapshots: dict[int, Snapshot] = {}  # those that llama.cpp still has
        self._moving = 0  # what memory leaves to the next decode: TURNING, COPYING
        self._copying: set[tuple[int, int]] = set()  # from which sequence to which
        with self._handle as ptr:  # another thread may close the model by now
            self.n_ctx: int = lib.llama_n_ctx(ptr)
            self.n_ctx_seq: int = lib.llama_n_ctx_seq(ptr)
            self.n_batch: int = lib.llama_n_batch(ptr)
            self.n_ubatch: int = lib.llama_n_ubatch(ptr)
            self.n_seq_max: int = lib.llama_n_seq_max(ptr)
            self.pooling_type = PoolingType(lib.llama_pooling_type(ptr))
            self._pooled = self.params.embeddings and self.pooling_type is not PoolingType.NONE
            # Such a batch cannot be split into micro-batches.
            self._whole = self._pooled or not lib.llama_get_causal_attn(ptr)
        self._n_outputs_max = self.params.n_outputs_max or self.n_batch
        self.memory = Memory(self)

    def _open(self, c_params: Any, cancel: Any) -> None:
        loras = self._loras

        def free(ptr: Any) -> None:
            lib.llama_free(ptr)
            lib.og_release_threads()
            loras.clear()

        def request_stop() -> None:
            cancel.requested = 1

        forget_log()
        model = self.model._handle
        with model as model_ptr:
            ptr = not_null(
                lib.llama_init_from_model(model_ptr, c_params),
                lambda log: ContextError(f"no context could be made for {model.name}", log=log),
                lib.llama_free,
            )
            # llama.cpp looks at the pool as long as the context lives.
            pool = () if self._threadpool is None else (self._threadpool._handle,)
            name = f"Context of {model.name}"
            self._own(Handle(name, ptr, free, model, *pool, cancel=request_stop, exclusive=True))
            for handle in pool:
                with handle as pool_ptr:
                    lib.llama_attach_threadpool(ptr, pool_ptr, pool_ptr)

    def decode(self, batch: Batch) -> None:
        """Compute a batch and add it to the memory (``llama_decode``). Its rows with ``logits=True`` can be read then.

        Ctrl-C, ``cancel()`` and ``close()`` stop it between two operations, on the CPU within some milliseconds.

        Raises:
            ValueError: the batch is empty, too long, or has tokens or sequences that the context does not.
            NoKVSlot, Aborted, InvalidBatch, DecodeFailed: see DecodeError for what memory holds then.
        """
        self._decode(batch, lib.llama_decode)

    def _decode(self, batch: Batch, function: Callable[[Any, Any], int]) -> None:
        if self.model.has_encoder:
            if not self.model.has_decoder:
                raise ContextError(f"{self._handle.name}: the model has no decoder; use encode()")
            unread = batch._seq_ids() - self._encoded
            if unread:
                raise ContextError(
                    f"{self._handle.name}: the decoder of sequence {min(unread)} has nothing to read; call encode() first, "
                    "with its text in that sequence"
                )
        self._compute(batch, function, "llama_decode", self._whole or not self.memory._ptr)

    def encode(self, batch: Batch) -> None:
        """Run a batch through the encoder, for the decoder to read (``llama_encode``).

        The decoder of a sequence reads what this batch has for that sequence, until the next ``encode``. It is no part of
        a saved state.

        Raises ContextError for a model without an encoder, and otherwise as ``decode`` does.
        """
        if not self.model.has_encoder:
            raise ContextError(f"{self._handle.name}: the model has no encoder; use decode()")
        if self.model.has_decoder and self._pooled:
            raise ContextError(f'{self._handle.name}: the decoder reads each row; make it with pooling_type="none"')
        self._encoded = frozenset()
        self._compute(batch, lib.llama_encode, "llama_encode", True)
        self._encoded = frozenset(batch._seq_ids())

    def _compute(self, batch: Batch, function: Callable[[Any, Any], int], name: str, whole: bool) -> None:
        # After a step the caches hold weights: each object that is touched here costs a visit to memory.
        with self._handle as ptr:
            batch._readers.append(self)  # contexts in several threads may decode the same batch
            try:
                self._check_batch(batch, whole)
                cancel = self._cancel
                cancel.requested = 0
                self._handle.check_open()  # a close() that has asked to stop before the line above
                cancel.poll_signals = get_ident() == _MAIN_THREAD
                forget_log()
                # Whatever happens from here on, the rows of the step before are gone.
                self._step += 1
                self._rows = frozenset(range(len(batch)) if self.params.embeddings else batch._rows)
                moving, self._moving = self._moving, 0
                if moving:  # llama.cpp would begin again with keys that were half turned
                    cancel.deaf = _NODES_OF_A_TURN * self.model.n_layer
                if self._threadpool is None:
                    code = function(ptr, batch._c[0])
                else:
                    with self._threadpool._handle:
                        code = function(ptr, batch._c[0])
                if moving:
                    cancel.deaf = 0
                    if code >= 0:
                        self._copying.clear()
                if code or pending:
                    self._rows = frozenset()
                    self._moving = moving if code < 0 else 0
                    if code == 2 or code < -1:
                        self._forget_unfinished(batch)
                    decoded(code, name, len(batch))
            finally:
                batch._readers.pop()

    def _forget_unfinished(self, batch: Batch) -> None:
        """Forget what a computation left half-way, and llama.h takes for finished."""
        memory = self.memory._ptr
        if not memory:
            return
        if self.memory._has_state():
            seqs = batch._seq_ids()
            if len(seqs) > 1:  # then the cells of others were to be moved as well
                lib.llama_memory_clear(memory, False)
            else:
                lib.llama_memory_seq_rm(memory, min(seqs), -1, -1)
            return
        for row, seq_ids in batch._shared.items():  # of a row in several sequences llama.h forgets it in one
            pos = batch._pos[row]
            if pos > min(lib.llama_memory_seq_pos_max(memory, seq_id) for seq_id in seq_ids):
                for seq_id in seq_ids:
                    lib.llama_memory_seq_rm(memory, seq_id, pos, -1)

    def _check_batch(self, batch: Batch, whole: bool) -> None:
        n = len(batch)
        limit = min(self.n_batch, self.n_ubatch) if whole else self.n_batch
        if not n:
            raise ValueError("batch is empty")
        if n > limit:
            name = "n_ubatch" if whole and limit == self.n_ubatch else "n_batch"
            raise ValueError(f"batch has {n} tokens, over {name}={limit}: decode it in pieces, or make {name} larger")
        if batch._max_token >= self.model.vocab.n_tokens:
            raise ValueError(f"batch has token {batch._max_token}; the model has 0 to {self.model.vocab.n_tokens - 1}")
        positions = self.model._n_positions
        if positions and max(ffi.unpack(batch._c.pos, n)) >= positions:
            raise ValueError(f"batch has a position over {positions - 1}, the last that the model has an embedding for")
        if batch._max_seq_id >= self.n_seq_max:
            sequence("batch's seq_ids", batch._max_seq_id, self.n_seq_max)
        if batch._shared and not self.params.kv_unified:
            row = min(batch._shared)
            raise ValueError(f"row {row} of batch is in several sequences: that needs a context with kv_unified=True")
        rows = n if self.params.embeddings else len(batch._rows)
        if rows > self._n_outputs_max:
            raise ValueError(f"batch asks for logits of {rows} rows, more than n_outputs_max={self._n_outputs_max}")

    def logits(self, row: int) -> Logits:
        """Return the logits of a row of the last decode: a read-only view, float32[n_vocab], not normalised.

        It is valid until the next decode; use after that raises StaleLogitsError. ``logits(row).copy()`` keeps it.
        A negative row counts from the end of the rows that asked for logits: -1 is the last (``llama_get_logits_ith``).

        Raises ValueError for a row that did not ask for logits.
        """
        self._handle.check_open()
        return _logits_type()(self, self._readable(row), self._step)

    def embeddings(self, row: int) -> npt.NDArray[np.float32]:
        """Return a copy of one row's embedding, float32[n_embd], not normalised (``llama_get_embeddings_ith``).

        For a context with ``embeddings=True`` and ``pooling_type="none"``. A negative row counts from the end.
        Raises ValueError for a row that was not computed, or where sequences are pooled.
        """
        with self._handle as ptr:
            row = self._readable(row)
            # Where sequences are pooled llama.h returns a buffer that is not filled.
            there = self.params.embeddings and self.pooling_type is PoolingType.NONE
            values = lib.llama_get_embeddings_ith(ptr, row) if there else ffi.NULL
            return self._vector(values, f"row {row}", self.model.n_embd_out)

    def sequence_embedding(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Return a copy of the pooled embedding of a sequence of the last batch (``llama_get_embeddings_seq``).

        float32[n_embd], not normalised; with ``pooling_type="rank"`` float32[n_cls_out], the classifier's scores.
        Raises ValueError for a sequence that was not in the batch, or where nothing is pooled.
        """
        seq_id = sequence("seq_id", seq_id, self.n_seq_max)
        size = self.model.n_cls_out if self.pooling_type is PoolingType.RANK else self.model.n_embd_out
        with self._handle as ptr:
            there = self.params.embeddings and bool(self._rows)
            values = lib.llama_get_embeddings_seq(ptr, seq_id) if there else ffi.NULL
            return self._vector(values, f"sequence {seq_id}", size)

    def _vector(self, values: Any, what: str, size: int) -> npt.NDArray[np.float32]:
        import numpy as np

        if not values:
            raise_caught()
            raise ValueError(
                f"{what} has no embedding: the context has embeddings={self.params.embeddings}, "
                f"pooling_type={self.pooling_type.name.lower()!r}, and the last batch {len(self._rows)} rows"
            )
        vector: npt.NDArray[np.float32] = np.frombuffer(ffi.buffer(values, 4 * size), dtype=np.float32).copy()
        return vector

    def argmax(self, row: int) -> int:
        """Return the token with the largest logit of a row, the first of equals; reads the logits once."""
        with self._handle as ptr:
            logits = lib.llama_get_logits_ith(ptr, self._readable(row))
            return int(lib.og_argmax(logits, self.model.vocab.n_tokens))

    def _readable(self, row: int) -> int:
        """Return ``row`` of the last batch, from 0, or raise: llama.h aborts for rows that were not computed."""
        if type(row) is int and row in self._rows:
            return row
        self._handle.check_open()
        row = number("row", row, -(2**31))
        if row in self._rows:
            return row
        if row < 0 and -row <= len(self._rows):
            return sorted(self._rows)[row]
        rows = ", ".join(map(str, sorted(self._rows)[:8])) or "none"
        raise ValueError(
            f"row {row} has no logits. The last successful decode has {len(self._rows)} rows with logits ({rows}); "
            "ask for them with batch.add(..., logits=True)"
        )

    def save_state(self, seq_id: int | None = None, tokens: Sequence[int] = ()) -> State:
        """Return a copy of what was computed, of one sequence or of all (``llama_state_get_data``).

        Args:
            seq_id: the sequence; None is the whole memory.
            tokens: token ids to keep with it, usually those that were decoded; ``load_state`` needs none.

        Raises StateError between a ``memory.shift``, ``divide`` or ``copy`` and the next decode, which moves the data.
        """
        from . import state

        if seq_id is not None:
            seq_id = sequence("seq_id", seq_id, self.n_seq_max)
        return state.save(self, seq_id, tokens)

    def load_state(self, state: State, seq_id: int | None = None) -> None:
        """Go on from a state of the same model, as if it had been computed here (``llama_state_set_data``).

        Args:
            state: from ``save_state``, ``State.from_bytes`` or ``State.load``.
            seq_id: the sequence that becomes what was saved of one; what it had is forgotten. None loads a whole
                memory, and everything here is forgotten.

        Raises:
            StateError: it is another model's, or from a context with other sequences or KV types, or a ``memory.copy``
                still waits for the next decode, which would copy over it; nothing is changed. Or llama.cpp could not
                restore it, for instance for want of room; the sequence, or all, is empty then.
        """
        from . import state as module

        if seq_id is not None:
            seq_id = sequence("seq_id", seq_id, self.n_seq_max)
        module.load(self, state, seq_id)

    def snapshot(self, seq_id: int) -> Snapshot:
        """Keep what a sequence holds, on the devices that it lies on, for ``restore`` in this context.

        For forks and steps back where ``memory.copy`` and ``memory.remove`` cannot: a recurrent model, a sliding window. It
        takes the memory of the sequence once more, until the context is closed, and replaces the sequence's last one
        (``llama_state_seq_get_data_ext``). Raises StateError for a quantized KV cache, and where ``save_state`` does.
        """
        from . import state

        return state.snapshot(self, sequence("seq_id", seq_id, self.n_seq_max))

    def restore(self, snapshot: Snapshot, seq_id: int | None = None) -> None:
        """Let a sequence, its own by default, have what a snapshot holds, as often as you like.

        What it had is forgotten (``llama_state_seq_set_data_ext``). Raises StateError for a snapshot of another context,
        one that a later one of its sequence has replaced, or where there is no room; the sequence is empty then.
        """
        from . import state

        state.restore(self, snapshot, None if seq_id is None else sequence("seq_id", seq_id, self.n_seq_max))

    def set_loras(self, loras: Mapping[LoRA, float] | Iterable[LoRA] = ()) -> None:
        """Use these LoRA adapters, and no others, from the next decode on (``llama_set_adapters_lora``).

        What is in memory was computed with the adapters of its time: clear it where that matters.

        Args:
            loras: adapters of this context's model, as {adapter: scale}, or 1.0 each. Nothing switches all off.
        """
        from . import adapter

        adapter.set_loras(self, loras)

    def set_control_vector(
        self, vector: ControlVector | None, scale: float = 1.0, *, first: int = 1, last: int | None = None
    ) -> None:
        """Add ``scale`` times the vector's directions to the layers' outputs from now on (``llama_set_adapter_cvec``).

        Args:
            vector: the ControlVector; None switches it off.
            scale: what to multiply it with; negative is the opposite direction.
            first, last: the layers to apply it to, both included, from 1; None is the last one.
        """
        from . import adapter

        adapter.set_control_vector(self, vector, scale, first, last)

    def cancel(self) -> None:
        """Stop the decode that is running on another thread; it raises Aborted. Does nothing when none is running."""
        self._handle.check_open()
        self._cancel.requested = 1

    def synchronize(self) -> None:
        """Wait until all computations are finished (``llama_synchronize``); reading results does so by itself."""
        with self._handle as ptr:
            lib.llama_synchronize(ptr)

    def release_threads(self) -> None:
        """End the threads that OpenMP keeps for the calling thread, until it decodes again, which takes 50 us longer then.

        Idle ones cost others: once there are more in the process than CPUs, libgomp lets all of them sleep at every
        operation, and each decode takes more than twice as long. So call this where a context stays open, and another
        thread is to decode. ``close()`` does it, and an Engine that has nothing to do.
        """
        self._handle.check_open()
        lib.og_release_threads()

    @property
    def n_threads(self) -> int:
        """Threads for one token (``llama_n_threads``)."""
        with self._handle as ptr:
            return int(lib.llama_n_threads(ptr))

    @property
    def n_threads_batch(self) -> int:
        """Threads for more than one token (``llama_n_threads_batch``)."""
        with self._handle as ptr:
            return int(lib.llama_n_threads_batch(ptr))

    @property
    def causal_attn(self) -> bool:
        """Whether a token sees only the ones before it (``llama_get_causal_attn``)."""
        with self._handle as ptr:
            return bool(lib.llama_get_causal_attn(ptr))

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Let tokens see the later ones of their batch too, or not, from the next decode on (``llama_set_causal_attn``).

        Without it a batch is at most ``n_ubatch`` tokens. For diffusion models, and embeddings from a causal model.
        """
        if not isinstance(causal_attn, bool):
            raise TypeError(f"causal_attn must be True or False, not {type(causal_attn).__name__}")
        with self._handle as ptr:
            lib.llama_set_causal_attn(ptr, causal_attn)
            self._whole = self._pooled or not causal_attn

    def perf(self) -> ContextPerf:
        """Return what was computed and how long it took (``llama_perf_context``), after ``synchronize()``.

        Raises ContextError unless the context was made with ``no_perf=False``.
        """
        with self._handle as ptr:
            if self.params.no_perf:
                raise ContextError("nothing was measured: make the context with no_perf=False")
            lib.llama_synchronize(ptr)
            data = lib.llama_perf_context(ptr)
            return ContextPerf(**{key: getattr(data, key) for key in ContextPerf.__dataclass_fields__})

    def perf_reset(self) -> None:
        """Measure from now on (``llama_perf_context_reset``)."""
        with self._handle as ptr:
            lib.llama_synchronize(ptr)
            lib.llama_perf_context_reset(ptr)

    def set_n_threads(self, n_threads: int, n_threads_batch: int | None = None) -> None:
        """Change the number of threads, for one token and for more than one (``llama_set_n_threads``)."""
        checked = ContextParams(n_threads=n_threads, n_threads_batch=n_threads_batch)
        self._refuse_threads(checked)
        with self._handle as ptr:
            lib.llama_set_n_threads(ptr, checked.n_threads, checked.n_threads_batch)

    def _refuse_threads(self, params: ContextParams) -> None:
        """Raise for more threads than the thread pool has: ggml would read beyond its end."""
        if self._threadpool is not None:
            for name in ("n_threads", "n_threads_batch"):
                number(name, getattr(params, name), 1, self._threadpool.n_threads)


@cache
def _logits_type() -> type[Logits]:
    """Return Logits, imported late because it needs NumPy, which takes longer than all of ours to import."""
    from .logits import Logits

    return Logits
