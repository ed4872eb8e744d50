"""Every kind of network and of memory: the cuts of a text, the batch it shares, and saved states change nothing.

Tolerance: all is float32 on one thread, so two ways to a row differ by the order of additions, 1e-5 of logits of size 4, and
1e-4 where GELU comes from a table of float16. CLOSE is 1e-3; another token in the past is felt by 0.02 at least, see below.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES, HEAD, N_VOCAB
from helpers.kinds import (
    BOTH,
    FELT,
    KEYS_THAT_STAY,
    OTHER,
    TEXT,
    WITH_MEMORY,
    Rows,
    alone,
    architecture,
    each,
    of_kind,
    open_context,
    same,
)
from helpers.twin import CLOSE, EXACT, LETTERS, decode, write_gguf

# Kinds of models ------------------------------------------------------------------------------------------------------


@each(*ARCHITECTURES)
def test_what_a_model_is(model: og.Model) -> None:
    """The flags say what kind of network it is, and how far its window reaches."""
    kind = architecture(model).kind
    assert model.is_recurrent == (kind == "recurrent")
    assert model.is_hybrid == kind.startswith("hybrid")
    assert model.is_diffusion == (kind == "diffusion")
    assert model.has_encoder == (kind == "encoder-decoder" or model.description.startswith("t5encoder"))
    assert model.has_decoder == (not model.description.startswith("t5encoder"))
    windows = {"llama4": 8192, "deepseek4": 0}  # it has one, and no way back in it
    hparams = architecture(model).hparams
    assert model.n_swa == windows.get(architecture(model).name, hparams.get("attention.sliding_window", 0))


@each(*WITH_MEMORY)
def test_the_past_is_felt(model: og.Model) -> None:
    """Every row depends on every token before it: else the tests below would find nothing."""
    text = alone(model, tuple(TEXT))
    assert np.isfinite(text).all()
    for i in (0, len(TEXT) - 4)[model.description.startswith("lfm2 ") :]:  # all its attention is in a window
        changed = alone(model, (*TEXT[:i], (TEXT[i] + 1) % N_VOCAB, *TEXT[i + 1 :]))
        same(changed[:i], text[:i])
        assert np.abs(changed[i:] - text[i:]).max(axis=1).min() > FELT


@each("llama", "jamba", "qwen3next", "falcon-h1", "nemotron_h", "mamba")
def test_the_size_of_the_cache(model: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KV cache is weighed by the layers that have one, and refused if it is larger than memory."""
    layers = {"llama": 2, "falcon-h1": 2, "mamba": 0}.get(architecture(model).name, 1)
    needed = layers * 2 * HEAD * 2 * 4096  # keys and values of one head in f16
    there = SimpleNamespace(memory_total=needed)
    monkeypatch.setattr("offgrid_llama.context.preflight.devices", lambda: [there])
    og.Context(model, n_ctx=4096, n_threads=1).close()
    there.memory_total -= 1
    if layers:
        with pytest.raises(og.ContextError, match="GiB"):
            og.Context(model, n_ctx=4096, n_threads=1)


# The same results by another way --------------------------------------------------------------------------------------


@each(*WITH_MEMORY)
@pytest.mark.parametrize("options", [{}, {"n_ubatch": 7}, {"n_ubatch": 1}, {"swa_full": False, "n_ubatch": 4}], ids=str)
def test_how_a_text_is_cut(options: dict[str, Any], model: og.Model) -> None:
    """Batches and micro-batches of any sizes give the rows of one batch."""
    with open_context(model, **options) as context:
        for seq, cuts in enumerate([[24], [1] * 24, [5, 7, 12], [23, 1]]):
            rows, pos = [], 0
            for size in cuts:
                rows.append(decode(context, TEXT[pos : pos + size], pos, seq))
                pos += size
            same(np.concatenate(rows), alone(model, tuple(TEXT)))
            assert context.memory.positions(seq).stop == len(TEXT)


@each("llama4")
@pytest.mark.parametrize("swa_full", [True, False])
def test_chunks(swa_full: bool, model: og.Model) -> None:
    """Where attention begins anew with each chunk, of 8,192 positions here, a text may be cut at its edge or beside it."""
    with open_context(model, swa_full=swa_full) as context:
        rows = decode(context, TEXT, 8180, 0)
        same(rows[:11], alone(model, tuple(TEXT))[:11])
        assert np.abs(rows[12:] - alone(model, tuple(TEXT))[12:]).max(axis=1).min() > FELT
        for seq, cut in ((1, 11), (2, 12), (3, 13)):
            first = decode(context, TEXT[:cut], 8180, seq)
            same(np.concatenate([first, decode(context, TEXT[cut:], 8180 + cut, seq)]), rows)


