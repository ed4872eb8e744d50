"""quantize: other types with nearly the same results, importance matrices, and refusals of all that llama.cpp aborts on."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers import twin
from helpers.splits import NAMES, with_keys, write_splits
from helpers.twin import TOKENS, Weights, decode, write_gguf
from offgrid_llama._capi import ffi, lib
from offgrid_llama.files.gguf_encoding import encoded, positions
from offgrid_llama.files.quantize import FTYPES, TENSOR_TYPES


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with rows of 256 columns, in float16."""
    path = tmp_path_factory.mktemp("wide") / "f16.gguf"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"N_EMBD": 256, "N_FF": 256, "HEAD": 128}.items():
            patch.setattr(twin, name, value)
        weights = twin.write_tiny_llama(path)
    with og.GGUF(path) as file:
        keys: dict[str, Any] = dict(file)
    write_gguf(path, keys, {name: a.astype(np.float16) if a.ndim == 2 else a for name, a in weights.items()})
    return path


@pytest.fixture(scope="module")
def imatrix(wide: Path) -> dict[str, Any]:
    """Ones and twos for each matrix."""
    rng = np.random.default_rng(1)
    with og.GGUF(wide) as file:
        return {t.name: rng.integers(1, 3, t.shape[0]) for t in file.tensors() if len(t.shape) == 2}


def logits(path: Path) -> np.ndarray[Any, Any]:
    with og.Model(path) as model, og.Context(model, n_ctx=64, n_threads=1) as context:
        return decode(context, TOKENS)


# Results --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ftype", "correlation"),
    [
        ("f32", 0.9999),
        ("BF16", 0.999),
        ("q8_0", 0.999),
        ("Q6_K", 0.995),
        ("Q5_K_M", 0.97),
        ("Q4_K_M", 0.9),
        ("Q4_0", 0.8),
    ],
)
def test_results_stay_close(ftype: str, correlation: float, wide: Path, tmp_path: Path) -> None:
    """A quantized model has the type asked for, the size that the result says, and nearly the same logits."""
    target = tmp_path / "q.gguf"
    made = og.quantize(wide, target, ftype)
    with og.Model(target) as model, og.GGUF(target) as file:
        with model.handle as ptr:
            assert lib.llama_model_ftype(ptr) == FTYPES[ftype.upper()]
        assert {tensor.name: tensor.type for tensor in file.tensors()} == made.types
        assert (model.size, made.n_bytes) == (made.n_bytes, sum(tensor.n_bytes for tensor in file.tensors()))
    with og.GGUF(wide) as file:
        assert made.n_bytes_source == sum(tensor.n_bytes for tensor in file.tensors())
    found = np.corrcoef(logits(target).ravel(), logits(wide).ravel())[0, 1]
    assert found > correlation
    assert og.quantize(wide, None, ftype, dry_run=True) == made
    assert os.listdir(tmp_path) == ["q.gguf"]


def test_a_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    """SmolLM2 goes on saying what it said."""
    seen: list[tuple[int, int]] = []
    made = og.quantize(
        smollm2_path, tmp_path / "q.gguf", "q8_0", allow_requantize=True, progress=lambda *at: seen.append(at)
    )
    assert seen == [(done, 272) for done in range(1, 273)]
    assert Counter(made.types.values()) == {"q8_0": 211, "f32": 61}
    with og.Model(tmp_path / "q.gguf") as model:
        assert "Q8_0" in model.ftype
        assert og.generate(model, "The capital of France is", max_tokens=1, temperature=0).text == " Paris"


def test_every_ftype(wide: Path, imatrix: dict[str, Any]) -> None:
    """Each name stands for the number of llama.h, and llama.cpp has a plan for each."""
    for name, number in FTYPES.items():
        said = ffi.string(lib.llama_ftype_name(number)).decode()
        short = said.replace(" - Medium", "_M").replace(" - Small", "_S").replace(" - Large", "_L").split(" - ")[0]
        expected = {"all F32": "F32", "MXFP4 MoE": "MXFP4_MOE", "Q2_K_M": "Q2_K", "IQ3_S mix": "IQ3_M"}.get(
            short, short
        )
        assert expected == name
        assert len(og.quantize(wide, None, name, dry_run=True, imatrix=imatrix).types) == 21
    known = {name for name in dir(lib) if name.startswith("LLAMA_FTYPE_")}
    left = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_") for name in known
    } - FTYPES.keys()
    assert left == {"GUESSED", "NVFP4"}


