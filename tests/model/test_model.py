"""Models: what a file says of itself, how it is loaded, and what a load that fails leaves behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import EXACT, N_EMBD, N_HEAD, N_LAYER, N_VOCAB, TOKENS, decode, write_gguf, write_tiny_llama
from offgrid_llama.native.backend import has_gpu


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny llama with random weights."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def tiny(path: Path) -> Iterator[og.Model]:
    """A tiny llama with random weights."""
    with og.Model(path) as model:
        yield model


# Attributes -----------------------------------------------------------------------------------------------------------


def test_attributes(tiny: og.Model, path: Path) -> None:
    """The attributes are those that the file was written with."""
    assert tiny.path == path
    assert (tiny.n_ctx_train, tiny.n_embd, tiny.n_layer) == (4096, N_EMBD, N_LAYER)
    assert (tiny.n_head, tiny.n_head_kv, tiny.n_swa) == (N_HEAD, 1, 0)
    assert (tiny.has_encoder, tiny.has_decoder) == (False, True)
    assert (tiny.is_recurrent, tiny.is_hybrid, tiny.is_diffusion) == (False, False, False)
    assert tiny.decoder_start_token is None
    assert (tiny.n_embd_inp, tiny.n_layer_nextn, tiny.rope_freq_scale_train) == (N_EMBD, 0, 1.0)
    assert tiny.cls_labels == (None,) * tiny.n_cls_out
    assert tiny.rope_type is og.RopeType.NORM
    assert "llama" in tiny.description
    assert repr(tiny) == "<Model tiny.gguf>"
    with og.GGUF(path) as file:
        assert tiny.n_params == sum(tensor.n_elements for tensor in file.tensors())
        assert tiny.size == sum(tensor.n_bytes for tensor in file.tensors())


def test_attributes_of_real_models(smollm2: og.Model, gemma: og.Model) -> None:
    """The same for the two real models."""
    assert (smollm2.n_layer, smollm2.n_embd, smollm2.n_head, smollm2.n_head_kv) == (30, 576, 9, 3)
    assert "Q4_1" in smollm2.ftype
    assert smollm2.description.endswith(smollm2.ftype)
    assert (gemma.n_layer, gemma.n_embd, gemma.n_head, gemma.n_head_kv, gemma.n_swa) == (18, 640, 4, 1, 512)
    assert gemma.rope_type is og.RopeType.NEOX


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_metadata(name: str, request: pytest.FixtureRequest) -> None:
    """The metadata are the file's scalar keys, as text of any length."""
    model: og.Model = request.getfixturevalue(name)
    with og.GGUF(model.path) as file:
        scalars = {key: value for key, value in file.items() if not isinstance(value, list)}
    assert {key for key in model.metadata if key in scalars} == scalars.keys()
    for key, value in scalars.items():
        text = model.metadata[key]
        if isinstance(value, bool):
            assert text == str(value).lower()
        elif isinstance(value, float):
            assert float(text) == pytest.approx(value, rel=1e-5)
        else:
            assert text == str(value), key


def test_chat_template(smollm2: og.Model, tiny: og.Model) -> None:
    """The chat template is the file's; a name that it does not have, and a file without one, give None."""
    template = smollm2.chat_template()
    assert template is not None
    assert "<|im_start|>" in template
    assert template == smollm2.metadata["tokenizer.chat_template"]
    assert smollm2.chat_template("no such name") is None
    assert tiny.chat_template() is None


def test_named_chat_templates(path: Path, tmp_path: Path) -> None:
    """A file may have several chat templates, by name."""
    keys: dict[str, str | int | float] = {
        "tokenizer.chat_template": "default ü",
        "tokenizer.chat_template.tool_use": "tools " * 1000,
    }
    with og.GGUF(path) as file:
        for key, value in file.items():
            assert not isinstance(value, list)
            keys[key] = value
    write_gguf(tmp_path / "templates.gguf", keys, write_tiny_llama(tmp_path / "weights.gguf"))
    with og.Model(tmp_path / "templates.gguf") as model:
        assert model.chat_template() == "default ü"
        assert model.chat_template("tool_use") == "tools " * 1000
        assert model.chat_template("rag") is None


