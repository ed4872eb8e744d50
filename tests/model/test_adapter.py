"""LoRA adapters and control vectors, held against the twin with changed weights."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.adapters import KEYS, pair, write_lora
from helpers.twin import (
    CLOSE,
    EXACT,
    LETTERS,
    N_EMBD,
    N_LAYER,
    N_VOCAB,
    TOKENS,
    Array,
    Twin,
    Weights,
    decode,
    tiny_llama,
    write_gguf,
    write_tiny_llama,
)


def changed(weights: Weights, *changes: tuple[Weights, float]) -> Twin:
    """Return the twin of a model whose weights were changed by adapters at their scales."""
    new = dict(weights)
    for added, scale in changes:
        for name, array in added.items():
            new[name] = new[name] + scale * array
    return Twin(new)


@pytest.fixture(scope="module")
def files(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Weights]]:
    """Two adapters, with what they add."""
    folder = tmp_path_factory.mktemp("loras")
    return [(folder / f"{i}.gguf", write_lora(folder / f"{i}.gguf", weights, i)) for i in range(2)]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """The tiny llama with a vocabulary."""
    path = tmp_path_factory.mktemp("letters") / "letters.gguf"
    write_tiny_llama(path, more=LETTERS)
    with og.Model(path) as model:
        yield model


@pytest.fixture
def context(tiny: og.Model) -> Iterator[og.Context]:
    """A context in float32."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        yield context


def compute(context: og.Context) -> Array:
    context.memory.clear()
    return decode(context, TOKENS)


def same(got: Array, twin: Twin) -> None:
    np.testing.assert_allclose(got, twin.sequence(TOKENS), rtol=0, atol=3 * CLOSE)


# LoRA -----------------------------------------------------------------------------------------------------------------


def test_scales_and_swaps(
    context: og.Context, tiny: og.Model, weights: Weights, files: list[tuple[Path, Weights]]
) -> None:
    """One adapter, several at once, at any scale, and none again: each time it is the model with those weights."""
    (first, adds), (second, adds_too) = files
    with og.LoRA(tiny, first) as one, og.LoRA(tiny, second) as two:
        same(compute(context), Twin(weights))
        context.set_loras([one])
        same(compute(context), changed(weights, (adds, 1)))
        context.set_loras({one: 0.5, two: -0.25})
        same(compute(context), changed(weights, (adds, 0.5), (adds_too, -0.25)))
        context.set_loras({two: 0.0})
        same(compute(context), Twin(weights))
        context.set_loras({two: 1})
        same(compute(context), changed(weights, (adds_too, 1)))
        context.set_loras()
        same(compute(context), Twin(weights))
        assert one.metadata["adapter.type"] == "lora"
        assert one.invocation_tokens == ()
        assert repr(one) == "<LoRA 0.gguf>"


def test_contexts_have_their_own(tiny: og.Model, weights: Weights, files: list[tuple[Path, Weights]]) -> None:
    """Two contexts on one model use different adapters at once."""
    (first, adds), (second, adds_too) = files
    with (
        og.LoRA(tiny, first) as one,
        og.LoRA(tiny, second) as two,
        og.Context(tiny, n_ctx=256, **EXACT) as a,
        og.Context(tiny, n_ctx=256, **EXACT) as b,
    ):
        a.set_loras([one])
        b.set_loras([two])
        same(compute(a), changed(weights, (adds, 1)))
        same(compute(b), changed(weights, (adds_too, 1)))


def test_closing_takes_it_away(
    context: og.Context, tiny: og.Model, weights: Weights, files: list[tuple[Path, Weights]]
) -> None:
    """A closed adapter changes nothing any more, and the others stay."""
    (first, _), (second, adds) = files
    one, two = og.LoRA(tiny, first), og.LoRA(tiny, second)
    context.set_loras([one, two])
    one.close()
    same(compute(context), changed(weights, (adds, 1)))
    with pytest.raises(og.ClosedError, match=r"LoRA 0\.gguf"):
        context.set_loras([one])
    same(compute(context), changed(weights, (adds, 1)))
    two.close()
    two.close()
    same(compute(context), Twin(weights))


def test_any_order_of_closing(tiny: og.Model, files: list[tuple[Path, Weights]], weights: Weights) -> None:
    """Model, context and adapter are closed in any order; the model closes both."""
    for order in ("model", "context lora model", "lora context model", "lora model context", "context model lora"):
        objects: dict[str, Any] = {"model": og.Model(tiny.path)}
        objects["lora"] = og.LoRA(objects["model"], files[0][0])
        objects["context"] = og.Context(objects["model"], n_ctx=256, **EXACT)
        objects["context"].set_loras([objects["lora"]])
        same(compute(objects["context"]), changed(weights, (files[0][1], 1)))
        for name in order.split():
            objects[name].close()
        assert all(owner.closed for owner in objects.values())