def test_types_of_single_tensors(wide: Path, tmp_path: Path) -> None:
    """Every type can be made; patterns, the table of embeddings and the output have types of their own."""
    row = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    write_gguf(tmp_path / "row.gguf", model_keys(wide), {"blk.0.attn_q.weight": row})
    for kind in TENSOR_TYPES:
        slow = kind[:3] in ("iq1", "iq2", "iq3")  # some seconds each to begin with
        made = og.quantize(
            tmp_path / "row.gguf", None if slow else tmp_path / "q.gguf", "q8_0", dry_run=slow,
            tensor_types={r"blk\.0\.attn_q": kind}, imatrix={"blk.0.attn_q.weight": np.ones(256)},
        )  # fmt: skip
        assert made.types["blk.0.attn_q.weight"].lower() == kind
    made = og.quantize(wide, tmp_path / "q.gguf", "q4_0", output_tensor_type="F16", token_embedding_type="q5_1")
    assert (made.types["output.weight"], made.types["token_embd.weight"]) == ("f16", "q5_1")
    made = og.quantize(wide, tmp_path / "q.gguf", "q4_k_m", pure=True, quantize_output_tensor=False)
    assert Counter(made.types.values()) == {"q4_K": 15, "f32": 5, "f16": 1}


def test_rows_that_are_no_whole_blocks(tiny: og.Model, tmp_path: Path) -> None:
    """Rows of 64 and 96 columns get a type with shorter blocks."""
    made = og.quantize(tiny.path, tmp_path / "q.gguf", "Q4_K_M")
    assert set(made.types.values()) == {"f32", "q5_0", "q8_0"}
    og.Model(tmp_path / "q.gguf").close()


def test_copies_and_splits(tmp_path: Path, tiny: og.Model) -> None:
    """Splits become one file, or as many as there were; a copy changes no tensor."""
    paths = write_splits(tmp_path, NAMES)
    made = og.quantize(paths[0], tmp_path / "one.gguf", only_copy=True)
    with og.GGUF(tmp_path / "one.gguf") as one, og.GGUF(tiny.path) as whole:
        assert made.types == {tensor.name: tensor.type for tensor in whole.tensors()}
        assert not [key for key in one if key.startswith("split.")]
    np.testing.assert_array_equal(logits(tmp_path / "one.gguf"), logits(tiny.path))
    og.quantize(paths[0], tmp_path / "q.gguf", "q8_0", keep_split=True)
    names = [f"q-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("q")) == names
    assert np.corrcoef(logits(tmp_path / names[0]).ravel(), logits(tiny.path).ravel())[0, 1] > 0.999
    with pytest.raises(ValueError, match="must not be src"):
        og.quantize(paths[0], tmp_path / "m.gguf", "q8_0", keep_split=True)
    with pytest.raises(ValueError, match="keep_split"):
        og.quantize(paths[0], tmp_path / "x.gguf", "q8_0", keep_split=True, prune_layers=[0])
    write_gguf(paths[1], {"x": 1}, {})
    with_keys(paths[1], split_no=("u16", 1))
    with pytest.raises(ValueError, match="keep_split must be False"):
        og.quantize(paths[0], tmp_path / "x.gguf", "q8_0", keep_split=True)


def test_layers_left_out(wide: Path, imatrix: dict[str, Any], tmp_path: Path) -> None:
    """A layer is left out, and the others move up with their importance."""
    made = og.quantize(wide, tmp_path / "q.gguf", "Q2_K_S", prune_layers=[0], imatrix=imatrix)
    with og.Model(tmp_path / "q.gguf") as model:
        assert model.n_layer == 1
    assert not [name for name in made.types if name.startswith("blk.1.")]
    for layers, error in [([2], ValueError), ([-1], ValueError), ([0, 1], ValueError), (["0"], TypeError)]:
        with pytest.raises(error, match="prune_layers"):
            og.quantize(wide, tmp_path / "x.gguf", "q8_0", prune_layers=layers)  # type: ignore[arg-type]
    write_gguf(tmp_path / "enc.gguf", model_keys(wide), {"enc.blk.0.x.weight": np.zeros((4, 32), np.float32)})
    with pytest.raises(ValueError, match="more than one row"):
        og.quantize(tmp_path / "enc.gguf", None, "q8_0", prune_layers=[0], dry_run=True)
    write_gguf(tmp_path / "array.gguf", model_keys(wide) | {"llama.feed_forward_length": [256, 256]}, {})
    with pytest.raises(ValueError, match=r"llama\.feed_forward_length has a value for each"):
        og.quantize(tmp_path / "array.gguf", None, "q8_0", prune_layers=[0], dry_run=True)


def model_keys(path: Path) -> dict[str, Any]:
    with og.GGUF(path) as file:
        return dict(file)


def test_metadata(wide: Path, tmp_path: Path) -> None:
    """Overrides are written into the new file."""
    og.quantize(wide, tmp_path / "q.gguf", "q8_0", kv_overrides={"llama.context_length": 99, "x.y": "z", "x.b": True})
    with og.GGUF(tmp_path / "q.gguf") as file:
        assert (file["llama.context_length"], file["x.y"], file["x.b"]) == (99, "z", True)
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"llama.block_count": 0}, og.GGUFError), ({"x": -1}, ValueError), ({"split.no": 1}, ValueError)
    ]  # fmt: skip
    for overrides, error in wrong:
        with pytest.raises(error):
            og.quantize(wide, tmp_path / "x.gguf", "q8_0", kv_overrides=overrides)


