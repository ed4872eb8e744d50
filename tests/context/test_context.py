"""Contexts: their results, in pieces and for several sequences, and what they refuse; figures are the twin's (twin.py)."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, EXACT, TOKENS, Twin, Weights, decode, write_tiny_llama
from offgrid_llama.native.enums import KV_TYPES, KVType

if TYPE_CHECKING:
    from helpers.children import RunChild


# Logits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[16], [1] * 16, [15, 1], [1, 15], [8, 8], [5, 5, 5, 1], [3, 13]])
@pytest.mark.parametrize("flash", ["disabled", "enabled"])
def test_pieces_give_what_the_twin_gives(pieces: list[int], flash: str, tiny: og.Model, weights: Weights) -> None:
    """The logits of a text are those of an independent NumPy model, in however many batches it is decoded."""
    expected = Twin(weights).sequence(TOKENS)
    with og.Context(tiny, n_ctx=256, **EXACT | {"flash_attn_type": flash}) as context:
        got, pos = [], 0
        for n in pieces:
            got += list(decode(context, TOKENS[pos : pos + n], pos))
            pos += n
    # With flash attention, the CPU multiplies keys in float16.
    np.testing.assert_allclose(got, expected, rtol=0, atol=CLOSE if flash == "disabled" else 0.05)


@pytest.mark.parametrize("n_ubatch", [1, 2, 7, 16, 512])
def test_micro_batches_give_the_same(n_ubatch: int, tiny: og.Model, weights: Weights) -> None:
    """How llama.cpp cuts a batch into micro-batches does not change the result."""
    with og.Context(tiny, n_ctx=256, n_ubatch=n_ubatch, **EXACT) as context:
        assert context.n_ubatch == min(n_ubatch, context.n_batch)
        np.testing.assert_allclose(decode(context, TOKENS), Twin(weights).sequence(TOKENS), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("model_name", ["smollm2", "gemma"])
def test_pieces_of_a_real_model(model_name: str, request: pytest.FixtureRequest) -> None:
    """A real model's logits in pieces are those in one batch, but for the rounding of activations to 8 bits.

    Another kernel's last bit can move an 8-bit activation by one step: 0.3 in the root of the mean square was measured,
    of logits that spread by 5. Logits after another text are 4 away.
    """
    model: og.Model = request.getfixturevalue(model_name)
    tokens = model.vocab.tokenize("The capital of France is Paris. The capital of Italy is Rome, and of Spain it is")
    other = model.vocab.tokenize("Once upon a time, there was a little girl who lived in the woods with her")
    with og.Context(model, n_ctx=256, n_threads=1) as context:
        whole = decode(context, tokens)
        context.memory.clear()
        pieces = [*decode(context, tokens[:7]), *decode(context, tokens[7:8], 7), *decode(context, tokens[8:], 8)]
        context.memory.clear()
        different = decode(context, other)[-1]

    def distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
        return float(np.sqrt(np.mean(np.square(np.subtract(a, b)))))

    assert max(distance(a, b) for a, b in zip(whole, pieces, strict=True)) < 0.7
    assert distance(whole[-1], different) > 2


@pytest.mark.parametrize("unified", [False, True])
def test_sequences_do_not_see_each_other(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """Sequences decoded in one batch, mixed row by row, give what each gives alone."""
    texts = [TOKENS, TOKENS[5:], TOKENS[::-1], [60]]
    with og.Context(tiny, n_ctx=1024, n_seq_max=4, kv_unified=unified, **EXACT) as context:
        batch = og.Batch(64)
        rows: dict[tuple[int, int], int] = {}
        for pos in range(len(TOKENS)):
            for seq, text in enumerate(texts):
                if pos < len(text):
                    rows[seq, pos] = batch.add(text[pos], pos, [seq], logits=True)
        context.decode(batch)
        for seq, text in enumerate(texts):
            got = [context.logits(rows[seq, pos]).copy() for pos in range(len(text))]
            np.testing.assert_allclose(got, Twin(weights).sequence(text), rtol=0, atol=CLOSE)
            assert context.memory.positions(seq) == range(len(text))


def test_a_token_of_two_sequences(tiny: og.Model, weights: Weights) -> None:
    """A token may belong to several sequences of a unified cache, which then go on apart."""
    with og.Context(tiny, n_ctx=256, n_seq_max=3, kv_unified=True, **EXACT) as context:
        batch = og.Batch(16)
        for pos, token in enumerate(TOKENS[:4]):
            batch.add(token, pos, [0, 2])
        context.decode(batch)
        for seq, text in [(0, [7, 8]), (2, [9])]:
            got = decode(context, text, 4, seq)
            np.testing.assert_allclose(got, Twin(weights).sequence(TOKENS[:4] + text)[4:], rtol=0, atol=CLOSE)
        assert [context.memory.positions(seq) for seq in range(3)] == [range(6), range(0), range(5)]


def test_a_token_of_two_sequences_needs_a_unified_cache(tiny: og.Model) -> None:
    """With a stream for each sequence it is refused by its name, and not as a cache without room."""
    with og.Context(tiny, n_ctx=512, n_seq_max=2, **EXACT) as context:
        batch = og.Batch(2)
        batch.add(3, 0, [0, 1])
        with pytest.raises(ValueError, match="kv_unified"):
            context.decode(batch)


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "atol"),
    [
        ("f32", CLOSE), ("f16", 0.1), ("bf16", 0.5), ("q8_0", 0.5), ("q5_1", 4), ("q5_0", 4), ("q4_1", 6), ("q4_0", 6),
        ("iq4_nl", 6),
    ],
)  # fmt: skip
def test_kv_types(kind: str, atol: float, tiny: og.Model, weights: Weights) -> None:
    """Each type of the KV cache works for keys, for values and for both, and the finer it is, the closer it comes."""
    expected = Twin(weights).sequence(TOKENS)
    for types in ({"type_k": kind}, {"type_v": kind}, {"type_k": kind, "type_v": kind}):
        flash = "disabled" if kind == "f32" else "enabled"
        with og.Context(tiny, n_ctx=256, **EXACT | {"flash_attn_type": flash} | types) as context:
            got = np.concatenate([decode(context, TOKENS[:8]), decode(context, TOKENS[8:], 8)])
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def test_all_kv_types_are_tried() -> None:
    """The table above has every type that a context takes."""
    assert list(KV_TYPES) == ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_values_need_flash_attention(kind: KVType, tiny: og.Model) -> None:
    """A context that llama.cpp refuses is a ContextError with its reason."""
    with pytest.raises(og.ContextError, match="flash_attn"):
        og.Context(tiny, n_ctx=256, n_threads=1, type_v=kind, flash_attn_type="disabled")


@pytest.mark.parametrize("name", ["type_k", "type_v"])
def test_quantized_types_need_heads_of_whole_blocks(name: str, tmp_path: Path) -> None:
    """Heads of 16 values cannot be cut into blocks of 32: an error names the argument, where ggml would abort."""
    write_tiny_llama(tmp_path / "small-heads.gguf", n_head=4)
    with og.Model(tmp_path / "small-heads.gguf") as model:
        with pytest.raises(og.ContextError, match=f"{name}='q8_0' needs heads of a multiple of 32"):
            og.Context(model, n_ctx=256, **{name: "q8_0"})  # type: ignore[arg-type]
        with og.Context(model, n_ctx=256, n_threads=1) as context:
            decode(context, TOKENS)


def test_sizes_are_what_llama_cpp_made_of_them(tiny: og.Model) -> None:
    """The attributes tell the sizes as rounded by llama.cpp: cells come in steps of 256, for each stream."""
    with og.Context(tiny, n_ctx=300, n_batch=100, n_ubatch=200, n_threads=1) as context:
        assert (context.n_ctx, context.n_ctx_seq, context.n_batch, context.n_ubatch) == (512, 512, 100, 100)
    with og.Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        assert (context.n_ctx, context.n_ctx_seq, context.n_seq_max) == (512, 256, 2)
    with og.Context(tiny, n_ctx=512, n_seq_max=2, kv_unified=True, n_threads=1) as context:
        assert (context.n_ctx, context.n_ctx_seq) == (512, 512)


def test_default_context_length(tiny: og.Model, smollm2: og.Model) -> None:
    """Without n_ctx a context has the training length, up to 4,096."""
    assert (tiny.n_ctx_train, smollm2.n_ctx_train) == (4096, 8192)
    for model in (tiny, smollm2):
        with og.Context(model, n_threads=1) as context:
            assert context.n_ctx == 4096


@pytest.mark.parametrize("arguments", [{"n_ctx": 0}, {"n_batch": 0}, {"n_seq_max": 257}, {"type_k": "q3_k"}])
def test_impossible_options(arguments: dict[str, Any], tiny: og.Model) -> None:
    """Context refuses the arguments that ContextParams refuses, by name."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        og.Context(tiny, **arguments)


