"""Overrides of metadata and of where tensors lie: they have an effect, or are an error."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import EXACT, TOKENS, decode

EPSILON = "llama.attention.layer_norm_rms_epsilon"


def logits(model: og.Model) -> np.ndarray[Any, Any]:
    with og.Context(model, n_ctx=256, **EXACT) as context:
        return decode(context, TOKENS)


def test_overrides_change_the_model(tiny: og.Model) -> None:
    """An override takes the place of the file's value, an int may stand for a float, and the fingerprint differs."""
    prints = {tiny.fingerprint()}
    with og.Model(tiny.path, kv_overrides={"llama.context_length": 77}) as model:
        assert model.n_ctx_train == 77
        assert model.metadata["llama.context_length"] == "4096"
        assert model.kv_overrides == {"llama.context_length": 77}
        np.testing.assert_array_equal(logits(model), logits(tiny))
        prints.add(model.fingerprint())
    for value in (0.5, 1):
        with og.Model(tiny.path, kv_overrides={EPSILON: value}) as model:
            assert np.abs(logits(model) - logits(tiny)).max() > 0.1
            prints.add(model.fingerprint())
    with og.Model(tiny.path, kv_overrides={"general.name": "ü" * 63, "llama.attention.causal": True}) as model:
        prints.add(model.fingerprint())
    assert len(prints) == 5
    overrides = {"general.name": "x" * 127}
    with (
        tiny.path.open("rb") as file,
        og.Model(file, kv_overrides=overrides) as model,
        og.Model(tiny.path, kv_overrides=overrides) as other,
    ):
        assert model.fingerprint() == other.fingerprint()


def test_a_state_of_an_overridden_model(tiny: og.Model) -> None:
    """A state is not loaded into a model with other overrides."""
    with og.Context(tiny, n_ctx=64) as context:
        decode(context, TOKENS)
        state = context.save_state()
    with (
        og.Model(tiny.path, kv_overrides={EPSILON: 0.5}) as model,
        og.Context(model, n_ctx=64) as context,
        pytest.raises(og.StateError),
    ):
        context.load_state(state)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"llama.block_count": 0}, og.GGUFError, "block_count"),
        ({"llama.block_count": 2**32 - 1}, og.GGUFError, "block_count"),
        ({"llama.block_count": -1}, og.GGUFError, "block_count"),
        ({"llama.expert_count": 5000}, og.GGUFError, "expert_count"),
        ({EPSILON: -1.0}, og.GGUFError, "epsilon"),
        ({"llama.rope.scaling.type": "x"}, og.GGUFError, "rope.scaling.type"),
        ({"llama.vocab_size": 2**31}, og.GGUFError, "vocab_size"),
        ({"general.architecture": "x", "x.block_count": 0}, og.GGUFError, "x.block_count"),
        ({"llama.block_count": 2**32}, ValueError, "block_count"),
        ({"llama.block_count": -(2**31) - 1}, ValueError, "block_count"),
        ({"llama.block_count": 2.0}, TypeError, "block_count.*u32, not float"),
        ({"llama.block_count": True}, TypeError, "block_count.*u32, not bool"),
        ({"llama.block_count": "2"}, TypeError, "block_count.*u32, not str"),
        ({"llama.block_count": None}, TypeError, "block_count.*NoneType"),
        ({EPSILON: "1"}, TypeError, "epsilon"),
        ({EPSILON: True}, TypeError, "epsilon"),
        ({EPSILON: float("nan")}, ValueError, "epsilon"),
        ({EPSILON: 1e39}, ValueError, "epsilon"),
        ({"general.architecture": 5}, TypeError, "str, not int"),
        ({"general.name": "ü" * 64}, ValueError, "127 bytes"),
        ({"general.name": "a\0b"}, ValueError, "printable"),
        ({"general.name": "\ud800"}, ValueError, "printable"),
        ({"x" * 128: 1}, ValueError, "127 bytes"),
        ({"": 1}, ValueError, "a key must have a name"),
        ({5: 1}, TypeError, "a key must be a str"),
        ({"split.count": 7}, ValueError, "how the files are laid out"),
        ({"general.alignment": 64}, ValueError, "how the files are laid out"),
        ({"llama.no_such_key": 1}, og.ModelLoadError, "no effect"),
        ({"llama.expert_count": 0.5}, og.ModelLoadError, "no effect"),
    ],
)
def test_overrides_that_are_none(overrides: Any, error: type[Exception], message: str, tiny: og.Model) -> None:
    """An override that llama.cpp would cut off, ignore or abort on is an error that names the key."""
    with pytest.raises(error, match=message):
        og.Model(tiny.path, kv_overrides=overrides)