def test_a_forgotten_adapter(
    context: og.Context, tiny: og.Model, weights: Weights, files: list[tuple[Path, Weights]]
) -> None:
    """An adapter lives as long as a context uses it; then it is freed, with the ResourceWarning of every owner."""
    path, adds = files[0]
    context.set_loras([og.LoRA(tiny, path)])
    gc.collect()
    same(compute(context), changed(weights, (adds, 1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        context.set_loras()
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    same(compute(context), Twin(weights))


def test_a_closed_context_lets_go_of_its_adapters(tiny: og.Model, files: list[tuple[Path, Weights]]) -> None:
    """A LoRA that only a closed context refers to is freed, although a variable still holds the context."""
    context = og.Context(tiny, n_ctx=256)
    lora = og.LoRA(tiny, files[0][0])
    handle = lora.handle
    context.set_loras([lora])
    del lora
    with pytest.warns(ResourceWarning, match="unclosed LoRA"):
        context.close()
    assert handle.closed


def test_closing_while_another_thread_decodes(tiny: og.Model, files: list[tuple[Path, Weights]]) -> None:
    """close() waits for the decode that uses the adapter."""
    with og.Context(tiny, n_ctx=2048, **EXACT) as context:
        for _ in range(10):
            lora = og.LoRA(tiny, files[0][0])
            context.set_loras([lora])
            context.memory.clear()
            batch = og.Batch(1024)
            batch.add_sequence((TOKENS * 64)[:1024])
            thread = threading.Thread(target=context.decode, args=(batch,))
            thread.start()
            while not batch.readers and thread.is_alive():
                pass
            lora.close()
            thread.join()


def test_wrong_arguments(context: og.Context, tiny: og.Model, files: list[tuple[Path, Weights]]) -> None:
    """An argument that is no adapter of this model, or no scale, is refused."""
    with og.Model(tiny.path) as other, og.LoRA(other, files[0][0]) as foreign, og.LoRA(tiny, files[0][0]) as lora:
        with pytest.raises(ValueError, match=r"0\.gguf is for"):
            context.set_loras([foreign])
        for scale in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="scale"):
                context.set_loras({lora: scale})
        with pytest.raises(TypeError, match="LoRA"):
            context.set_loras(["lora"])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError):
        og.LoRA(tiny, "none.gguf")
    with pytest.raises(og.AdapterError, match=r"general\.type"):
        og.LoRA(tiny, tiny.path)


def _bad(change: Any) -> Any:
    def make(weights: Weights) -> tuple[dict[str, Any], Weights]:
        name = "blk.0.attn_q.weight"
        a, b = pair(weights, name, 0)
        keys, tensors = dict(KEYS), {f"{name}.lora_a": a, f"{name}.lora_b": b}
        change(keys, tensors, name)
        return keys, tensors

    return make


def swap(tensors: Weights, name: str, part: str, array: Array) -> None:
    tensors[f"{name}.lora_{part}"] = np.ascontiguousarray(array, np.float32)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_bad(lambda k, _t, _n: k.update({"adapter.lora.alpha": "much"})), "alpha"),
        (_bad(lambda k, _t, _n: k.update({"adapter.lora.alpha": 3})), "alpha"),
        (_bad(lambda k, _t, _n: k.update({"general.type": 5})), "general.type"),
        (_bad(lambda k, _t, _n: k.update({"adapter.type": ["lora"]})), "adapter.type"),
        (_bad(lambda k, _t, _n: k.update({"general.architecture": "gemma3"})), "mismatch"),
        (_bad(lambda _k, t, n: t.pop(f"{n}.lora_b")), "missing one component"),
        (_bad(lambda _k, t, _n: t.update({"blk.7.attn_q.weight.lora_a": t["blk.0.attn_q.weight.lora_a"]})), "missing"),
        (_bad(lambda _k, t, _n: t.update({"other": np.zeros(4, np.float32)})), "suffix"),
        (_bad(lambda _k, t, n: swap(t, n, "a", t[f"{n}.lora_a"][:3])), "no pair"),
        (_bad(lambda _k, t, n: swap(t, n, "a", t[f"{n}.lora_a"][:, :8])), "shape"),
        (_bad(lambda _k, t, n: swap(t, n, "b", t[f"{n}.lora_b"][:8])), "shape"),
        (_bad(lambda _k, t, n: swap(t, n, "a", np.stack([t[f"{n}.lora_a"]] * 2))), "no pair"),
    ],
    ids=range(12),
)
def test_files_that_are_refused(make: Any, error: str, tiny: og.Model, weights: Weights, tmp_path: Path) -> None:
    """A file that is no adapter for the model is an AdapterError that says why, where llama.cpp may abort."""
    keys, tensors = make(weights)
    write_gguf(tmp_path / "bad.gguf", keys, tensors)
    with pytest.raises(og.AdapterError, match=error):
        og.LoRA(tiny, tmp_path / "bad.gguf")