# How it is loaded -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*og.LoadMode, "mmap", "none", "MLOCK"])
def test_load_modes(mode: Any, path: Path, tiny: og.Model) -> None:
    """However the weights come into memory, they are the same."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        expected = decode(context, TOKENS)
    with og.Model(path, load_mode=mode) as model, og.Context(model, n_ctx=256, **EXACT) as context:
        np.testing.assert_array_equal(decode(context, TOKENS), expected)


def test_repacking_changes_no_result(smollm2_path: Path, smollm2: og.Model) -> None:
    """use_extra_bufts=False loads the weights as they are in the file."""
    prompt = smollm2.vocab.tokenize("The capital of France is")
    with og.Model(smollm2_path, use_extra_bufts=False, check_tensors=True) as model:
        for each in (model, smollm2):
            with og.Context(each, n_ctx=256, n_threads=1) as context:
                batch = og.Batch(16)
                batch.add_sequence(prompt)
                context.decode(batch)
                assert each.vocab.piece(context.argmax(-1)) == b" Paris"


def test_check_tensors(tmp_path: Path) -> None:
    """check_tensors refuses weights that are no numbers, which llama.cpp loads otherwise."""
    weights = write_tiny_llama(tmp_path / "good.gguf")
    with og.GGUF(tmp_path / "good.gguf") as file:
        keys = {key: value for key, value in file.items() if not isinstance(value, list)}
    weights["blk.1.attn_q.weight"][3, 4] = np.nan
    write_gguf(tmp_path / "nan.gguf", keys, weights)
    og.Model(tmp_path / "nan.gguf").close()
    og.Model(tmp_path / "good.gguf", check_tensors=True).close()
    with pytest.raises(og.ModelLoadError, match="invalid data") as caught:
        og.Model(tmp_path / "nan.gguf", check_tensors=True)
    assert caught.value.log


def test_progress(smollm2_path: Path) -> None:
    """Progress goes from 0 to 1 and never back, on the thread that loads."""
    seen: list[float] = []
    threads = set()

    def progress(value: float) -> None:
        seen.append(value)
        threads.add(threading.get_ident())

    og.Model(smollm2_path, progress=progress).close()
    assert seen[0] == 0
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert len(set(seen)) > 10
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("when", [0.0, 0.5, 1.0])
def test_cancel(when: float, smollm2_path: Path) -> None:
    """A callback that returns False ends the load at once, and is not called again; a second load works."""
    later: list[float] = []

    def progress(value: float) -> bool:
        if value >= when:
            later.append(value)
        return value < when

    with pytest.raises(og.LoadCancelled, match="cancelled"):
        og.Model(smollm2_path, progress=progress)
    assert len(later) == 1
    og.Model(smollm2_path, progress=lambda value: None).close()


@pytest.mark.parametrize("when", [0.0, 0.5, 1.0])
def test_an_exception_in_progress(when: float, smollm2_path: Path) -> None:
    """An exception of the callback ends the load and comes out of Model(), at the last call, too."""

    def progress(value: float) -> None:
        if value >= when:
            raise ZeroDivisionError(value)

    with pytest.raises(ZeroDivisionError):
        og.Model(smollm2_path, progress=progress)


@pytest.mark.parametrize("result", [None, True, 0, "", 1])
def test_only_false_cancels(result: object, path: Path) -> None:
    """A callback may return anything but False."""
    og.Model(path, progress=lambda value: result).close()


def test_progress_must_be_callable(path: Path) -> None:
    """A progress that is no function is refused before the load."""
    with pytest.raises(TypeError, match="progress must be callable"):
        og.Model(path, progress=5)  # type: ignore[arg-type]


def test_a_model_in_a_callback_of_another(path: Path, smollm2_path: Path) -> None:
    """A progress callback may load another model."""
    inner: list[og.Model] = []

    def progress(_: float) -> None:
        if not inner:
            inner.append(og.Model(path))

    with og.Model(smollm2_path, progress=progress):
        inner[0].close()


@pytest.mark.parametrize("layers", [1, 99, -1])
def test_gpu_layers_without_a_gpu(layers: int, path: Path) -> None:
    """Layers for a GPU that this build has no backend for are refused instead of staying on the CPU unsaid."""
    if has_gpu():
        og.Model(path, n_gpu_layers=layers).close()
        return
    with pytest.raises(og.BackendError, match=f"n_gpu_layers={layers}.*GGML_CUDA"):
        og.Model(path, n_gpu_layers=layers)


def test_gpu_layers_that_are_none(path: Path) -> None:
    """0 and "auto" always work; other values are refused by name."""
    og.Model(path, n_gpu_layers=0).close()
    og.Model(path, n_gpu_layers="auto").close()
    wrong: list[tuple[Any, type[Exception]]] = [
        (-2, ValueError),
        ("all", TypeError),
        (1.5, TypeError),
        (None, TypeError),
    ]
    for value, error in wrong:
        with pytest.raises(error, match="n_gpu_layers"):
            og.Model(path, n_gpu_layers=value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"split_mode": "diagonal"}, ValueError),
        ({"split_mode": 1}, TypeError),
        ({"load_mode": "fast"}, ValueError),
        ({"load_mode": None}, TypeError),
        ({"main_gpu": -1}, ValueError),
        ({"main_gpu": 10**6}, ValueError),
        ({"vocab_only": "yes"}, TypeError),
        ({"check_tensors": None}, TypeError),
        ({"use_extra_bufts": 2}, TypeError),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], error: type[Exception], path: Path) -> None:
    """A wrong argument is named before anything is loaded."""
    with pytest.raises(error, match=next(iter(arguments))):
        og.Model(path, **arguments)


def test_vocab_only(smollm2_path: Path, smollm2: og.Model) -> None:
    """Without weights there are a tokenizer and metadata, and no context."""
    with og.Model(smollm2_path, vocab_only=True) as model:
        assert model.vocab.tokenize("Hello world") == smollm2.vocab.tokenize("Hello world")
        assert model.metadata == smollm2.metadata
        assert model.chat_template() == smollm2.chat_template()
        with pytest.raises(og.ContextError, match="vocab_only=True"):
            og.Context(model)
        with pytest.raises(og.ContextError, match="vocab_only=True"):
            _ = og.generate(model, "Hello").text


def test_a_model_without_a_tokenizer(tiny: og.Model) -> None:
    """A file without a tokenizer computes with token ids, and says that it has no text."""
    assert len(tiny.vocab) == N_VOCAB
    assert tiny.vocab.type is og.VocabType.NONE
    with pytest.raises(og.TokenizeError):
        tiny.vocab.tokenize("Hello")


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mødel 日本 🦙.gguf", "with space.gguf", "no-suffix", "a" * 200 + ".gguf"])
def test_names_of_files(name: str, path: Path, tmp_path: Path) -> None:
    """A path may have any characters, as str, as Path and relative."""
    other = tmp_path / name
    other.symlink_to(path)
    for each in (other, str(other), os.path.relpath(other)):
        with og.Model(each) as model:
            assert model.path.name == name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
def test_names_that_are_no_unicode(path: Path, tmp_path: Path) -> None:
    """A name that is no UTF-8 works as Python spells it."""
    other = os.fsencode(tmp_path) + b"/m\xff.gguf"
    os.symlink(os.fsencode(path), other)
    with og.Model(os.fsdecode(other)) as model:
        assert "tiny" not in repr(model)


def test_missing_files(tmp_path: Path) -> None:
    """A path that is not there is FileNotFoundError; a str may be a name of the store's, and is unknown to it."""
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        og.Model(tmp_path / "none.gguf")
    with pytest.raises((FileNotFoundError, og.UnknownModelError), match=r"none\.gguf"):
        og.Model(str(tmp_path / "none.gguf"))
    with pytest.raises(og.UnknownModelError):
        og.Model("no-such-model-of-ours")