@each(*WITH_MEMORY)
@BOTH
def test_neighbours(unified: bool, model: og.Model) -> None:
    """Sequences in one batch have the rows that each has alone, in any order of rows, and when they go on."""
    texts = {2: TEXT[:13], 0: OTHER, 3: TEXT[5:6]}
    with open_context(model, unified=unified, n_ubatch=8) as context:
        batch = og.Batch(64)
        for step in range(13):
            for seq, text in texts.items():
                if step < len(text):
                    batch.add(text[step], step, [seq], logits=True)
        order = [seq for step in range(13) for seq, text in texts.items() if step < len(text)]
        context.decode(batch)
        rows: dict[int, list[Rows]] = {seq: [] for seq in texts}
        for row, seq in enumerate(order):
            rows[seq].append(context.logits(row).copy())
        for more in (17, 40):
            batch.clear()
            for seq, text in texts.items():
                batch.add(more, len(text), [seq], logits=True)
            texts = {seq: [*text, more] for seq, text in texts.items()}
            context.decode(batch)
            for row, seq in enumerate(texts):
                rows[seq].append(context.logits(row).copy())
        for seq, text in texts.items():
            same(np.array(rows[seq]), alone(model, tuple(text)))


@each(*WITH_MEMORY)
@BOTH
def test_a_copy_goes_on(unified: bool, model: og.Model) -> None:
    """A copy and its original go on, each by itself, as the original would have."""
    with open_context(model, unified=unified) as context:
        decode(context, TEXT[:10], 0, 0)
        decode(context, OTHER, 0, 3)
        context.memory.copy(0, 3)
        context.memory.copy(0, 1)
        assert context.memory.positions(3) == context.memory.positions(0)
        same(decode(context, TEXT[10:], 10, 3), alone(model, tuple(TEXT))[10:])
        same(decode(context, OTHER, 10, 0), alone(model, (*TEXT[:10], *OTHER))[10:])
        context.memory.remove(0)
        same(decode(context, TEXT[10:], 10, 1), alone(model, tuple(TEXT))[10:])


@each(*WITH_MEMORY)
@BOTH
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_state_goes_on(swa_full: bool, unified: bool, model: og.Model) -> None:
    """A saved state, of all or of one sequence, goes on elsewhere as if it had never stopped, and so does the original."""
    options: dict[str, Any] = {"unified": unified, "swa_full": swa_full}
    with open_context(model, **options) as first, open_context(model, **options) as second:
        decode(first, OTHER, 0, 0)
        decode(first, TEXT[:10], 0, 2)
        whole, one = first.save_state(), first.save_state(2)
        decode(second, TEXT[5:], 0, 1)
        second.load_state(og.State.from_bytes(bytes(whole)))
        assert [second.memory.positions(seq) for seq in range(4)] == [first.memory.positions(seq) for seq in range(4)]
        second.load_state(og.State.from_bytes(bytes(one)), 3)
        first.load_state(one, 1)
        for context, seqs in ((first, (1, 2)), (second, (3, 2))):
            for seq in seqs:
                same(decode(context, TEXT[10:], 10, seq), alone(model, tuple(TEXT))[10:])
            same(decode(context, TEXT[:3], len(OTHER), 0), alone(model, (*OTHER, *TEXT[:3]))[-3:])


@each(*WITH_MEMORY)
@BOTH
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_snapshot_goes_on(swa_full: bool, unified: bool, model: og.Model) -> None:
    """A sequence goes back to its snapshot, and another goes on from it, however far the first had gone on."""
    with open_context(model, unified=unified, swa_full=swa_full) as context:
        decode(context, OTHER, 0, 0)
        decode(context, TEXT[:10], 0, 2)
        snapshot = context.snapshot(2)
        positions = context.memory.positions(2)
        decode(context, OTHER, 10, 2)
        decode(context, OTHER, 0, 1)
        for seq in (1, 2, 3):
            context.restore(snapshot, seq)
            assert context.memory.positions(seq).stop == positions.stop
        # A window's cells that the next token does not see are not kept, and nothing goes back to where they are seen.
        if context.memory.remove(3, 3):
            same(decode(context, TEXT[3:], 3, 3), alone(model, tuple(TEXT))[3:])
        else:
            same(decode(context, TEXT[10:], 10, 3), alone(model, tuple(TEXT))[10:])
        for seq in (2, 1):
            same(decode(context, TEXT[10:], 10, seq), alone(model, tuple(TEXT))[10:])
        same(decode(context, TEXT[:3], len(OTHER), 0), alone(model, (*OTHER, *TEXT[:3]))[-3:])


