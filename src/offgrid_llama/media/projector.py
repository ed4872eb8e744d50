"""Projector: what makes embeddings of pictures and sound for a model (``mtmd_context``)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from offgrid_llama._capi import ffi, lib
from offgrid_llama.context.embedding_batch import EmbeddingBatch
from offgrid_llama.errors import LoadCancelled, MediaError, ModelLoadError, UnknownModelError
from offgrid_llama.files import projector_preflight
from offgrid_llama.files.gguf import GGUF
from offgrid_llama.model.model import check_model
from offgrid_llama.native.backend import default_threads
from offgrid_llama.native.callbacks import LoadProgress, forget_log, raise_pending, recent_log
from offgrid_llama.native.check import callback, not_null, number, raise_caught
from offgrid_llama.native.enums import FlashAttention, FlashAttentionName, VocabType, member
from offgrid_llama.native.handle import Handle, Owner
from offgrid_llama.native.turn import Turn
from offgrid_llama.store.api import projector_of, resolve
from offgrid_llama.store.projectors import AUTO

from .audio import Audio
from .chunk import Chunks, MediaChunk
from .image import Image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.context.context import Context
    from offgrid_llama.model.model import Model

__all__ = ["Media", "Projector", "PromptPart"]

MAX_IMAGE_TOKENS = 2**16
"""Tokens of a picture that ``image_max_tokens`` can allow."""

LONG_SECONDS, SAMPLE_SECONDS = 60.0, 29.9
"""Of a sound whose tokens are estimated before they are counted, and of the silence whose tokens the estimate is made of."""
VOICE_SECONDS = 30.0
"""Of a voice to speak like, which are used at most."""
MAX_SAMPLE = 2.0**16
"""Of a sound, where 1 is the loudest: some files of floats have the scale of integers. Larger ones overflow in encoders."""

Media: TypeAlias = Image | Audio
PromptPart: TypeAlias = int | str | Image | Audio


class Projector(Owner):
    """The part of a model that sees or hears: an encoder of pictures or sound, in a GGUF file of its own (an "mmproj").

    It belongs to the model that it was trained with; closing the model closes it. Several threads may use one: one at a time
    encodes, and tokens are counted meanwhile.

    Args:
        model: the Model whose embeddings it makes.
        path: the GGUF file, as ``convert_hf_to_gguf.py --mmproj`` of llama.cpp writes it; a name of one that
            ``offgrid_llama.store`` knows, such as ``hf:ORG/REPO/FILE.gguf``; or "auto": see ``store.projector_of``.
        use_gpu: encode on a GPU if there is one.
        n_threads: threads that encode; None is as many as a Context takes.
        flash_attn_type: "auto", "enabled" or "disabled", as for a Context.
        image_min_tokens, image_max_tokens: bounds for the tokens of a picture, for encoders that take pictures of any size;
            None is what its file says.
        progress: called with 0.0 to 1.0 while loading, on this thread; return False to stop the load.

    Raises:
        FileNotFoundError: the path has no file. StoreError and its kin: as ``store.resolve``.
        GGUFError: the file is no GGUF, is cut off, is no projector, or has impossible values.
        ModelLoadError: libmtmd refused the file, or it was made for another model; the error carries its log.
        LoadCancelled: ``progress`` returned False.

    Attributes:
        model: the Model. path: the file.
        vision, audio: whether it sees pictures, and hears sound.
        sample_rate: of the sound that it hears, in Hz; None without ``audio``.
        speech_rate: of the sound that it makes, in Hz, if the model speaks; otherwise None. A Synthesizer speaks.
        takes_voice: whether it speaks like the voice in a sound.
        speaking: internal. The turn of what speaks: libmtmd has one state of its random numbers.
        uses_mrope: whether the model has M-RoPE: positions of pictures have rows and columns.
        types: the kinds of its encoders, such as {"vision": "gemma3"}.
        n_embd: width of the embeddings, the model's ``n_embd_inp``.
    """

    _instead = "hand on the paths of the model and the projector, and load both in the other process"

    def __init__(
        self,
        model: Model,
        path: str | os.PathLike[str],
        *,
        use_gpu: bool = True,
        n_threads: int | None = None,
        flash_attn_type: FlashAttention | FlashAttentionName = FlashAttention.AUTO,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        check_model(model)
        self.model = model
        self.path = _file_of(path, model)
        limits = _token_limits(image_min_tokens, image_max_tokens)
        with GGUF(self.path) as file:
            self.types = projector_preflight.check(self.path, file, file.tensors(), limits[1])
        load = LoadProgress(None if progress is None else callback("progress", progress))
        params = lib.mtmd_context_params_default()
        params.use_gpu = bool(use_gpu)
        params.print_timings = False
        threads = default_threads() if n_threads is None else number("n_threads", n_threads, 1)
        params.n_threads = min(threads, os.cpu_count() or 1)
        params.flash_attn_type = member("flash_attn_type", flash_attn_type, FlashAttention)
        params.image_min_tokens, params.image_max_tokens = (-1 if limit is None else limit for limit in limits)
        params.progress_callback = lib.og_on_progress
        params.progress_callback_user_data = load.user_data
        self._encoding = threading.Lock()
        self.speaking = Turn(
            f"another text is spoken on this thread by Projector {self.path.name}: end or close it first"
        )
        self._long_tokens: int | None = None  # of silence
        with model.handle as model_ptr:
            ptr = self._loaded(model_ptr, params, load)
            self._own(Handle(f"Projector {self.path.name}", ptr, lib.mtmd_free, model.handle))
        self.vision: bool = lib.mtmd_support_vision(ptr)
        speech = lib.mtmd_gen_audio_get_info(ptr)
        hears = lib.mtmd_support_audio(ptr)
        self.speech_rate: int | None = speech.sample_rate if speech.type != lib.MTMD_GEN_AUDIO_TYPE_NONE else None
        # What hears beside what speaks is the encoder of a voice, which is no part of a prompt.
        self.takes_voice: bool = hears and self.speech_rate is not None
        self.audio: bool = hears and not self.takes_voice
        self.uses_mrope: bool = lib.mtmd_decode_use_mrope(ptr)
        self.sample_rate: int | None = lib.mtmd_get_audio_sample_rate(ptr) if self.audio else None
        self.n_embd = model.n_embd_inp

    def _loaded(self, model_ptr: Any, params: Any, load: LoadProgress) -> Any:
        def failure(log: tuple[str, ...]) -> ModelLoadError:
            if load.cancelled:
                return LoadCancelled(f"loading {self.path} was cancelled by progress")
            return ModelLoadError(f"{self.path} could not be loaded for {self.model.handle.name}", log=log)

        forget_log()
        return not_null(lib.mtmd_init_from_file(os.fsencode(self.path), model_ptr, params), failure, lib.mtmd_free)

    def tokenize(
        self, parts: Sequence[PromptPart], *, add_special: bool = True, parse_special: bool = True, decode: bool = True
    ) -> Chunks:
        """Return a prompt of text, pictures and sound as token ids and chunks (``mtmd_tokenize_from_parts``).

        Texts next to each other, and the marks that the model wants around a picture, become one list of token ids. A
        picture becomes one chunk, or several with tokens between them, if the model looks at tiles. The chunks belong to the
        caller: close them, in a ``with`` block for instance.

        Args:
            parts: texts, Images, Audios and token ids, in order.
            add_special: add the tokens that the model wants at the beginning and the end, such as BOS. A prompt with token
                ids among its parts is taken as it is.
            parse_special: read control tokens in texts. Not for texts of strangers.
            decode: decode pictures. False is for counting: nothing of a picture's file but its header is looked at.

        Raises:
            MediaError: the projector does not see, or does not hear; a file is damaged; a picture or a sound has a form that
                the encoder does not take; or the model lacks the tokens that mark it.
            TokenizeError: as ``Vocab.tokenize``.
            TypeError: a part is of another kind.
        """
        vocab = self.model.vocab
        chunks = Chunks()
        add_special = add_special and not any(isinstance(part, int) for part in parts)
        try:
            if add_special and vocab.add_bos and vocab.bos is not None:
                chunks.add([vocab.bos])
            for index, part in enumerate(parts):
                if isinstance(part, str):
                    chunks.add(vocab.tokenize(part, add_special=False, parse_special=parse_special))
                elif isinstance(part, (Image, Audio)):
                    self._add(chunks, part, decode)
                elif isinstance(part, int):
                    chunks.add([vocab.check_token(f"parts[{index}]", part)])
                else:
                    raise TypeError(
                        f"parts[{index}] must be a str, an Image, an Audio or a token id, not {type(part).__name__}"
                    )
            if add_special and vocab.add_eos and vocab.eos is not None:
                chunks.add([vocab.eos])
        except BaseException:
            chunks.close()
            raise
        return chunks

    def _add(self, chunks: Chunks, media: Media, decode: bool) -> None:
        """Append what a picture or a sound is in a prompt."""
        if self.model.vocab.type is VocabType.NONE:  # libmtmd tokenizes the marks around it, and would end the process
            raise MediaError(f"{self.model.handle.name} has no vocabulary, and no prompt with pictures or sound")
        with ExitStack() as stack, self.handle as ptr:
            bitmap = self._picture(media, decode) if isinstance(media, Image) else self._sound(media)
            stack.callback(lib.mtmd_bitmap_free, bitmap)
            lib.mtmd_bitmap_set_id(bitmap, media.id.encode())
            part = ffi.new("struct mtmd_input_part *", {"bitmap": bitmap})
            found = not_null(lib.mtmd_input_chunks_init(), lambda log: MediaError(f"{media.name}: no memory", log=log))
            stack.callback(lib.mtmd_input_chunks_free, found)
            forget_log()
            code = lib.mtmd_tokenize_from_parts(ptr, found, ffi.new("struct mtmd_input_part *[]", [part]), 1, False)
            raise_pending()
            if code:
                self._raise(f"{media.name} could not be prepared for {self.handle.name}")
            self._take(chunks, ptr, found, not decode)

    def _picture(self, image: Image, decode: bool) -> Any:
        if not self.vision:
            raise MediaError(f"{self.handle.name} sees no pictures")
        pixels = ffi.from_buffer("unsigned char[]", image.pixels) if decode else ffi.NULL
        bitmap = lib.mtmd_bitmap_init(image.width, image.height, pixels)
        if not bitmap:
            self._raise(f"{image.name} could not be taken")
        return bitmap

    def _sound(self, audio: Audio) -> Any:
        if not self.audio:
            raise MediaError(f"{self.handle.name} hears no sound")
        return self._decoded(audio)

    def _decoded(self, audio: Audio) -> Any:
        forget_log()
        source = ffi.from_buffer("unsigned char[]", audio.data)
        with self.handle as ptr:
            options = lib.mtmd_helper_init_opt_default()
            bitmap = lib.mtmd_helper_bitmap_init_from_buf(ptr, source, len(audio.data), False, options).bitmap
        if not bitmap:
            self._raise(f"{audio.name} is damaged: it cannot be decoded")
        samples = _samples_of(bitmap)
        fault = ""
        if len(samples) < projector_preflight.MIN_SAMPLES:
            fault = f"is too short: it has fewer than {projector_preflight.MIN_SAMPLES} samples"
        elif not (samples.min() >= -MAX_SAMPLE and samples.max() <= MAX_SAMPLE):  # NaN is neither
            fault = f"is damaged: it has samples that are no numbers, or beyond {MAX_SAMPLE}, where 1 is the loudest"
        if fault:
            lib.mtmd_bitmap_free(bitmap)
            raise MediaError(f"{audio.name} {fault}")
        return bitmap

    def _raise(self, message: str) -> None:
        log = recent_log()
        raise_pending()
        try:
            raise_caught()
        except Exception as error:
            raise MediaError(f"{message}: {error}", log=log) from error
        raise MediaError(message, log=log)

    def _take(self, chunks: Chunks, ptr: Any, found: Any, without_data: bool) -> None:
        """Append the ``mtmd_input_chunks`` of one picture or sound."""
        count, n_media = ffi.new("size_t *"), 0
        for index in range(lib.mtmd_input_chunks_size(found)):
            chunk = lib.mtmd_input_chunks_get(found, index)
            if lib.mtmd_input_chunk_get_type(chunk) == lib.MTMD_INPUT_CHUNK_TYPE_TEXT:
                tokens = ffi.unpack(lib.mtmd_input_chunk_get_tokens_text(chunk, count), count[0])
                if not all(0 <= token < self.model.vocab.n_tokens for token in tokens):
                    raise MediaError(f"{self.model.handle.name} lacks tokens that {self.handle.name} marks media with")
                chunks.add(tokens)
                continue
            copy = not_null(lib.mtmd_input_chunk_copy(chunk), lambda log: MediaError("no memory", log=log))
            causal = not lib.mtmd_decode_use_non_causal(ptr, chunk)
            options = {"causal": causal, "has_sections": self.uses_mrope, "without_data": without_data}
            chunks.append(MediaChunk(copy, self.handle, n_media, **options))
            n_media += 1

    def samples(self, audio: Audio) -> npt.NDArray[np.float32]:
        """Return a sound as the model hears it: float32[n_samples], from -1 to 1, of one channel, at ``sample_rate``.

        Raises MediaError for a damaged sound, and where the projector does not hear (``mtmd_helper_bitmap_init_from_buf``).
        """
        bitmap = self._sound(audio)
        try:
            copied: npt.NDArray[np.float32] = _samples_of(bitmap).copy()
            return copied
        finally:
            lib.mtmd_bitmap_free(bitmap)

    def voice(self, audio: Audio) -> Any:
        """Return the first VOICE_SECONDS of a sound as an ``mtmd_bitmap``, which the caller frees. Internal."""
        if not self.takes_voice:
            raise MediaError(f"{self.handle.name} takes no voice")
        whole = self._decoded(audio)
        try:
            with self.handle as ptr:
                samples = _samples_of(whole)[: int(VOICE_SECONDS * lib.mtmd_get_audio_sample_rate(ptr))]
                bitmap = lib.mtmd_bitmap_init_from_audio(len(samples), ffi.from_buffer("float[]", samples))
            return not_null(bitmap, lambda log: MediaError("no memory", log=log), lib.mtmd_bitmap_free)
        finally:
            lib.mtmd_bitmap_free(whole)

    def n_tokens(self, media: Media) -> int:
        """Return how many tokens a picture or a sound takes in a prompt, with the marks around it. No pixel is decoded."""
        with self.tokenize([media], add_special=False, decode=False) as chunks:
            return chunks.n_tokens

    def least_tokens(self, parts: Sequence[PromptPart]) -> int:
        """Return how many tokens the long sounds of a prompt take, at least. They are not decoded.

        An hour takes seconds to count, as it must be prepared for that; a file of some kB may be one.
        """
        import numpy as np

        seconds = sum(part.seconds for part in parts if isinstance(part, Audio) and part.seconds >= LONG_SECONDS)
        if not seconds or self.sample_rate is None:
            return 0
        if self._long_tokens is None:
            silence = np.zeros(int(SAMPLE_SECONDS * self.sample_rate), np.float32)
            self._long_tokens = self.n_tokens(Audio(silence, sample_rate=self.sample_rate))
        return int(0.9 * self._long_tokens * seconds / SAMPLE_SECONDS)

    def encode(self, chunk: MediaChunk) -> npt.NDArray[np.float32]:
        """Return the embeddings of a chunk, float32[chunk.n_tokens, n_embd] (``mtmd_encode_chunk``).

        Raises MediaError if the encoder fails or overflows, or the chunk was made without data; ValueError for the chunk of
        another one.
        """
        import numpy as np

        if self.handle not in chunk.handle.parents:
            raise ValueError(f"{chunk.handle.name} is of another projector than {self.handle.name}")
        if chunk.without_data:
            raise MediaError(f"{chunk.handle.name} was made to count tokens, with decode=False, and cannot be encoded")
        with self._encoding, self.handle as ptr, chunk.handle as chunk_ptr:
            forget_log()
            if lib.mtmd_encode_chunk(ptr, chunk_ptr):
                self._raise(f"{chunk.handle.name} could not be encoded")
            raise_pending()
            size = chunk.n_tokens * self.n_embd * 4
            embeddings = np.frombuffer(ffi.buffer(lib.mtmd_get_output_embd(ptr), size), np.float32)
            copied: npt.NDArray[np.float32] = embeddings.reshape(chunk.n_tokens, self.n_embd).copy()
        if not np.isfinite(copied).all():
            raise MediaError(f"{chunk.handle.name} could not be encoded: {self.handle.name} makes no numbers of it")
        return copied

    def embed(self, media: Media) -> npt.NDArray[np.float32]:
        """Return the embeddings of a picture or a sound, float32[n_tokens, n_embd], without those of the marks around it."""
        import numpy as np

        with self.tokenize([media], add_special=False) as chunks:
            return np.concatenate([self.encode(chunk) for chunk in chunks.media])

    def decode(self, context: Context, chunk: MediaChunk, first: int, seq_id: int = 0) -> int:
        """Encode a chunk, decode its embeddings from position ``first`` on, and return the position after them.

        The logits after it can be read then, as row -1. A chunk that is not causal is decoded in one micro-batch.

        Raises:
            MediaError: the encoder fails.
            ValueError: a chunk that is not causal has more tokens than ``n_ubatch`` or ``n_batch`` of the context.
            NoKVSlot, Aborted, InvalidBatch, DecodeFailed: as ``Context.decode``.
        """
        embeddings, positions = self.encode(chunk), chunk.positions(first)
        step = context.n_batch if chunk.causal else chunk.n_tokens
        causal_before = context.causal_attn
        if not chunk.causal:
            context.set_causal_attn(False)
        try:
            for begin in range(0, chunk.n_tokens, step):
                rows = slice(begin, begin + step)
                context.decode(EmbeddingBatch(embeddings[rows], positions[..., rows], seq_id))
        finally:
            context.set_causal_attn(causal_before)
        return first + chunk.n_positions


def _samples_of(bitmap: Any) -> npt.NDArray[np.float32]:
    """Return the samples of an ``mtmd_bitmap`` that is a sound, as long as it lives."""
    import numpy as np

    found = ffi.buffer(lib.mtmd_bitmap_get_data(bitmap), lib.mtmd_bitmap_get_n_bytes(bitmap))
    samples: npt.NDArray[np.float32] = np.frombuffer(found, np.float32)
    return samples


def _file_of(path: str | os.PathLike[str], model: Model) -> Path:
    """Return a path, or the file of a name of the store that is no path here."""
    name = os.fspath(path)
    if not os.path.exists(name):
        if name == AUTO:
            return projector_of(model.path)
        with suppress(UnknownModelError):
            return resolve(name)
    return Path(name)


def _token_limits(least: int | None, most: int | None) -> tuple[int | None, int | None]:
    """Return the bounds of a picture's tokens, checked."""
    limits = [
        None if value is None else number(name, value, 1, MAX_IMAGE_TOKENS)
        for name, value in (("image_min_tokens", least), ("image_max_tokens", most))
    ]
    if limits[0] is not None and limits[1] is not None and limits[0] > limits[1]:
        raise ValueError(f"image_min_tokens must be {limits[1]} or less, as image_max_tokens is, not {limits[0]}")
    return limits[0], limits[1]
