"""Model.save: what is written loads again and computes the same; what llama.cpp cannot save is refused before it aborts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.splits import NAMES, logits, write_splits
from helpers.twin import write_gguf, write_tiny_llama
from offgrid_llama.files.architecture import CANNOT_BE_SAVED
from offgrid_llama.files.gguf import Tensor


def test_a_saved_model_is_the_same(tiny: og.Model, tmp_path: Path) -> None:
    """Logits, tensors and metadata come back; what is written takes the place of what was there."""
    path = tmp_path / "ü saved"
    path.write_text("before")
    with og.Model(tiny.path, use_extra_bufts=False) as model:
        model.save(path)
    with og.Model(path) as model, og.GGUF(path) as saved, og.GGUF(tiny.path) as source:
        np.testing.assert_array_equal(logits(model), logits(tiny))
        assert {t.name: (t.type, t.shape) for t in saved.tensors()} == {
            t.name: (t.type, t.shape) for t in source.tensors()
        }
        assert model.description == tiny.description
    assert os.listdir(tmp_path) == [path.name]


def test_a_real_model_keeps_its_tokenizer_and_template(smollm2_path: Path, smollm2: og.Model, tmp_path: Path) -> None:
    """The tokenizer, the chat template and all other keys are saved too; greedy tokens are the same."""
    with og.Model(smollm2_path, use_extra_bufts=False) as model:
        model.save(tmp_path / "saved.gguf")
        expected = og.generate(model, "The capital of France is", max_tokens=8, temperature=0).text
    with og.Model(tmp_path / "saved.gguf", use_extra_bufts=False) as model:
        assert og.generate(model, "The capital of France is", max_tokens=8, temperature=0).text == expected
        assert model.chat_template() == smollm2.chat_template()
        assert model.metadata.items() >= {("general.license", smollm2.metadata["general.license"])}
        assert model.ftype == smollm2.ftype
        for text in ("Hello, world", "  Grüße\n\n日本 🦙 x+=1", "<|im_start|>user"):
            assert model.vocab.tokenize(text, parse_special=True) == smollm2.vocab.tokenize(text, parse_special=True)
    with og.GGUF(tmp_path / "saved.gguf") as saved, og.GGUF(smollm2_path) as source:
        lost = {key for key in source if key not in saved}
    assert all(key.startswith("llama.") for key in lost), lost


def test_splits_and_overrides_become_one_file(tiny: og.Model, tmp_path: Path) -> None:
    """A split model is saved as one file, and what was overridden is the file's own."""
    paths = write_splits(tmp_path, NAMES)
    with og.Model(paths[0], use_extra_bufts=False, kv_overrides={"llama.context_length": 77}) as model:
        model.save(tmp_path / "one.gguf")
    with og.Model(tmp_path / "one.gguf") as model:
        assert model.n_ctx_train == 77
        np.testing.assert_array_equal(logits(model), logits(tiny))
        assert not [key for key in model.metadata if key.startswith("split.")]


@pytest.mark.parametrize("option", ["use_extra_bufts", "vocab_only"])
def test_models_without_their_own_weights(option: str, tiny: og.Model, tmp_path: Path) -> None:
    """Repacked weights, and none at all, cannot be saved."""
    options: dict[str, Any] = {"use_extra_bufts": False, option: True}
    with og.Model(tiny.path, **options) as model, pytest.raises(og.ModelSaveError, match=f"{option}=False"):
        model.save(tmp_path / "x.gguf")
    assert os.listdir(tmp_path) == []


def test_architectures_that_llama_cpp_aborts_on(
    tiny: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_cpp_dir: Path
) -> None:
    """An architecture of the list, which is llama.cpp's, is refused."""
    source = (llama_cpp_dir / "src" / "llama-model-saver.cpp").read_text()
    body = source[source.index("bool llama_model_saver_supports_arch") : source.index("default:")]
    listed = {line.split("LLM_ARCH_")[1].rstrip(":").lower() for line in body.splitlines() if "case" in line}
    assert listed == CANNOT_BE_SAVED
    monkeypatch.setattr("offgrid_llama.model.saving.CANNOT_BE_SAVED", {"llama"})
    with og.Model(tiny.path, use_extra_bufts=False) as model, pytest.raises(og.ModelSaveError, match="architecture"):
        model.save(tmp_path / "x.gguf")


def test_a_tensor_that_is_left_out(tiny: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that lacks a tensor is not taken for a saved model."""
    with og.Model(tiny.path, use_extra_bufts=False) as model:
        monkeypatch.setitem(model.files.tensors, "extra", Tensor("extra", "f32", (1,), 4, 0))
        with pytest.raises(og.ModelSaveError, match="leaves out extra"):
            model.save(tmp_path / "x.gguf")
    assert os.listdir(tmp_path) == []


def test_a_charsmap(tmp_path: Path) -> None:
    """A tokenizer with a table of characters, which llama.cpp's writer aborts on, is refused."""
    weights = write_tiny_llama(tmp_path / "w.gguf")
    with og.GGUF(tmp_path / "w.gguf") as file:
        keys: dict[str, Any] = dict(file)
    write_gguf(tmp_path / "m.gguf", keys | {"tokenizer.ggml.precompiled_charsmap": [1, 2]}, weights)
    with (
        og.Model(tmp_path / "m.gguf", use_extra_bufts=False) as model,
        pytest.raises(og.ModelSaveError, match="tokenizer"),
    ):
        model.save(tmp_path / "x.gguf")


def test_places_that_cannot_be_written(tiny: og.Model, tmp_path: Path) -> None:
    """A missing folder, and a folder in the file's place, are OSErrors; a file that has changed is not mixed in."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.path.read_bytes())
    with og.Model(path, use_extra_bufts=False) as model:
        with pytest.raises(FileNotFoundError):
            model.save(tmp_path / "none" / "x.gguf")
        with pytest.raises(OSError, match="folder"):
            model.save(tmp_path / "folder")
        os.utime(path, (1, 1))
        with pytest.raises(og.ModelSaveError, match="has changed"):
            model.save(tmp_path / "x.gguf")
    with pytest.raises(og.ClosedError):
        model.save(tmp_path / "x.gguf")
    assert sorted(os.listdir(tmp_path)) == ["folder", "m.gguf"]


def test_a_full_disk(tiny: og.Model, run_child: Any, tmp_path: Path) -> None:
    """A file that could not be written to its end is an error, and nothing is left."""
    code = """
        import resource, signal, sys, os
        import offgrid_llama as og
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with og.Model(sys.argv[1], use_extra_bufts=False) as model:
            for limit in (100, 5000, 100_000):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    model.save(sys.argv[2] + "/x.gguf")
                except og.ModelSaveError as error:
                    print("failed", os.listdir(sys.argv[2]))
    """
    result = run_child(code, tiny.path, tmp_path)
    assert result.stdout.splitlines() == ["failed []"] * 3, result.stderr