def test_another_alignment(wide: Path, tmp_path: Path) -> None:
    """A source of another alignment gives a sound file, although llama.cpp copies the number and aligns to 32 bytes."""
    with og.GGUF(wide) as file:
        begin = file.data_offset
    data = wide.read_bytes()
    places, (table, end) = positions(data[:begin])
    head = (
        data[:16] + (len(places) + 1).to_bytes(8, "little") + data[24:table] + encoded("general.alignment", "u32", 64)
    )
    head += data[table:end]
    (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 64) + data[begin:])
    og.quantize(tmp_path / "a.gguf", tmp_path / "q.gguf", "q8_0")
    assert np.isfinite(logits(tmp_path / "q.gguf")).all()


# Importance matrices ----------------------------------------------------------------------------------------------------


def test_importance_matters(wide: Path, tmp_path: Path) -> None:
    """Columns that count for more are nearer to what they were."""
    weight = "blk.0.attn_q.weight"

    def error(values: Any) -> Any:
        og.quantize(wide, tmp_path / "q.gguf", "Q2_K_S", imatrix=dict.fromkeys(model_types(wide), values), pure=True)
        og.quantize(tmp_path / "q.gguf", tmp_path / "f.gguf", "f32", allow_requantize=True)
        return (tensor(tmp_path / "f.gguf", weight) - tensor(wide, weight)) ** 2

    left = np.where(np.arange(256) % 2, 1000.0, 0.001)
    odd, even = error(left)[:, 1::2].mean(), error(left)[:, ::2].mean()
    assert odd < even / 2


def model_types(path: Path) -> list[str]:
    with og.GGUF(path) as file:
        return [tensor.name for tensor in file.tensors()]


def tensor(path: Path, name: str) -> np.ndarray[Any, Any]:
    with og.GGUF(path) as file:
        (found,) = [tensor for tensor in file.tensors() if tensor.name == name]
    dtype = {"f32": np.float32, "f16": np.float16}[found.type]
    array = np.fromfile(path, dtype, found.n_elements, offset=found.offset)
    return array.reshape(found.shape[::-1]).astype(np.float32)


def test_files_of_importance(wide: Path, imatrix: dict[str, Any], tmp_path: Path) -> None:
    """The file of llama.cpp's tool is read as mean squares; the new file names that file."""
    path = tmp_path / "imatrix.gguf"
    tensors: Weights = {}
    for name, values in imatrix.items():
        tensors[f"{name}.in_sum2"] = (values * 7).astype(np.float32)[None]
        tensors[f"{name}.counts"] = np.array([[7]], np.float32)
    tensors["experts.in_sum2"] = np.array([[2, 4], [6, 6], [5, 5]], np.float32)
    tensors["experts.counts"] = np.array([[2], [3], [0]], np.float32)
    keys: dict[str, Any] = {"general.type": "imatrix", "imatrix.datasets": ["text.txt"], "imatrix.chunk_count": 7}
    write_gguf(path, keys, tensors)
    found = og.load_imatrix(path)
    for name, values in imatrix.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found["experts"], [[1, 2], [2, 2], [1, 1]])
    og.quantize(wide, tmp_path / "a.gguf", "IQ2_XS", imatrix=path)
    og.quantize(wide, tmp_path / "b.gguf", "IQ2_XS", imatrix=imatrix)
    with og.GGUF(tmp_path / "a.gguf") as file:
        assert file["quantize.imatrix.dataset"] == "text.txt"
        assert (file["quantize.imatrix.entries_count"], file["quantize.imatrix.chunks_count"]) == (len(found), 7)
        assert str(file["quantize.imatrix.file"]) == str(path)[:127]
    np.testing.assert_array_equal(logits(tmp_path / "a.gguf"), logits(tmp_path / "b.gguf"))
    del tensors["experts.counts"]
    write_gguf(path, keys, tensors)
    with pytest.raises(og.GGUFError, match="experts"):
        og.load_imatrix(path)
    with pytest.raises(og.GGUFError, match="no importance matrix"):
        og.load_imatrix(wide)


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-1.0], [1e11], []])
def test_importance_that_is_none(values: list[float], wide: Path, tmp_path: Path) -> None:
    """Numbers that cannot be an importance are refused by the tensor's name."""
    with pytest.raises(ValueError, match=r"imatrix\['x'\]"):
        og.quantize(wide, tmp_path / "q.gguf", "q8_0", imatrix={"x": values})