def test_a_cache_larger_than_the_machine(smollm2: og.Model) -> None:
    """A KV cache that no memory could hold is refused with its size, before the system kills the process for it."""
    with pytest.raises(og.ContextError, match="GiB"):
        og.Context(smollm2, n_ctx=2**26)


def test_threads_can_be_changed(tiny: og.Model, weights: Weights) -> None:
    """set_n_threads changes nothing but the time; numbers below 1 are refused, absurd ones cut."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        context.set_n_threads(2, 1)
        first = decode(context, TOKENS[:8])
        context.set_n_threads(100_000)
        got = np.concatenate([first, decode(context, TOKENS[8:], 8)])
        np.testing.assert_allclose(got, Twin(weights).sequence(TOKENS), rtol=0, atol=CLOSE)
        with pytest.raises(ValueError, match="n_threads must be"):
            context.set_n_threads(0)
        context.synchronize()


def test_two_contexts_on_one_model(tiny: og.Model, weights: Weights) -> None:
    """Contexts of one model have memories of their own, in two threads at once, too."""
    expected = Twin(weights).sequence(TOKENS)

    def work(context: og.Context) -> None:
        for _ in range(20):
            context.memory.clear()
            got = [*decode(context, TOKENS[:9]), *decode(context, TOKENS[9:], 9)]
            np.testing.assert_allclose(got, expected, rtol=0, atol=CLOSE)

    with og.Context(tiny, n_ctx=256, **EXACT) as one, og.Context(tiny, n_ctx=256, **EXACT) as two:
        decode(one, [5, 6, 7])
        assert two.memory.positions(0) == range(0)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (one, two)))


@pytest.mark.parametrize("unified", [False, True])
def test_threads_take_turns_in_one_context(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """Threads that decode in one context wait for their turn, each in its own sequence, and none disturbs another."""
    texts = [TOKENS, TOKENS[::-1], TOKENS[3:] + TOKENS[:3]]
    with og.Context(tiny, n_ctx=1024, n_seq_max=3, kv_unified=unified, **EXACT) as context:
        barrier = threading.Barrier(3)

        def work(seq: int) -> None:
            barrier.wait()
            for _ in range(10):
                context.memory.remove(seq)
                for pos, token in enumerate(texts[seq][:-1]):
                    batch = og.Batch(1)
                    batch.add(token, pos, [seq])
                    context.decode(batch)
                    assert context.memory.positions(seq) == range(pos + 1)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, range(3)))
        for seq, text in enumerate(texts):
            got = decode(context, text[-1:], len(text) - 1, seq)[0]
            np.testing.assert_allclose(got, Twin(weights).sequence(text)[-1], rtol=0, atol=CLOSE)


def test_two_threads_decode_at_once(smollm2_path: Path, run_child: RunChild) -> None:
    """Two threads in one context do not end the process, as they do in llama.h, and each gets its own text."""
    child = run_child(
        """
        import sys, threading
        import offgrid_llama as og

        with og.Model(sys.argv[1]) as model:
            prompts = [model.vocab.tokenize(text) for text in ("The capital of France is", "Once upon a time there was")]
            with og.Context(model, n_ctx=512, n_seq_max=2, n_threads=1) as context:
                def go_on(seq):
                    tokens, batch = prompts[seq][:-1], og.Batch(8)
                    batch.add_sequence(tokens, 0, seq, "none")
                    barrier.wait()
                    for pos in range(len(tokens), len(tokens) + 12):
                        context.decode(batch)
                        batch.clear()
                        batch.add(prompts[seq][-1], pos, [seq])
                    context.memory.remove(seq, len(tokens), -1)

                barrier = threading.Barrier(2)
                threads = [threading.Thread(target=go_on, args=(seq,)) for seq in range(2)]
                [thread.start() for thread in threads]
                [thread.join() for thread in threads]
                for seq, prompt in enumerate(prompts):
                    batch = og.Batch(1)
                    batch.add(prompt[-1], len(prompt) - 1, [seq], logits=True)
                    context.decode(batch)
                    print(model.vocab.piece(context.argmax(-1)).decode())
        """,
        smollm2_path,
    )
    assert (child.returncode, child.stdout) == (0, " Paris\n a\n"), child.stderr[-500:]


def test_cancel_stops_a_decode(smollm2: og.Model) -> None:
    """cancel() from another thread ends a decode with Aborted; finished micro-batches stay, and the context goes on."""
    with og.Context(smollm2, n_ctx=2048, n_batch=2048, n_ubatch=32, n_threads=1) as context:
        failures: list[BaseException] = []
        started = threading.Event()

        def work() -> None:
            batch = og.Batch(2048)
            batch.add_sequence(list(range(1000, 3048)))
            started.set()
            try:
                context.decode(batch)
            except og.DecodeError as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        while thread.is_alive():  # the decode clears a request that comes before it has begun
            context.cancel()
            thread.join(0.001)
        (failure,) = failures
        assert isinstance(failure, og.Aborted)
        assert (failure.code, failure.memory_restored) == (2, False)
        done = context.memory.positions(0)
        assert len(done) % 32 == 0
        assert len(done) < 2048
        decode(context, [1000], done.stop)
        context.cancel()  # nothing is running: no harm to the next decode
        decode(context, [1000], done.stop + 1)


def test_after_close(tiny: og.Model) -> None:
    """Every method of a closed context raises ClosedError with the model's name."""
    context = og.Context(tiny, n_ctx=256, n_threads=1)
    decode(context, TOKENS)
    context.close()
    batch = og.Batch(1)
    batch.add(1, 0, [0])
    for call in (
        lambda: context.decode(batch),
        lambda: context.logits(-1),
        lambda: context.argmax(-1),
        context.cancel,
        context.synchronize,
        lambda: context.set_n_threads(1),
    ):
        with pytest.raises(og.ClosedError, match="Model tiny"):
            call()
    assert context.closed
    assert "closed" in repr(context)