def test_an_embedding_of_another_rank(tiny: og.Model, tmp_path: Path, context: og.Context) -> None:
    """Of the token embedding llama.cpp checks the outer sizes only, and aborts when it multiplies."""
    name, rng = "token_embd.weight", np.random.default_rng(0)

    def write(rank_a: int, rank_b: int) -> Path:
        tensors = {
            f"{name}.lora_a": rng.standard_normal((N_VOCAB, rank_a)).astype(np.float32),
            f"{name}.lora_b": rng.standard_normal((N_EMBD, rank_b)).astype(np.float32),
        }
        write_gguf(tmp_path / "embedding.gguf", KEYS, tensors)
        return tmp_path / "embedding.gguf"

    with pytest.raises(og.AdapterError, match="no pair"):
        og.LoRA(tiny, write(4, 5))
    with og.LoRA(tiny, write(4, 4)) as lora:
        before = compute(context)
        context.set_loras([lora])
        assert np.abs(compute(context) - before).max() > 0.1


def test_a_state_belongs_to_its_adapters(
    context: og.Context, tiny: og.Model, files: list[tuple[Path, Weights]]
) -> None:
    """A state of one set of adapters is refused with another set, or at another scale."""
    with og.LoRA(tiny, files[0][0]) as lora:
        context.set_loras([lora])
        compute(context)
        state = context.save_state(0)
        context.load_state(state, 0)
        for loras in ({}, {lora: 0.5}):
            context.set_loras(loras)
            with pytest.raises(og.StateError, match="adapters"):
                context.load_state(state, 0)
        with og.Context(tiny, n_ctx=256, **EXACT) as other, og.LoRA(tiny, files[0][0]) as again:
            other.set_loras([again])
            other.load_state(state, 0)


def test_a_state_knows_which_adapters_are_gone(
    context: og.Context, tiny: og.Model, files: list[tuple[Path, Weights]]
) -> None:
    """A closed adapter is none of the context's any more, and two of one file are that file at the sum of their scales."""
    compute(context)
    plain = context.save_state(0)
    with og.LoRA(tiny, files[0][0]) as one, og.LoRA(tiny, files[0][0]) as two:
        context.set_loras({one: 0.5})
        compute(context)
        half = context.save_state(0)
        context.set_loras({one: 0.25, two: 0.25})
        context.load_state(half, 0)
        context.set_loras({one: 0.5, two: 0.5})
        with pytest.raises(og.StateError, match="adapters"):
            context.load_state(half, 0)
        two.close()
        context.load_state(half, 0)
        one.close()
        with pytest.raises(og.StateError, match="adapters"):
            context.load_state(half, 0)
        context.load_state(plain, 0)


def test_an_engine_with_adapters(letters: og.Model, weights: Weights, files: list[tuple[Path, Weights]]) -> None:
    """All its requests are computed with them, what is shared and what is loaded again too."""
    prompt, begin = [*range(7, 47)], [*range(7, 40)]
    twin = changed(weights, (files[0][1], 0.5))
    expected: list[int] = []
    for _ in range(2):
        expected.append(int(twin.sequence([*prompt, *expected])[-1].argmax()))
    with og.LoRA(letters, files[0][0]) as lora:
        for loras in ({lora: 0.5}, {}):
            with og.Engine(letters, n_seq_max=2, n_ctx=512, loras=loras, **EXACT) as engine:
                engine.generate([*begin, 5], max_tokens=1)
                for _ in range(2):
                    found = engine.generate(prompt, max_tokens=2, temperature=0)
                    assert (found.answers[0].tokens == expected) is bool(loras)
                    assert found.usage.cached_tokens >= len(begin)
                    for other in range(3):
                        engine.generate([50 + other] * 20, max_tokens=1)


def test_vectors_with_adapters(tiny: og.Model, files: list[tuple[Path, Weights]]) -> None:
    """An Embedder uses them, too."""
    with (
        og.LoRA(tiny, files[0][0]) as lora,
        og.Context(tiny, n_ctx=256, embeddings=True, pooling_type="mean", **EXACT) as context,
        og.Embedder(tiny, pooling_type="mean", loras={lora: 0.5}) as embedder,
        og.Embedder(tiny, pooling_type="mean") as plain,
    ):
        context.set_loras({lora: 0.5})
        batch = og.Batch(256)
        batch.add_sequence(TOKENS, logits="all")
        context.decode(batch)
        expected = context.sequence_embedding(0)
        np.testing.assert_allclose(embedder.embed([TOKENS], normalize=False)[0], expected, atol=CLOSE * 10)
        assert np.abs(plain.embed([TOKENS], normalize=False)[0] - expected).max() > 0.01