@pytest.mark.parametrize("ftype", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M", "IQ3_XXS", "Q2_K_S"])
def test_types_that_need_importance(ftype: str, wide: Path, imatrix: dict[str, Any], tmp_path: Path) -> None:
    """Without an importance matrix of the right size such a type is refused at once."""
    for given in (None, {}, {name: v for name, v in imatrix.items() if name != "blk.1.ffn_up.weight"}):
        if ftype in ("IQ3_XXS", "Q2_K_S") and given:
            continue  # that tensor gets another type
        with pytest.raises(ValueError, match="without an imatrix"):
            og.quantize(wide, tmp_path / "q.gguf", ftype, imatrix=given)
    with pytest.raises(ValueError, match="must have 256 values, not 3"):
        og.quantize(wide, tmp_path / "q.gguf", ftype, imatrix=imatrix | {"blk.0.attn_q.weight": [1, 1, 1]})
    assert os.listdir(tmp_path) == []


def test_the_table_of_embeddings_needs_importance_too(wide: Path, imatrix: dict[str, Any], tmp_path: Path) -> None:
    """llama.cpp does not refuse the table without an importance matrix, but aborts."""
    del (some := dict(imatrix))["token_embd.weight"]
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"token_embedding_type": "iq2_xs"}, some), ({"pure": True}, some),
        ({"pure": True}, some | {"token_embd.weight": [1]}),
    ]  # fmt: skip
    for given, values in wrong:
        with pytest.raises(ValueError, match=r"token_embd\.weight"):
            og.quantize(wide, tmp_path / "q.gguf", "IQ2_XS", imatrix=values, **given)


# Refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ftype": "Q4_K_X"}, ValueError, "ftype must be one of F32, "),
        ({"ftype": 15}, TypeError, "ftype"),
        ({"output_tensor_type": "i8"}, ValueError, "output_tensor_type must be one of f32"),
        ({"token_embedding_type": "q8_k"}, ValueError, "token_embedding_type"),
        ({"tensor_types": {"x": "q8_1"}}, ValueError, "tensor_types"),
        ({"tensor_types": {"(": "q8_0"}}, ValueError, "no regular expression"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"max_buf_size": -1}, ValueError, "max_buf_size"),
        ({"pure": 1}, TypeError, "pure"),
        ({"progress": 5}, TypeError, "progress must be callable"),
        ({"dst": None}, ValueError, "dst must be a path"),
        ({"dry_run": True}, ValueError, "dst must be a path, or None"),
    ],
)
def test_arguments_out_of_range(
    arguments: dict[str, Any], error: type[Exception], message: str, wide: Path, tmp_path: Path
) -> None:
    """A wrong argument is named before anything is written."""
    given: dict[str, Any] = {"src": wide, "dst": tmp_path / "q.gguf", "ftype": "q8_0"}
    with pytest.raises(error, match=message):
        og.quantize(**given | arguments)
    assert os.listdir(tmp_path) == []