@pytest.mark.parametrize(("model", "unified"), [("llama", False), ("deepseek4", True)], indirect=["model"])
def test_a_copy_that_waits(unified: bool, model: og.Model) -> None:
    """Until the next decode has copied the data nothing is saved or loaded; deepseek4 copies in a unified context, too."""
    with open_context(model, unified=unified) as context:
        decode(context, TEXT[:10], 0, 0)
        state = context.save_state(0)
        context.memory.copy(0, 1)
        with pytest.raises(og.StateError, match="decode something first"):
            context.save_state(1)
        with pytest.raises(og.StateError, match="decode something first"):
            context.load_state(state, 1)
        same(decode(context, TEXT[10:], 10, 1), alone(model, tuple(TEXT))[10:])


@each(*WITH_MEMORY)
@BOTH
@pytest.mark.parametrize("swa_full", [True, False])
def test_a_tail_is_forgotten(swa_full: bool, unified: bool, model: og.Model) -> None:
    """After remove() of a tail the text goes on as if that had never been; where it cannot, nothing has changed."""
    with open_context(model, unified=unified, swa_full=swa_full) as context:
        decode(context, OTHER, 0, 0)
        decode(context, TEXT[:18], 0, 1)
        before = context.memory.positions(1)
        kind = architecture(model).kind
        if context.memory.remove(1, 12):
            assert kind == "attention"
            assert context.memory.positions(1).stop == 12
            same(decode(context, OTHER, 12, 1), alone(model, (*TEXT[:12], *OTHER))[12:])
        else:
            assert kind != "attention" or (model.n_swa and not swa_full)
            assert context.memory.positions(1) == before
            same(decode(context, TEXT[18:], 18, 1), alone(model, tuple(TEXT))[18:])
        assert context.memory.remove(1) is True
        assert context.memory.positions(1) == range(0)
        same(decode(context, OTHER, 0, 1), alone(model, tuple(OTHER)))
        same(decode(context, TEXT[:2], len(OTHER), 0), alone(model, (*OTHER, *TEXT[:2]))[-2:])


@each(*WITH_MEMORY)
@BOTH
def test_any_operations_in_any_order(unified: bool, model: og.Model) -> None:
    """After any decodes, copies, removals and states each sequence goes on as its own text alone."""
    rng = random.Random(11)
    with open_context(model, unified=unified, n_ubatch=8) as context:
        texts: list[tuple[int, ...]] = [()] * 4
        saved: list[tuple[og.State, tuple[int, ...]]] = []
        moving = False
        for _ in range(40):
            seq, other = rng.randrange(4), rng.randrange(4)
            what = rng.choice(["decode", "decode", "decode", "copy", "remove", "tail", "save", "load", "keep"])
            if what == "copy":
                context.memory.copy(seq, other)
                texts[other] = texts[seq]
                moving |= seq != other  # the next decode moves the data
            elif what == "remove":
                assert context.memory.remove(seq)
                texts[seq] = ()
            elif what == "tail" and len(texts[seq]) > 2 and context.memory.remove(seq, len(texts[seq]) - 2):
                texts[seq] = texts[seq][:-2]
            elif what == "keep" and rng.random() < 0.3:
                context.memory.keep(seq)
                texts = [text if i == seq else () for i, text in enumerate(texts)]
            elif what == "save" and not moving:
                saved.append((context.save_state(seq), texts[seq]))
            elif what == "load" and saved and not moving:
                state, texts[seq] = rng.choice(saved)
                context.load_state(state, seq)
            else:
                seqs = rng.sample(range(4), rng.randint(1, 3))
                if max(len(texts[seq]) for seq in seqs) > 60:
                    continue
                batch = og.Batch(32)
                rows = {}
                for seq in seqs:
                    more = rng.choices(range(N_VOCAB), k=rng.randint(1, 5))
                    rows[seq] = batch.add_sequence(more, len(texts[seq]), seq, logits="all")
                    texts[seq] += tuple(more)
                context.decode(batch)
                moving = False
                for seq in seqs:
                    found = np.array([context.logits(row).copy() for row in rows[seq]])
                    same(found, alone(model, texts[seq])[-len(found) :])
            assert [context.memory.positions(seq).stop for seq in range(4)] == [len(text) for text in texts]


