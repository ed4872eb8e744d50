"""The hazards of llama.h, row by row as in helpers/hazards: each a Python exception, and the process alive.

Every row runs in a child process, because without its guard it would end, hang or corrupt it. One child runs the rows of
one section in turn and says after each what was raised; a row without its line is the one that took the child down.
Another child forks for each row and does there what the guard forbids.
"""

from __future__ import annotations

import ast
import json
import math
import shutil
import signal
import struct
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.hazards import HAZARDS, NOT_CALLED
from helpers.twin import Value, Weights, tiny_llama, write_gguf
from offgrid_llama._capi import ffi, lib
from offgrid_llama.sampling.grammar.gbnf import read_gbnf

if TYPE_CHECKING:
    from helpers.children import RunChild

TESTS = Path(__file__).parents[1]
QUIET = {"OMP_WAIT_POLICY": "passive"}  # threads that wait for each other do not keep a busy machine busy

PRELUDE = """
import gc, json, os, resource, sys
import offgrid_llama as og
folder, name, rows = sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
model = og.Model(name)
vocab = model.vocab
S = og.samplers

def fresh(of=model, **kw):
    global context, batch
    context = og.Context(of, **{"n_ctx": 512, "n_batch": 64, "n_ubatch": 32, "n_seq_max": 2, "n_threads": 1, **kw})
    batch = og.Batch(128)
    return context

def decoded(**kw):
    fresh(**kw)
    batch.add_sequence([1, 2, 3, 4, 5])
    context.decode(batch)
    return context

def filled(n):
    batch.add_sequence([5] * n)
    return batch

def tiny():
    return og.Model(folder + "/tiny.gguf")

def of_file(name):
    fresh(og.Model(folder + "/" + name))
    context.decode(filled(4))

def starved():
    global batch
    fresh(og.Model(sys.argv[1]), n_ctx=2048, n_batch=1024)
    batch = og.Batch(1024)
    batch.add_sequence([5] * 1024, logits="all")  # 200 MB of logits
    gc.collect()  # what earlier rows have left
    with open("/proc/self/statm") as file:
        here = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here, resource.RLIM_INFINITY))
    try:
        context.decode(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        context.memory.clear()
        batch.clear()
        context.decode(filled(1))  # and the context works on

def raised(kind, call, *arguments):
    try:
        call(*arguments)
    except kind:
        return
    raise AssertionError("nothing was raised")

for row in rows:
    try:
        exec(row)
    except Exception as error:
        print(json.dumps([row, [kind.__name__ for kind in type(error).__mro__], str(error)]), flush=True)
    else:
        print(json.dumps([row, ["nothing"], ""]), flush=True)
answer = og.generate(og.Model(sys.argv[1]), "The capital of France is", max_tokens=4, temperature=0)
print(json.dumps(["alive", [], answer.text]))
"""