def test_threads_and_buffers_change_nothing(wide: Path, tmp_path: Path) -> None:
    """Any number of threads, and the smallest buffer, give the same file."""
    og.quantize(wide, tmp_path / "a.gguf", "Q4_K_M", n_threads=1)
    og.quantize(wide, tmp_path / "b.gguf", "Q4_K_M", n_threads=10**9, max_buf_size=1)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_files_that_cannot_be_quantized(wide: Path, tiny: og.Model, tmp_path: Path) -> None:
    """The source itself, files that are no model, and shapes on which llama.cpp aborts."""
    with pytest.raises(ValueError, match="dst must not be src"):
        og.quantize(wide, wide, "q8_0")
    (tmp_path / "link.gguf").symlink_to(wide)
    with pytest.raises(ValueError, match="dst must not be src"):
        og.quantize(wide, tmp_path / "link.gguf", "q8_0")
    with pytest.raises(og.GGUFError, match="no GGUF"):
        og.quantize(__file__, tmp_path / "q.gguf", "q8_0")
    with pytest.raises(FileNotFoundError):
        og.quantize(tmp_path / "none", tmp_path / "q.gguf", "q8_0")
    with pytest.raises(FileNotFoundError):
        og.quantize(wide, tmp_path / "none" / "q.gguf", "q8_0")
    with pytest.raises(ValueError, match="64 columns, no multiple of 256"):
        og.quantize(tiny.path, tmp_path / "q.gguf", "q8_0", token_embedding_type="Q4_K")
    with pytest.raises(ValueError, match="output_tensor_type must not be q6_K"):
        og.quantize(tiny.path, tmp_path / "q.gguf", "q8_0", output_tensor_type="q6_K")
    keys, odd = model_keys(wide), tmp_path / "odd.gguf"
    shapes: list[tuple[str, tuple[int, ...], str]] = [
        ("x.weight", (2, 1, 2, 32), "four dimensions"),
        ("x.weight", (0, 32), "no elements"),
        ("x.weight", (3, 0), "no elements"),
        ("a [1] b.weight", (2, 32), "name"),
        ("a\n.weight", (2, 32), "name"),
    ]
    for name, shape, message in shapes:
        write_gguf(odd, keys, {name: np.ones(shape, np.float32)})
        with pytest.raises(og.ModelSaveError, match=message):
            og.quantize(odd, tmp_path / "q.gguf", "q8_0")
    og.quantize(wide, tmp_path / "q8.gguf", "q8_0")
    with pytest.raises(ValueError, match="allow_requantize=True"):
        og.quantize(tmp_path / "q8.gguf", tmp_path / "q.gguf", "q4_0")
    write_gguf(odd, keys | {"general.architecture": "none"}, {})
    with pytest.raises(og.ModelSaveError, match="could not be quantized"):
        og.quantize(odd, tmp_path / "q.gguf", "q8_0")
    assert "q.gguf" not in os.listdir(tmp_path)


def test_weights_that_are_too_large(wide: Path, imatrix: dict[str, Any], tmp_path: Path) -> None:
    """Weights whose squares leave float32, on which llama.cpp aborts in types of few bits, are refused for these."""
    keys, path = model_keys(wide), tmp_path / "huge.gguf"
    arrays = {name: tensor(wide, name) if name in imatrix else np.ones(256, np.float32) for name in model_types(wide)}
    for value in (3e38, -1e9):
        arrays["blk.1.attn_q.weight"][5, 7] = value
        write_gguf(path, keys, arrays)
        with pytest.raises(og.ModelSaveError, match=r"blk\.1\.attn_q\.weight has the weight"):
            og.quantize(path, tmp_path / "q.gguf", "IQ3_XXS", imatrix=imatrix)
        og.quantize(path, tmp_path / "bf16.gguf", "bf16")
        with pytest.raises(og.ModelSaveError, match=r"blk\.1\.attn_q\.weight has the weight"):
            og.quantize(tmp_path / "bf16.gguf", tmp_path / "q.gguf", "IQ3_XXS", imatrix=imatrix)
    arrays["blk.1.attn_q.weight"][5, 7] = np.nan
    write_gguf(path, keys, arrays)
    with pytest.raises(og.ModelSaveError):
        og.quantize(path, tmp_path / "q.gguf", "q8_0")
    assert "q.gguf" not in os.listdir(tmp_path)


def test_progress_may_end_it(smollm2_path: Path, tmp_path: Path) -> None:
    """An exception in progress ends the work soon, leaves neither file nor thread nor descriptor, and the old file stays."""

    def progress(done: int, total: int) -> None:
        last.append(done)
        if done == 3:
            raise KeyboardInterrupt

    target = tmp_path / "q.gguf"
    target.write_text("before")
    for _ in range(5):
        last: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            og.quantize(smollm2_path, target, "q8_0", allow_requantize=True, progress=progress)
        assert len(last) <= 4
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["q.gguf"]
    if os.path.isdir("/proc/self/fd"):
        before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        with pytest.raises(KeyboardInterrupt):
            og.quantize(smollm2_path, target, "q8_0", allow_requantize=True, progress=progress)
        assert before == (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))


def test_a_full_disk(wide: Path, run_child: Any, tmp_path: Path) -> None:
    """A file that cannot be written to its end is an error, and nothing is left."""
    code = """
        import resource, signal, sys, os
        import offgrid_llama as og
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for limit in (100, 100_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                og.quantize(sys.argv[1], sys.argv[2] + "/x.gguf", "q8_0")
            except og.ModelSaveError as error:
                print("failed", os.listdir(sys.argv[2]))
    """
    result = run_child(code, wide, tmp_path)
    assert result.stdout.splitlines() == ["failed []"] * 2, result.stderr