def test_a_closed_model_makes_no_context(weights: Weights, tmp_path: Path) -> None:
    """A context needs an open model."""
    write_tiny_llama(tmp_path / "other.gguf")
    model = og.Model(tmp_path / "other.gguf")
    model.close()
    with pytest.raises(og.ClosedError, match="other"):
        og.Context(model)


def test_tokens_that_see_later_ones(tiny: og.Model) -> None:
    """Attention is switched at run time: then as in a context that was made so, and such a batch is one micro-batch."""

    def first_row(context: og.Context) -> np.ndarray:
        context.memory.clear()
        batch = og.Batch(8)
        batch.add_sequence([1, 2, 3, 4], logits="all")
        context.decode(batch)
        return context.logits(0).copy()

    options: dict[str, Any] = {"n_ctx": 64, "n_ubatch": 4}
    with og.Context(tiny, **options) as context, og.Context(tiny, attention_type="non_causal", **options) as other:
        assert [context.causal_attn, other.causal_attn] == [True, False]
        causal, everything = first_row(context), first_row(other)
        assert np.abs(causal - everything).max() > 0.01
        context.set_causal_attn(False)
        assert [context.causal_attn] == [False]
        np.testing.assert_allclose(first_row(context), everything, atol=1e-5)
        batch = og.Batch(8)
        batch.add_sequence([1, 2, 3, 4, 5])
        with pytest.raises(ValueError, match="over n_ubatch=4"):
            context.decode(batch)
        context.set_causal_attn(True)
        np.testing.assert_allclose(first_row(context), causal, atol=1e-5)
        context.memory.clear()
        context.decode(batch)
        with pytest.raises(TypeError, match="causal_attn must be True or False"):
            context.set_causal_attn(1)  # type: ignore[arg-type]


def test_threads_are_told(tiny: og.Model) -> None:
    """The numbers of threads are those that were set."""
    with og.Context(tiny, n_ctx=64, n_threads=1) as context:
        assert (context.n_threads, context.n_threads_batch) == (1, 1)
        most = os.cpu_count() or 1
        context.set_n_threads(1, most)
        assert (context.n_threads, context.n_threads_batch) == (1, most)