def test_adapters_that_an_engine_refuses(letters: og.Model, files: list[tuple[Path, Weights]], tmp_path: Path) -> None:
    """One of another model, or two that begin in the middle of a text; nothing stays behind."""
    paths = [tmp_path / "late.gguf", tmp_path / "later.gguf"]
    for seed, path in enumerate(paths):
        write_lora(path, tiny_llama()[1], seed, (5, 6))
    with (
        og.Model(letters.path) as other,
        og.LoRA(other, files[0][0]) as foreign,
        og.LoRA(letters, paths[0]) as late,
        og.LoRA(letters, paths[1]) as later,
    ):
        assert late.invocation_tokens == (5, 6)
        with pytest.raises(ValueError, match=r"0\.gguf is for"):
            og.Engine(letters, loras=[foreign])
        with pytest.raises(ValueError, match=r"0\.gguf is for"):
            og.Embedder(letters, loras=[foreign])
        with pytest.raises(og.AdapterError, match="aLoRA"):
            og.Engine(letters, loras=[late, later])
    gc.collect()


# Control vectors ------------------------------------------------------------------------------------------------------


class Steered(Twin):
    """The twin with a direction added to what the second layer gives to the norm of the output."""

    def __init__(self, weights: Weights, direction: Array) -> None:
        super().__init__(weights)
        self.direction = direction

    def norm(self, x: Array, name: str) -> Array:
        return super().norm(x + self.direction if name == "output_norm" else x, name)


@pytest.fixture(scope="module")
def direction() -> Array:
    """A direction that changes every result."""
    return np.random.default_rng(9).standard_normal(N_EMBD).astype(np.float32)


def test_a_control_vector(context: og.Context, weights: Weights, direction: Array) -> None:
    """A direction is added after its layer, scaled; None switches it off."""
    assert N_LAYER == 2
    vector = og.ControlVector({1: direction})
    for scale in (1.0, -0.5, 2):
        context.set_control_vector(vector, scale)
        same(compute(context), Steered(weights, scale * direction))
    context.set_control_vector(None)
    same(compute(context), Twin(weights))
    context.set_control_vector(og.ControlVector({5: direction}))  # a layer that this model does not have
    same(compute(context), Twin(weights))


def test_control_vectors_in_files(context: og.Context, weights: Weights, direction: Array, tmp_path: Path) -> None:
    """A vector comes from a GGUF file's tensors direction.N."""
    path = tmp_path / "vector.gguf"
    write_gguf(path, {"general.architecture": "controlvector"}, {"direction.1": direction, "other": direction})
    vector = og.ControlVector.load(path)
    assert list(vector.directions) == [1]
    assert repr(vector) == f"<ControlVector of {N_EMBD} values for 1 layers>"
    context.set_control_vector(vector)
    same(compute(context), Steered(weights, direction))


def test_wrong_control_vectors(
    context: og.Context, smollm2: og.Model, direction: Array, tiny: og.Model, tmp_path: Path
) -> None:
    """Vectors of no length, of two lengths or another model's are refused, and layers out of range."""
    vector = og.ControlVector({1: direction})
    wrong: Any
    for wrong in ({}, {1: direction, 2: direction[:3]}, {1: [[1.0]]}, {1: [float("nan")] * N_EMBD}, {0: direction}):
        with pytest.raises(ValueError, match=r"direction|layer"):
            og.ControlVector(wrong)
    with og.Context(smollm2, n_ctx=256) as other, pytest.raises(ValueError, match="n_embd=576"):
        other.set_control_vector(vector)
    for arguments in ({"first": 0}, {"first": 2}, {"last": 2}, {"last": 0}, {"scale": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            context.set_control_vector(vector, **arguments)
    with pytest.raises(TypeError, match="ControlVector"):
        context.set_control_vector(direction)  # type: ignore[arg-type]
    with pytest.raises(og.AdapterError, match="no tensors direction"):
        og.ControlVector.load(tiny.path)
    write_gguf(tmp_path / "flat.gguf", {"general.architecture": "x"}, {"direction.1": direction.reshape(2, -1)})
    with pytest.raises(og.AdapterError, match="one dimension"):
        og.ControlVector.load(tmp_path / "flat.gguf")


def test_a_state_belongs_to_its_control_vector(context: og.Context, direction: Array) -> None:
    """A state with a control vector is refused without it."""
    context.set_control_vector(og.ControlVector({1: direction}))
    compute(context)
    state = context.save_state(0)
    context.load_state(state, 0)
    context.set_control_vector(None)
    with pytest.raises(og.StateError, match="adapters"):
        context.load_state(state, 0)
