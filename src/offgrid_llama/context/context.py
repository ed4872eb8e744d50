"""Context: the state of a computation over a Model, and the calls that compute (``llama_context``)."""

from __future__ import annotations

from functools import cache
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import ContextError
from offgrid_llama.model.model import Model, check_model
from offgrid_llama.model.params import ContextParams
from offgrid_llama.native.callbacks import forget_log, pending
from offgrid_llama.native.check import decoded, perf_switch, sequence
from offgrid_llama.native.enums import (
    AttentionName,
    AttentionType,
    FlashAttention,
    FlashAttentionName,
    KVType,
    PoolingName,
    PoolingType,
    RopeScaling,
    RopeScalingName,
)
from offgrid_llama.native.handle import Owner

from .adapters import AdaptersInUse, LoRAsInUse
from .memory import Memory, forget_unfinished
from .moves import NODES_PER_TURNED_LAYER, Moves
from .opening import opened_context
from .outputs import Outputs
from .perf import ContextPerf, context_perf
from .preflight import BatchLimits, check_context, check_encoded, check_threads
from .restoring import Layout, Snapshots, load, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import ControlVector, LoRA
    from offgrid_llama.native.threadpool import ThreadPool

    from .batch import Rows
    from .logits import Logits
    from .state import Snapshot, State

__all__ = ["Context"]

_MAIN_THREAD = main_thread().ident


@cache
def _logits_type() -> type[Logits]:
    """Return Logits, imported late: it needs NumPy, which takes longer to import than all of offgrid_llama."""
    from .logits import Logits

    return Logits