@each(*WITH_MEMORY)
def test_shift(model: og.Model) -> None:
    """Where can_shift is True a text moves and goes on as if it had begun there; where it is False nothing moves."""
    with open_context(model) as context:
        decode(context, TEXT[:12], 0, 1)
        before = context.memory.positions(1)
        assert context.memory.can_shift == (
            architecture(model).kind == "attention" and architecture(model).name not in KEYS_THAT_STAY
        )
        if context.memory.can_shift:
            context.memory.shift(1, 0, -1, 5)
            assert context.memory.positions(1) == range(before.start + 5, before.stop + 5)
            there = decode(context, TEXT, 5, 2)
            same(decode(context, TEXT[12:], 17, 1), there[12:])
        else:
            with pytest.raises(og.ContextError, match="can_shift"):
                context.memory.shift(1, 0, -1, 5)
            with pytest.raises(og.ContextError, match="can_shift"):
                context.memory.divide(1, 0, -1, 2)
            assert context.memory.positions(1) == before
            same(decode(context, TEXT[12:], 12, 1), alone(model, tuple(TEXT))[12:])


@each(*of_kind("recurrent", "hybrid"))
def test_a_state_has_no_parts(model: og.Model) -> None:
    """No part of a recurrent state is removed or copied, not in a unified context either, where llama.h may abort."""
    with open_context(model, unified=True) as context:
        decode(context, TEXT[:12], 0, 1)
        for p0, p1 in ((3, 6), (0, 6), (3, -1), (11, 12)):
            assert context.memory.remove(1, p0, p1) is False
            with pytest.raises(ValueError, match="no parts"):
                context.memory.copy(1, 2, p0, p1)
        assert context.memory.remove(1, 12, 20) is True
        assert context.memory.remove(1, 7, 7) is True
        assert context.memory.positions(1).stop == 12
        assert context.memory.positions(2) == range(0)
        same(decode(context, TEXT[12:], 12, 1), alone(model, tuple(TEXT))[12:])
        assert context.memory.remove(1, 0, 100) is True
        assert context.memory.positions(1) == range(0)


@each(*WITH_MEMORY)
def test_what_was_cancelled(model: og.Model) -> None:
    """After a decode that was cancelled memory holds what positions() says, and goes on from there."""
    text = tuple(TEXT * 4)
    with open_context(model, n_ubatch=2) as context:
        for _ in range(100):
            decode(context, OTHER, 0, 0)
            decode(context, text[:10], 0, 1)
            if cancelled(context, {1: text[10:]}, 10):
                break
            context.memory.clear()
        else:
            pytest.fail("every decode was faster than its cancel()")
        there = context.memory.positions(1).stop
        if architecture(model).kind == "attention":
            assert there >= 10
            assert there % 2 == 0
        else:
            assert there == 0
        same(decode(context, text[there : there + 6], there, 1), alone(model, text[: there + 6])[there:])
        same(decode(context, TEXT[:2], len(OTHER), 0), alone(model, (*OTHER, *TEXT[:2]))[-2:])


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_the_engine(name: str, tmp_path: Path) -> None:
    """Prefixes that are copied, cut, put on the shelf or saved on the way change no answer, with every kind of memory."""
    ARCHITECTURES[name].write(tmp_path / "model.gguf", LETTERS)
    with og.Model(tmp_path / "model.gguf") as model:
        serve(model)
        serve(model, kv_unified=True)


def serve(model: og.Model, **options: Any) -> None:
    n_seq_max = 1 if architecture(model).name == "plamo2" else 2
    system = TEXT + OTHER + TEXT[::-1]

    def said(prompt: Sequence[int], n: int) -> list[int]:
        """Return the greedy answer, one token after the other in a context of its own."""
        tokens: list[int] = []
        with open_context(model, n_seq_max=1) as context:
            row = decode(context, prompt)[-1]
            while len(tokens) < n:
                row[sorted(model.vocab.eog_tokens())] = -np.inf
                tokens.append(int(row.argmax()))
                row = decode(context, tokens[-1:], len(prompt) + len(tokens) - 1)[-1]
        return tokens

    endless = og.SamplingParams(temperature=0, logit_bias=dict.fromkeys(model.vocab.eog_tokens(), -np.inf))
    with og.Engine(model, n_seq_max=n_seq_max, n_ctx=128 * n_seq_max, n_batch=32, **EXACT, **options) as engine:

        def check(*prompts: Sequence[int], n: int = 5) -> list[int]:
            completions = [engine.submit(prompt, max_tokens=n, sampling=endless) for prompt in prompts]
            for prompt, completion in zip(prompts, completions, strict=True):
                assert completion.result().tokens == said(prompt, n)
            return completions[-1].tokens

        def check_scores(*prompts: Sequence[int]) -> None:
            """The logprobs of prompts are those of their rows."""
            asked = [engine.submit(prompt, max_tokens=3, sampling=endless, prompt_logprobs=1) for prompt in prompts]
            for prompt, completion in zip(prompts, asked, strict=True):
                assert completion.result().tokens == said(prompt, 3)
                with open_context(model, n_seq_max=1) as context:
                    rows = decode(context, prompt)[:-1].astype(np.float64)
                expected = rows[np.arange(len(rows)), prompt[1:]] - np.log(np.exp(rows).sum(axis=1))
                found = [each[0] for each in completion.prompt_logprobs[1:] if each is not None]
                np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)

        check([*system, 3, 4], [*system, 5])  # they arrive together
        check([*system, 6, 7, 8])
        answer = check(TEXT * 3)  # needs the room
        check(OTHER * 4, [9] * 70)
        check([*TEXT * 3, *answer, 1, 2])  # goes on where it was
        check([*system, 9])
        engine.submit([8] * 90, max_tokens=1).cancel()
        check([8] * 80, [*system, 3, 4])
        check_scores([*system, 3, 4], TEXT * 2, [9, 8])
        check([*system, 3, 4, 5])
        stats = engine.stats()
        assert stats.n_shelved
        assert stats.prompt_tokens_cached >= len(system)


