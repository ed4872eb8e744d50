"""SpeechPipeline: from a text to frames and to samples, by libmtmd (``mtmd_helper_gen_audio``)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import MediaError
from offgrid_llama.native.callbacks import forget_log, raise_pending, recent_log
from offgrid_llama.native.check import not_null, raise_caught
from offgrid_llama.native.handle import Handle, Owner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.context.context import Context

    from .audio import Audio
    from .projector import Projector

__all__ = ["SpeechPipeline"]

WINDOW_FRAMES, SHORT_WINDOW_FRAMES = 72, 8
"""Frames that libmtmd makes sound of at once: the decoder of Qwen3-TTS goes on only after whole windows."""


class SpeechPipeline(Owner):
    """Makes the frames of one text after the other. It decodes them on a context of its own, as sequence 0.

    Args:
        context: with embeddings that are not pooled, ``n_batch`` of all its positions, and ``perf``. The pipeline fills it.
        projector: of the same model, which makes sound.

    Raises MediaError where libmtmd cannot speak with them.

    Attributes:
        draws: whether the model draws a token for each frame.
        n_frames: of the text so far.
    """

    _instead = "make another one of the same context"

    def __init__(self, context: Context, projector: Projector) -> None:
        self._context, self._projector = context, projector
        self.draws = projector.types.get("gen.audio") == "qwen3tts_gen"
        self.n_frames = 0
        self._window = WINDOW_FRAMES if self.draws else SHORT_WINDOW_FRAMES
        self._in_sentence = 0
        name = f"SpeechPipeline of {projector.handle.name}"
        with context.handle as context_ptr, projector.handle as projector_ptr:
            made = not_null(
                lib.mtmd_helper_gen_audio_init(context_ptr, projector_ptr),
                lambda log: MediaError(f"{projector.handle.name} cannot speak", log=log),
                lib.mtmd_helper_gen_audio_free,
            )
            self._own(Handle(name, made, lib.mtmd_helper_gen_audio_free, context.handle, projector.handle))
        self._state: Any = ffi.NULL

    @property
    def is_full(self) -> bool:
        """Whether the context has no position for another frame."""
        return self._n_positions >= self._context.n_ctx_seq

    @property
    def has_window(self) -> bool:
        """Whether ``samples`` gives all frames as sound, and goes on later as if it had not been asked."""
        return self._in_sentence % self._window == 0

    @property
    def _n_positions(self) -> int:
        return self._context.memory.positions(0).stop

    def begin(
        self, text: str, *, voice: Audio | None, language: str | None, top_k: int, top_p: float, seed: int
    ) -> None:
        """Compute what comes before the first frame (``mtmd_helper_gen_audio_set_input``, ``step_prompt``)."""
        self.n_frames = self._in_sentence = 0
        said = ffi.from_buffer("char[]", text.encode())
        name = ffi.NULL if language is None else ffi.new("char[]", language.encode())
        self._context.memory.clear()
        self._seed_otherwise(seed)
        with ExitStack() as stack, self.handle as ptr:
            bitmap = ffi.NULL if voice is None else self._projector.voice(voice)
            stack.callback(lib.mtmd_bitmap_free, bitmap)
            asked = {
                "prompt": said, "prompt_len": len(said), "speaker_ref": bitmap, "lang": name, "top_k": top_k,
                "top_p": top_p, "seed": seed, "out_type": lib.MTMD_HELPER_GEN_AUDIO_OUTTYPE_PCM,
            }  # fmt: skip
            forget_log()
            code = lib.mtmd_helper_gen_audio_set_input(ptr, ffi.new("struct mtmd_helper_gen_audio_inp *", asked))
            self._check(code, "the text could not be prepared")
            code = lib.mtmd_helper_gen_audio_step_prompt(ptr, self._context.n_batch)
            n_ctx = self._context.n_ctx_seq
            self._check(code, f"the text could not be decoded; a sentence and its voice have up to {n_ctx} positions")
        self._context.outputs.replaced(self._n_positions - 1)
        with self._context.handle as context:
            self._state = lib.llama_get_embeddings_ith(context, -1)
            self._check(0 if self._state else 1, "the text has left no embedding")

    def _seed_otherwise(self, seed: int) -> None:
        """Make a frame of nothing with another seed: libmtmd begins anew with a seed only if the one before was another."""
        nothing = ffi.new("float[]", self._projector.n_embd)
        with self._projector.handle as ptr:
            asked = ffi.new("struct mtmd_gen_inp *", lib.mtmd_gen_inp_default(ptr))
            asked.type, asked.embd, asked.seed = lib.MTMD_GEN_PROCESS_TYPE_GEN_CODE, nothing, seed ^ 1
            forget_log()
            code = lib.mtmd_gen_audio_process(ptr, asked, ffi.new("struct mtmd_gen_out *"))
            self._check(code, "no frame can be made")

    def step(self, token: int = -1) -> bool:
        """Make a frame and decode it; return whether the text has ended instead (``mtmd_helper_gen_audio_step_gen``).

        ``token`` is what was drawn from row -1 of the context, for a model that ``draws``.
        """
        following, ended, n_before = ffi.new("float **"), ffi.new("bool *"), self._context.perf().n_p_eval
        with self.handle as ptr:
            forget_log()
            code = lib.mtmd_helper_gen_audio_step_gen(ptr, token, self._state, following, ended)
            self._check(code, "a frame could not be computed")
        self._state = following[0]
        self._context.outputs.replaced(0)
        if ended[0] or not self._state:
            return True
        if self._context.perf().n_p_eval == n_before:
            self.n_frames += 1
            self._in_sentence += 1
        else:  # a sentence has ended without a frame, and the next one has been decoded, as several tokens at once
            self._in_sentence = 0
        return False

    def samples(self, begin: int) -> npt.NDArray[np.float32]:
        """Return the sound so far from sample ``begin`` on: float32[n] (``mtmd_helper_gen_audio_get_output``)."""
        import numpy as np

        rate, n_bytes, data = ffi.new("int32_t *"), ffi.new("size_t *"), ffi.new("char **")
        with self.handle as ptr:
            forget_log()
            code = lib.mtmd_helper_gen_audio_get_output(ptr, rate, data, n_bytes, ffi.NULL)
            self._check(code, "the frames could not be made sound")
            if not n_bytes[0]:
                return np.empty(0, np.float32)
            found: npt.NDArray[np.float32] = np.frombuffer(ffi.buffer(data[0], n_bytes[0]), np.float32)[begin:].copy()
            return found

    def _check(self, code: int, message: str) -> None:
        raise_pending()
        if code:
            raise_caught()
            raise MediaError(f"{self.handle.name}: {message}", log=recent_log())