RAW = """
import json, os, resource, signal, sys, threading
from offgrid_llama.native import backend
from offgrid_llama._capi import ffi, lib
backend.start()
lib.llama_log_set(ffi.addressof(lib, "og_drop_log"), ffi.NULL)

def load(path, **options):
    params = lib.llama_model_default_params()
    for name, value in options.items():
        setattr(params, name, value)
    return lib.llama_model_load_from_file(os.fsencode(path), params)

def context(of=None, **options):
    params = lib.llama_context_default_params()
    sizes = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 32, "n_seq_max": 4, "n_threads": 1, "n_threads_batch": 1}
    for name, value in {**sizes, **options}.items():
        setattr(params, name, value)
    return lib.llama_init_from_model(of or model, params)

def rows(*rows):  # token, pos, sequences, logits
    batch = lib.llama_batch_init(max(len(rows), 1), 0, 8)
    batch.n_tokens = len(rows)
    for i, (token, pos, seqs, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, len(seqs), wanted
        for j, seq in enumerate(seqs):
            batch.seq_id[i][j] = seq
    return batch

def text(n, seq=0, begin=0):
    return rows(*((i % 60, begin + i, [seq], i == n - 1) for i in range(n)))

def decoded(n=8, **options):
    made = context(**options)
    assert lib.llama_decode(made, text(n)) == 0
    return made

def use(of):
    lib.llama_set_embeddings(made := context(of), True)
    lib.llama_decode(made, text(4))

def memory(made):
    return lib.llama_get_memory(made)

def saved(made, seq=None, flags=0):
    size = lib.llama_state_get_size(made) if seq is None else lib.llama_state_seq_get_size_ext(made, seq, flags)
    blob = ffi.new("uint8_t[]", size)
    whole = lambda: lib.llama_state_get_data(made, blob, size)
    assert (whole() if seq is None else lib.llama_state_seq_get_data_ext(made, blob, size, seq, flags)) == size
    return blob, size

def logits(made, row):
    return ffi.unpack(lib.llama_get_logits_ith(made, row), lib.llama_vocab_n_tokens(vocab))

def apart(a, b):
    return max(abs(x - y) for x, y in zip(a, b)) > 0.1

def differ(a, b):
    if apart(a, b):
        harm("the logits differ")

def candidates(pairs):
    global kept
    kept = ffi.new("llama_token_data[]", [(token, logit, 0.0) for token, logit in pairs])
    return ffi.new("llama_token_data_array *", (kept, len(pairs), -1, False))

def on_8_mb(call):  # what a main thread has
    threading.stack_size(8 * 2**20)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

def no_more_memory(room=0):
    with open("/proc/self/statm") as file:
        here = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + room,) * 2)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def harm(what):
    os._exit(3)

folder, deep_path = sys.argv[1], sys.argv[3]
model = load(folder + "/tiny.gguf")
vocab = lib.llama_model_get_vocab(model)
words = load(sys.argv[2], vocab_only=True)
words_vocab = lib.llama_model_get_vocab(words)

for row, source, seconds in json.loads(sys.argv[4]):
    child = os.fork()
    if not child:
        code = 4
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, 120))
            exec(source)
            code = 5 if lib.og_caught_function() else 0
        except BaseException as error:
            print(row, repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    print(json.dumps([row, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""


def ended(code: int) -> str:
    """Return in the words of helpers/hazards how a fork ended."""
    words = {0: "lives", 3: "harm", 4: "the row is broken", 5: "throws", -signal.SIGXCPU: "hangs"}
    return words.get(code, "dies")


@pytest.fixture(scope="module")
def bad_files(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model, an adapter for it, and copies that llama.cpp does not survive."""
    folder = tmp_path_factory.mktemp("hazards")
    keys, tensors = tiny_llama()
    write_gguf(folder / "tiny.gguf", keys, tensors)
    changes: dict[str, dict[str, Value]] = {
        "no-layers": {"llama.block_count": 0},
        "many-layers": {"llama.block_count": 1_000_000},
        "many-experts": {"llama.expert_count": 5000, "llama.expert_used_count": 2},
        "used-experts": {"llama.expert_count": 4, "llama.expert_used_count": 9},
        "many-heads": {"llama.attention.head_count_kv": 2**31 + 1},
        "odd-scaling": {"llama.rope.scaling.type": "nonlinear"},
        "odd-pooling": {"llama.pooling_type": 99},
    }
    for name, change in changes.items():
        write_gguf(folder / f"{name}.gguf", {**keys, **change}, tensors)
    half = tensors["output_norm.weight"].astype("float16")
    write_gguf(folder / "half-norm.gguf", keys, {**tensors, "output_norm.weight": half})
    whole = (folder / "tiny.gguf").read_bytes()
    at = whole.index(b"blk.1.ffn_gate.weight") + len("blk.1.ffn_gate.weight") + 4 + 2 * 8  # its type, behind its shape
    (folder / "integers.gguf").write_bytes(whole[:at] + struct.pack("<I", 26) + whole[at + 4 :])
    for length in range(1, 32):  # until the header ends in the middle of 32 bytes
        unaligned = {**keys, "general.alignment": 8, "general.name": "x" * length}
        write_gguf(folder / "unaligned.gguf", unaligned, tensors)
        with og.GGUF(folder / "unaligned.gguf") as file:
            if file.tensors()[0].offset % 32:
                break
    mrope: dict[str, Value] = {key.replace("llama.", "qwen2vl."): value for key, value in keys.items()}
    mrope |= {"general.architecture": "qwen2vl", "qwen2vl.rope.dimension_sections": [4, 6, 6, 0]}
    write_gguf(folder / "mrope.gguf", mrope, tensors)
    write_lora(folder / "lora.gguf", weights, 1)
    adapter: dict[str, Value] = {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 3
    }  # fmt: skip
    write_gguf(folder / "odd-lora.gguf", adapter, {})
    return folder