@each("mamba", "jamba")
def test_what_was_cancelled_of_several(model: og.Model) -> None:
    """A batch of several sequences may also move the states of others: when it is cancelled all are forgotten."""
    with open_context(model, n_ubatch=4) as context:
        for _ in range(100):
            for seq in (0, 1, 2):
                decode(context, TEXT[:10], 0, seq)
            if cancelled(context, {0: TEXT * 4, 2: TEXT * 4}, 10):
                break
            context.memory.clear()
        else:
            pytest.fail("every decode was faster than its cancel()")
        assert [context.memory.positions(seq) for seq in range(4)] == [range(0)] * 4
        same(decode(context, TEXT, 0, 1), alone(model, tuple(TEXT)))


def cancelled(context: og.Context, texts: Mapping[int, Sequence[int]], pos: int) -> bool:
    """Decode a batch while another thread cancels, and return whether it was in time."""
    done = threading.Event()
    batch = og.Batch(sum(map(len, texts.values())))
    for seq, tokens in texts.items():
        batch.add_sequence(tokens, pos, seq)

    def cancel() -> None:
        while not done.is_set():
            context.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        context.decode(batch)
    except og.Aborted:
        return True
    finally:
        done.set()
        thread.join()
    return False


@each(*WITH_MEMORY)
@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q8_0"), ("q4_0", "q5_1")], ids="-".join)
def test_other_types(types: tuple[str, str], model: og.Model) -> None:
    """Flash attention and a smaller KV cache change the rows by little, or are refused; nothing crashes."""
    exact = alone(model, tuple(TEXT))
    try:
        context = open_context(model, type_k=types[0], type_v=types[1], flash_attn_type="enabled")
    except og.ContextError:
        assert types != ("f16", "f16")
        return
    with context:
        rows = np.concatenate([decode(context, TEXT[:15], 0, 1), decode(context, TEXT[15:], 15, 1)])
        assert np.abs(rows - exact).max() < 0.3 * np.abs(exact).max()


@each("plamo2")
def test_one_sequence(model: og.Model) -> None:
    """An architecture whose sequences llama.cpp mixes has one, in which all is as elsewhere."""
    with pytest.raises(og.ContextError, match="n_seq_max=1"):
        open_context(model, n_seq_max=2)
    with open_context(model, n_seq_max=1, n_ubatch=5) as context:
        decode(context, TEXT[:10])
        state = context.save_state(0)
        same(decode(context, TEXT[10:], 10), alone(model, tuple(TEXT))[10:])
        assert context.memory.remove(0, 10) is False
        context.load_state(state, 0)
        same(decode(context, OTHER, 10), alone(model, (*TEXT[:10], *OTHER))[10:])


@pytest.mark.parametrize(("name", "size"), [("rwkv7", 32), ("rwkv7", 96), ("rwkv6", 0)])
def test_heads_that_the_kernels_run_over(name: str, size: int, tmp_path: Path) -> None:
    """Such a head is written over its end by ggml, where the vectors of the processor are wide, or its size divided by."""
    made = ARCHITECTURES[name]
    file = tmp_path / "heads.gguf"
    write_gguf(file, made.keys() | {f"{name}.wkv.head_size": size}, {})
    with pytest.raises(og.GGUFError, match=f"wkv.head_size = {size}"):
        og.Model(file)