class Context(Owner):
    """A KV cache and the buffers to compute with. One thread computes at a time; other threads wait.

    Args:
        model: the Model; the context is its child and is closed with it.
        n_ctx: positions in all sequences together. None is the model's training length, 4,096 at most. Without
            ``kv_unified`` each sequence gets ``n_ctx / n_seq_max``.
        n_batch: most tokens of one decode. n_ubatch: most tokens that are computed at once (a micro-batch).
        n_seq_max: sequences, 1 to 256.
        n_outputs_max: most rows with logits in one decode; 0 is ``n_batch``. Few save memory with a large vocabulary.
        n_threads: threads for one token; None is all of ``threadpool``, or the number of physical cores.
        n_threads_batch: threads for more than one token; None is ``n_threads``.
        threadpool: a ThreadPool that several contexts share, of at least as many threads.
        type_k, type_v: types of the KV cache: "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl".
            A quantized ``type_v`` needs flash attention.
        flash_attn_type: "auto", "enabled" or "disabled".
        kv_unified: one buffer for all sequences: common prefixes share cells, and a sequence may use all of n_ctx.
        swa_full: keep all positions in layers with a sliding window, so that sequences can be trimmed.
        embeddings: compute embeddings as well; pooled ones of several sequences need ``kv_unified``.
        pooling_type, attention_type: for embedding models.
        rope_scaling_type, rope_freq_base, rope_freq_scale: RoPE; 0 and "unspecified" are the model's own.
        offload_kqv, op_offload: keep the KV cache, and run large operations, on a GPU if the machine has one.
        perf: measure time for ``perf()``. no_perf: the opposite of ``perf``; deprecated.

    Raises:
        ContextError: llama.cpp refused, or the KV cache is larger than this machine's memory.
        ClosedError: the model is closed.

    Attributes:
        model: the Model. memory: the Memory, borrowed. params: the ContextParams.
        pooling_type: how embeddings are pooled; the model's own if none was given.
        n_ctx, n_ctx_seq, n_batch, n_ubatch, n_seq_max: as llama.cpp rounded them; ``n_ctx_seq`` is for one sequence.
        outputs, adapters: internal. The Outputs of the last decode, and the AdaptersInUse.
    """

    _instead = "make another one; save_state gives a State, which can be pickled"

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
        type_k: KVType = "f16",
        type_v: KVType = "f16",
        flash_attn_type: FlashAttention | FlashAttentionName = FlashAttention.AUTO,
        kv_unified: bool = False,
        swa_full: bool = True,
        embeddings: bool = False,
        pooling_type: PoolingType | PoolingName = PoolingType.UNSPECIFIED,
        attention_type: AttentionType | AttentionName = AttentionType.UNSPECIFIED,
        rope_scaling_type: RopeScaling | RopeScalingName = RopeScaling.UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        offload_kqv: bool = True,
        op_offload: bool = True,
        perf: bool = False,
        no_perf: bool | None = None,
    ) -> None:
        options = {**locals(), "no_perf": not perf_switch(perf, no_perf)}  # each argument by its name
        check_model(model)
        self.model: Model = model
        self.params = ContextParams.of(model.n_ctx_train, options)
        self._threadpool = threadpool
        check_context(model, self.params)
        check_threads(self.params, threadpool)
        self._cancel = ffi.new("og_cancel *")
        loras: LoRAsInUse = {}
        self._own(opened_context(model, self.params, threadpool, self._cancel, loras))
        with self.handle as ptr:  # another thread may close the model by now
            if threadpool is not None:
                with threadpool.handle as pool:
                    lib.llama_attach_threadpool(ptr, pool, pool)
            self.n_ctx: int = lib.llama_n_ctx(ptr)
            self.n_ctx_seq: int = lib.llama_n_ctx_seq(ptr)
            self.n_batch: int = lib.llama_n_batch(ptr)
            self.n_ubatch: int = lib.llama_n_ubatch(ptr)
            self.n_seq_max: int = lib.llama_n_seq_max(ptr)
            self.pooling_type = PoolingType(lib.llama_pooling_type(ptr))
            causal_attn = bool(lib.llama_get_causal_attn(ptr))
        self.outputs = Outputs(self, model, self.params, self.pooling_type)
        self.adapters = AdaptersInUse(model, self.handle, loras)
        self._moves = Moves()
        self.memory = Memory(self, model, self.params, self._moves)
        adapters = self.adapters
        self._layout = Layout(model, self.params, lambda: adapters.fingerprints)
        self._snapshots = Snapshots(self.memory, self.params)
        self._encoded: frozenset[int] = frozenset()  # the sequences whose text the encoder has read
        self._limits = BatchLimits.of(model, self.params, self.n_batch, self.n_ubatch)
        self._pools = self.params.embeddings and self.pooling_type is not PoolingType.NONE
        # llama.cpp splits no batch into micro-batches whose tokens see later ones, or are pooled.
        self._one_micro_batch = self._pools or not causal_attn or not self.memory.ptr

    def decode(self, batch: Rows) -> None:
        """Compute a Batch or EmbeddingBatch, and add it to memory (``llama_decode``). Then its rows with logits can be read.

        Ctrl-C, ``cancel()`` and ``close()`` stop it between two operations, on the CPU within some milliseconds.

        Raises:
            ValueError: the batch is empty, too long, or has tokens, sequences or a width that the context does not.
            NoKVSlot, Aborted, InvalidBatch, DecodeFailed: see DecodeError for what memory holds then.
        """
        self.decode_with(batch, lib.og_decode)

    def decode_with(self, batch: Rows, function: Callable[[Any, Any], int]) -> None:
        """Do what ``decode`` does, with a function that has llama_decode's arguments and results. Internal."""
        if self.model.has_encoder:
            check_encoded(self.model, self.handle.name, batch, self._encoded)
        self._compute(batch, function, "llama_decode", self._one_micro_batch)

    def encode(self, batch: Rows) -> None:
        """Run a batch through the encoder, for the decoder to read (``llama_encode``).

        The decoder of a sequence reads the rows of that sequence, until the next ``encode``. No saved state has them.

        Raises ContextError for a model without an encoder, and otherwise as ``decode`` does.
        """
        if not self.model.has_encoder:
            raise ContextError(f"{self.handle.name}: the model has no encoder; use decode()")
        if self.model.has_decoder and self._pools:
            raise ContextError(f'{self.handle.name}: the decoder reads each row; make it with pooling_type="none"')
        self._encoded = frozenset()
        self._compute(batch, lib.og_encode, "llama_encode", True)
        self._encoded = frozenset(batch.seq_ids())

    def _compute(self, batch: Rows, function: Callable[[Any, Any], int], name: str, one_micro_batch: bool) -> None:
        # After a step the caches hold weights: each object that is touched here costs a visit to memory.
        with self.handle as ptr:
            batch.readers.append(self)  # contexts in several threads may decode the same batch
            try:
                limits = self._limits
                limits.check(batch, one_micro_batch)
                cancel = self._cancel
                cancel.requested = 0
                self.handle.check_open()  # a close() may have asked to stop before the line above
                cancel.poll_signals = get_ident() == _MAIN_THREAD
                forget_log()
                # Whatever happens from here on, the rows of the step before are gone.
                outputs = self.outputs
                outputs.step += 1
                outputs.rows = frozenset(range(len(batch)) if limits.all_rows else batch.logit_rows)
                moves = self._moves
                moving = moves.pending
                if moving:  # a stop half-way would turn keys again that were turned already
                    cancel.nodes_until_abort_allowed = NODES_PER_TURNED_LAYER * self.model.n_layer
                if self._threadpool is None:
                    code = function(ptr, batch.c[0])
                else:
                    with self._threadpool.handle:
                        code = function(ptr, batch.c[0])
                if moving:
                    cancel.nodes_until_abort_allowed = 0
                    if code >= 0:
                        moves.clear()
                if code or pending:
                    outputs.rows = frozenset()
                    if code == 2 or code < -1:
                        forget_unfinished(self.memory, batch)
                    decoded(code, name, len(batch))
            finally:
                batch.readers.pop()

    def logits(self, row: int) -> Logits:
        """Return the logits of a row of the last decode: a read-only view, float32[n_vocab], not normalised.

        It is valid until the next decode; use after that raises StaleLogitsError. ``logits(row).copy()`` keeps it.
        A negative row counts from the end of the rows that asked for logits: -1 is the last (``llama_get_logits_ith``).

        Raises ValueError for a row that did not ask for logits.
        """
        self.handle.check_open()
        outputs = self.outputs
        return _logits_type()(outputs, outputs.readable(row))

    def embeddings(self, row: int) -> npt.NDArray[np.float32]:
        """Return a copy of one row's embedding, float32[n_embd], not normalised (``llama_get_embeddings_ith``).

        For a context with ``embeddings=True`` and ``pooling_type="none"``. A negative row counts from the end.
        Raises ValueError for a row that was not computed, or where sequences are pooled.
        """
        return self.outputs.embedding(row)

    def sequence_embedding(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Return a copy of the pooled embedding of a sequence of the last batch (``llama_get_embeddings_seq``).

        float32[n_embd], not normalised; with ``pooling_type="rank"`` float32[n_cls_out], the classifier's scores.
        Raises ValueError for a sequence that was not in the batch, or where nothing is pooled.
        """
        return self.outputs.sequence_embedding(sequence("seq_id", seq_id, self.n_seq_max))

    def argmax(self, row: int) -> int:
        """Return the token with the largest logit of a row, the first of equals; reads the logits once."""
        outputs = self.outputs
        with self.handle as ptr:
            logits = lib.llama_get_logits_ith(ptr, outputs.readable(row))
            return int(lib.og_argmax(logits, outputs.n_vocab))

    def save_state(self, seq_id: int | None = None, tokens: Sequence[int] = ()) -> State:
        """Return a copy of the memory, or of one sequence (``llama_state_get_data``).

        Args:
            seq_id: the sequence; None is the whole memory.
            tokens: token ids to keep with it, usually those that were decoded; ``load_state`` needs none.

        Raises StateError between a ``memory.shift``, ``divide`` or ``copy`` and the next decode, which moves the data.
        """
        return save(self.memory, self._layout, seq_id, tokens)

    def load_state(self, state: State, seq_id: int | None = None) -> None:
        """Go on from a state of the same model, as if it had been computed here (``llama_state_set_data``).

        Args:
            state: from ``save_state``, ``State.from_bytes`` or ``State.load``.
            seq_id: the sequence to replace by that of the state. None replaces the whole memory.

        Raises:
            StateError: the state is of another model, or of a context with other sequences or KV types, or a
                ``memory.copy`` waits for the next decode, which would copy over it: nothing changed. Or llama.cpp could
                not restore it, for instance because cells are missing: the sequence, or the memory, is empty then.
        """
        load(self.memory, self._layout, state, seq_id)

    def snapshot(self, seq_id: int) -> Snapshot:
        """Keep a copy of a sequence in the memory of its devices, for ``restore`` in this context.

        For forks and steps back of recurrent models and sliding windows, where ``memory.copy`` and ``memory.remove`` do not
        help. It takes as much memory as the sequence, until the context is closed, and replaces the sequence's last one
        (``llama_state_seq_get_data_ext``). Raises StateError for a quantized KV cache, and where ``save_state`` does.
        """
        return self._snapshots.take(seq_id)

    def restore(self, snapshot: Snapshot, seq_id: int | None = None) -> None:
        """Replace a sequence, the snapshot's own by default, by what the snapshot holds; any number of times.

        By ``llama_state_seq_set_data_ext``. Raises StateError for a snapshot of another context, for one that a later
        snapshot of its sequence has replaced, and where cells are missing; in the last case the sequence is empty then.
        """
        self._snapshots.restore(snapshot, seq_id)

    def set_loras(self, loras: Mapping[LoRA, float] | Iterable[LoRA] = ()) -> None:
        """Use these LoRA adapters, and no others, from the next decode on (``llama_set_adapters_lora``).

        The memory keeps what it has computed with other adapters: clear it where that matters.

        Args:
            loras: adapters of this context's model, as {adapter: scale}, or 1.0 each. An empty one switches all off.
        """
        self.adapters.set_loras(loras)

    def set_control_vector(
        self, vector: ControlVector | None, scale: float = 1.0, *, first: int = 1, last: int | None = None
    ) -> None:
        """Add ``scale`` times the vector's directions to the layers' outputs from now on (``llama_set_adapter_cvec``).

        Args:
            vector: the ControlVector; None switches it off.
            scale: the factor; negative is the opposite direction.
            first, last: the layers to apply it to, both included, from 1; None is the last one.
        """
        self.adapters.set_control_vector(vector, scale, first, last)

    def cancel(self) -> None:
        """Stop the decode that runs on another thread; it raises Aborted. Without one, do nothing."""
        self.handle.check_open()
        self._cancel.requested = 1

    def synchronize(self) -> None:
        """Wait until all computations are finished (``llama_synchronize``). Reading results waits by itself."""
        with self.handle as ptr:
            lib.llama_synchronize(ptr)

    def release_threads(self) -> None:
        """End the threads that OpenMP keeps for the calling thread. Its next decode starts them again, in 50 us.

        Call it where a context stays open and another thread decodes: with more OpenMP threads in a process than CPUs,
        libgomp lets all of them sleep at every operation, and a decode takes twice as long. ``close()`` does it.
        """
        self.handle.check_open()
        lib.og_release_threads()

    @property
    def n_threads(self) -> int:
        """Threads for one token (``llama_n_threads``)."""
        with self.handle as ptr:
            return int(lib.llama_n_threads(ptr))

    @property
    def n_threads_batch(self) -> int:
        """Threads for more than one token (``llama_n_threads_batch``)."""
        with self.handle as ptr:
            return int(lib.llama_n_threads_batch(ptr))

    @property
    def causal_attn(self) -> bool:
        """Whether a token sees only the ones before it (``llama_get_causal_attn``)."""
        with self.handle as ptr:
            return bool(lib.llama_get_causal_attn(ptr))

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Hide the later tokens of a batch from each token, or show them, from the next decode (``llama_set_causal_attn``).

        False is for diffusion models, and embeddings from a causal model. Then a batch has at most ``n_ubatch`` tokens.
        """
        if not isinstance(causal_attn, bool):
            raise TypeError(f"causal_attn must be True or False, not {type(causal_attn).__name__}")
        with self.handle as ptr:
            lib.llama_set_causal_attn(ptr, causal_attn)
            self._one_micro_batch = self._pools or not causal_attn or not self.memory.ptr

    def perf(self) -> ContextPerf:
        """Return how much was computed and how long it took (``llama_perf_context``), after ``synchronize()``.

        Raises ContextError unless the context was made with ``perf=True``.
        """
        with self.handle as ptr:
            if self.params.no_perf:
                raise ContextError("nothing was measured: make the context with perf=True")
            lib.llama_synchronize(ptr)
            return context_perf(ptr)

    def perf_reset(self) -> None:
        """Measure from now on (``llama_perf_context_reset``)."""
        with self.handle as ptr:
            lib.llama_synchronize(ptr)
            lib.llama_perf_context_reset(ptr)

    def set_n_threads(self, n_threads: int, n_threads_batch: int | None = None) -> None:
        """Change the number of threads, for one token and for more than one (``llama_set_n_threads``)."""
        checked = ContextParams(n_threads=n_threads, n_threads_batch=n_threads_batch)
        check_threads(checked, self._threadpool)
        with self.handle as ptr:
            lib.llama_set_n_threads(ptr, checked.n_threads, checked.n_threads_batch)