@pytest.mark.parametrize("section", [section for section in HAZARDS if any(hazard.ours for hazard in HAZARDS[section])])
def test_each_hazard_is_an_exception(section: str, smollm2_path: Path, bad_files: Path, run_child: RunChild) -> None:
    """A call that would make llama.h abort, crash or hang raises an error that names the argument; the process works on."""
    ours = [each for hazard in HAZARDS[section] for each in hazard.ours]
    model = smollm2_path if section.startswith("sampling") else bad_files / "tiny.gguf"
    arguments = smollm2_path, bad_files, model, json.dumps([row for row, _, _ in ours])
    done = run_child(PRELUDE, *arguments, timeout=240, env=QUIET)
    seen = {row: (kinds, message) for row, kinds, message in map(json.loads, done.stdout.splitlines())}
    for row, kind, part in ours:
        assert row in seen, f"{row} ended the process with {done.returncode}: {done.stderr[-500:]}"
        kinds, message = seen[row]
        assert kind in kinds, f"{row} raised {kinds[0]}: {message}"
        assert part in message, f"{row}: {message}"
    assert "Paris" in seen["alive"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts memory and processor time as Linux does")
@pytest.mark.parametrize("section", [section for section in HAZARDS if any(hazard.raw for hazard in HAZARDS[section])])
def test_without_its_guard_a_hazard_does_harm(
    section: str, bad_files: Path, llama_cpp_dir: Path, run_child: RunChild
) -> None:
    """The raw function does what its row says, so that the checks above are not for nothing."""
    # A call that ends by itself may take long on a busy machine; one that hangs is not waited for.
    raw = [(hazard.row, hazard.raw, 1 if hazard.ends == "hangs" else 60) for hazard in HAZARDS[section] if hazard.raw]
    vocabularies = [llama_cpp_dir / "models" / f"ggml-vocab-{name}.gguf" for name in ("gpt-2", "deepseek-coder")]
    done = run_child(RAW, bad_files, *vocabularies, json.dumps(raw), timeout=240, env=QUIET)
    assert done.returncode == 0, done.stderr[-500:]
    seen = dict(map(json.loads, done.stdout.splitlines()))
    build_flags = ffi.string(lib.og_build_flags()).decode()
    for hazard in HAZARDS[section]:
        if hazard.raw and not (hazard.openmp and "GGML_OPENMP=OFF" in build_flags):
            end = ended(seen[hazard.row])
            # A build with assertions or sanitizers stops earlier than the harm.
            assert end == hazard.ends or (end == "dies" and hazard.ends != "lives"), (
                f"{hazard.row}: {end}, not {hazard.ends}: {done.stderr[-500:]}"
            )


@cache
def _tests_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_row_is_held() -> None:
    """Each row has statements of its own or tests elsewhere, which are there, and no two have one name."""
    rows = [hazard for section in HAZARDS.values() for hazard in section]
    assert len({hazard.row for hazard in rows}) == len(rows)
    for hazard in rows:
        assert hazard.ours or hazard.tests, hazard.row
        assert hazard.ends in ("dies", "throws", "hangs", "harm", "lives"), hazard.row
        for test in hazard.tests:
            file, _, name = test.partition("::")
            assert name in _tests_of(file), f"{hazard.row}: there is no {test}"


RAW_CLASSES = {"compat/llama_cpp/_internals.py", "compat/llama_cpp/_samplers.py"}
"""What stands for llama-cpp-python's internal classes, and says that nothing guards it."""


def test_what_has_no_guard_is_not_called() -> None:
    """No file of ours calls a function of llama.h that no check of its arguments makes safe, but the raw layer's classes."""
    package = Path(og.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).as_posix() in RAW_CLASSES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & NOT_CALLED, path
    assert set(dir(lib)) >= NOT_CALLED  # no name is misspelt


def test_a_state_that_fails_leaves_nothing(tiny: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llama.cpp breaks off in the middle of a whole state, the context is empty."""
    with og.Context(tiny, n_ctx=512, n_seq_max=2) as context, og.Context(tiny, n_ctx=512, n_seq_max=2) as other:
        for seq_id in range(2):
            batch = og.Batch(20)
            batch.add_sequence(range(20), seq_id=seq_id)
            context.decode(batch)
        state = context.save_state()
        monkeypatch.setitem(state.header, "n_bytes", state.header["n_bytes"] - 5250)  # among the cells of sequence 1
        with pytest.raises(og.StateError, match="could not"):
            other.load_state(state)
        assert [other.memory.positions(seq_id) for seq_id in range(2)] == [range(0)] * 2


def test_a_failed_grammar_prints_nothing(smollm2_path: Path, run_child: RunChild) -> None:
    """llama.cpp's complaint about a grammar is in the error, and not on stderr."""
    done = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model:
            bad = "root", 'root ::= ("a" | ){2,}', "root ::= [a", "root ::= <no such token>", 'root ::= "a"{0}*'
            for text in bad:
                try:
                    og.Grammar.gbnf(text).sampler(model.vocab)
                except og.GrammarError:
                    print("refused")
        """,
        smollm2_path,
    )
    assert (done.stdout.split(), done.stderr) == (["refused"] * 5, "")


def test_the_guard_catches_what_cpp_throws(smollm2: og.Model) -> None:
    """A C++ exception in a raw call comes back as a sentinel and a message, and not as std::terminate."""
    from offgrid_llama.native.check import raise_caught

    assert not lib.llama_vocab_get_text(smollm2.vocab.ptr, -1)
    with pytest.raises(og.NativeError, match="llama_vocab_get_text"):
        raise_caught()
    raise_caught()  # once is enough


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('root ::= "a"{3,1}', "smaller number"),
        ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "nested"),
        ("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(2001)) + '\nr2001 ::= "a"', "rules"),
        ('root ::= "' + "a" * 70_000 + '"', "bytes"),
        ('root ::= "' + "a" * 1000 + '"{2000}', "elements"),
        ('root ::= "a"{2001}', "2,000"),
        ('root ::= ("a"{0,40}){0,60}', "repetitions"),
        ("root ::= " + " | ".join(["."] * 4001), "ways to go on"),
        ("root ::= r{0,3}{0,50}\nr ::= " + " | ".join(["."] * 100), "ways to go on"),
        ('root ::= "a"{0}*', "nothing before"),
        ("root ::= (.?) a\na ::= (root .){1,2}", "left recursion"),
        (
            "root ::= r0\n" + "".join(f'r{i} ::= r{i + 1} r{i + 1} | ""\n' for i in range(40)) + 'r40 ::= ""',
            "ways to go on",
        ),
        ("root ::= [a] (" + " | ".join(["."] * 4001) + ")", "ways to go on"),
        ('root ::= "x" ' + "r? " * 70 + "\nr ::= " + " | ".join(["."] * 100), "ways to go on"),
        ("root ::= (" + " | ".join(["."] * 100) + ' | ""){70}', "ways to go on"),
        (
            "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} ." for i in range(1900)) + "\nr1900 ::= " + ".|" * 150,
            "ways to go on",
        ),
        ("root ::= nobody", "not defined"),
        ('x ::= "a"', "root"),
        ('root ::= "a', "without an end"),
        ("root ::= [a", "without an end"),
        ('root ::= ("a"', "without an end"),
        ('root ::= "\\q"', "escape"),
        ('root ::= *"a"', "nothing before"),
        ('root ::= "a\0"', "NUL"),
        ('root = "a"', "::="),
        ('root ::= "a" )', "no meaning"),
        ("", "root"),
    ],
)
def test_a_bad_grammar_is_refused_with_its_place(text: str, why: str) -> None:
    """A grammar that llama.cpp would hang on, crash on or print about is a GrammarError that says why."""
    with pytest.raises(og.GrammarError, match=why):
        read_gbnf(text)


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + " | ".join(["."] * 3999),
        "root ::= " + "r? " * 28 + "\nr ::= " + " | ".join(["."] * 100),
        "root ::= (" + " | ".join(["."] * 1000) + "){50}",
        "root ::= r{0,3}{20}\nr ::= " + " | ".join(["."] * 100),
        'root ::= "[" (root ("," root)*)? "]"',
        "root ::= " + " | ".join(["[a] r"] * 100) + "\nr ::= " + " | ".join(["[a] root"] * 100),
    ],
)
def test_a_large_grammar_is_not_refused(text: str, smollm2: og.Model) -> None:
    """Only what may come next counts: choices, optional items, repetitions and recursion have room."""
    og.Grammar.gbnf(text).sampler(smollm2.vocab).close()


def with_value(path: Path, target: Path, key: str, kind: str, value: float) -> Path:
    """Copy a GGUF file with another value for a scalar key."""
    shutil.copy(path, target)
    at = target.read_bytes()[:8_000_000].find(key.encode())
    assert at > 0
    with target.open("r+b") as file:
        file.seek(at + len(key) + 4)
        file.write(struct.pack(kind, value))
    return target


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("llama.block_count", "<I", 0),
        ("llama.block_count", "<I", 1_000_000),
        ("llama.block_count", "<I", 2**32 - 1),
        ("llama.attention.layer_norm_rms_epsilon", "<f", -1.0),
        ("llama.attention.layer_norm_rms_epsilon", "<f", math.nan),
    ],
)
def test_impossible_hparams_are_refused(smollm2_path: Path, tmp_path: Path, key: str, kind: str, value: float) -> None:
    """A header whose numbers would abort llama.cpp is a GGUFError that names the key, before the load."""
    path = with_value(smollm2_path, tmp_path / "bad.gguf", key, kind, value)
    with pytest.raises(og.GGUFError, match=key):
        og.Model(path)