def test_arrays_are_not_overridden(smollm2_path: Path) -> None:
    """An array of the file's has no override, as llama.cpp would take the array all the same."""
    with pytest.raises(TypeError, match="array"):
        og.Model(smollm2_path, vocab_only=True, kv_overrides={"tokenizer.ggml.tokens": "x"})


def test_bytes_in_a_vocabulary_that_has_none(llama_cpp_dir: Path) -> None:
    """A tokenizer that llama.cpp aborts on while it caches the pieces is refused."""
    path = llama_cpp_dir / "models" / "ggml-vocab-llama-spm.gguf"
    with pytest.raises(og.GGUFError, match="bert"):
        og.Model(path, vocab_only=True, kv_overrides={"tokenizer.ggml.model": "bert"})
    with og.Model(path, vocab_only=True, kv_overrides={"tokenizer.ggml.add_bos_token": False}) as model:
        assert not model.vocab.add_bos


def test_random_overrides(tiny: og.Model) -> None:
    """With random overrides the model loads and computes, or the error is a typed one."""
    rng = random.Random(5)
    with og.GGUF(tiny.path) as file:
        keys = [*file, "llama.expert_used_count", "llama.rope.freq_base", "llama.attention.sliding_window", "x"]
    values: list[Any] = [
        0,
        1,
        2,
        3,
        64,
        2**16,
        2**31,
        2**32 - 1,
        -1,
        0.0,
        0.5,
        -1.0,
        1e30,
        True,
        "",
        "llama",
        "linear",
        "bert",
    ]
    loaded = 0
    for _ in range(150):
        overrides = {key: rng.choice(values) for key in rng.sample(keys, rng.choice([1, 1, 2]))}
        try:
            model = og.Model(tiny.path, kv_overrides=overrides)
        except (og.OffgridLlamaError, ValueError, TypeError):
            continue
        loaded += 1
        with model:
            try:
                with og.Context(model, n_ctx=64, n_threads=1) as context:
                    decode(context, [1, 2])
            except (og.OffgridLlamaError, ValueError):
                pass
    assert loaded >= 5


# Buffer types ----------------------------------------------------------------------------------------------------------


def test_buffer_types(tiny: og.Model) -> None:
    """Tensors lie where a pattern says; the results are the same."""
    with og.Model(tiny.path, tensor_buft_overrides={r"blk\.\d\.ffn_.*": "CPU", "^output": "CPU"}) as model:
        np.testing.assert_array_equal(logits(model), logits(tiny))
        assert model.fingerprint() == tiny.fingerprint()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"x": "Nowhere"}, ValueError, "must be one of CPU.*'Nowhere'"),
        ({"x": 5}, ValueError, "must be one of"),
        ({"(": "CPU"}, ValueError, "no regular expression"),
        ({"[z-a]": "CPU"}, ValueError, "no regular expression"),
        ({"": "CPU"}, ValueError, "1 to 256 bytes"),
        ({"a\0": "CPU"}, ValueError, "1 to 256 bytes"),
        ({"(" * 5000 + ")" * 5000: "CPU"}, ValueError, "1 to 256 bytes"),
        ({5: "CPU"}, TypeError, "regular expressions"),
    ],
)
def test_buffer_types_that_are_none(overrides: Any, error: type[Exception], message: str, tiny: og.Model) -> None:
    """A wrong pattern and a wrong name are errors that name the argument."""
    with pytest.raises(error, match=message):
        og.Model(tiny.path, tensor_buft_overrides=overrides)


@pytest.mark.parametrize("argument", ["no_host", "load_mtp"])
def test_switches(argument: str, tiny: og.Model) -> None:
    """The switches of llama.h are bools, and change no result here."""
    options: dict[str, Any] = {argument: True}
    with og.Model(tiny.path, lazy_mode="on", **options) as model:
        np.testing.assert_array_equal(logits(model), logits(tiny))
        assert getattr(model.params, argument) is True
        assert model.params.lazy_mode is og.LazyMode.ON
    options = {argument: 1}
    with pytest.raises(TypeError, match=argument):
        og.Model(tiny.path, **options)