def test_directories(tmp_path: Path) -> None:
    """A directory is no model."""
    with pytest.raises(OSError, match=tmp_path.name):
        og.Model(tmp_path)
    with pytest.raises((OSError, og.UnknownModelError), match=tmp_path.name):
        og.Model(str(tmp_path))


def test_files_that_may_not_be_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission is Python's PermissionError."""
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(path.read_bytes())
    secret.chmod(0)
    if os.access(secret, os.R_OK):  # root reads everything

        def refuse(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="secret"):
        og.Model(secret)


@pytest.mark.parametrize("thing", [None, 5, b"model.gguf"])
def test_paths_of_another_type(thing: Any) -> None:
    """A model is a path or a name."""
    with pytest.raises(TypeError):
        og.Model(thing)


def test_a_model_that_llama_cpp_refuses(path: Path, tmp_path: Path) -> None:
    """An unknown architecture, and a missing tensor, are ModelLoadErrors with llama.cpp's reason."""
    with og.GGUF(path) as file:
        keys = {key: value for key, value in file.items() if not isinstance(value, list)}
    weights = write_tiny_llama(tmp_path / "weights.gguf")
    write_gguf(tmp_path / "unknown.gguf", keys | {"general.architecture": "no-such-architecture"}, weights)
    with pytest.raises(og.ModelLoadError, match="unknown model architecture"):
        og.Model(tmp_path / "unknown.gguf")
    del weights["blk.1.ffn_up.weight"]
    write_gguf(tmp_path / "missing.gguf", keys, weights)
    with pytest.raises(og.ModelLoadError, match=r"blk\.1\.ffn_up") as caught:
        og.Model(tmp_path / "missing.gguf")
    assert str(tmp_path / "missing.gguf") in str(caught.value)
    assert not isinstance(caught.value, og.LoadCancelled)


def test_many_models_of_one_file(path: Path) -> None:
    """A file may be open many times; closing one model leaves the others."""
    models = [og.Model(path) for _ in range(5)]
    for model in models[:4]:
        model.close()
    with og.Context(models[4], n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
    models[4].close()


def test_models_load_in_threads(path: Path) -> None:
    """Threads load models at the same time."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with og.Model(path) as model, og.Context(model, n_ctx=256, n_threads=1) as context:
                    decode(context, TOKENS)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_after_close(path: Path) -> None:
    """A closed model keeps its description and refuses the rest."""
    model = og.Model(path)
    model.close()
    model.close()
    assert model.n_layer == N_LAYER
    assert model.metadata["general.architecture"] == "llama"
    with pytest.raises(og.ClosedError, match="tiny"):
        model.chat_template()
    with pytest.raises(og.ClosedError, match="tiny"), model:
        pass
