"""The hazards of llama.h that the nouns can reach: each a Python exception, and the process alive.

Every row runs in a child process, because without its guard it would end, hang or corrupt it. One child runs the rows of one
object in turn and says after each what was raised; a row without its line is the one that took the child down.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og
from offgrid_llama.gbnf import read_gbnf

if TYPE_CHECKING:
    from conftest import RunChild

PRELUDE = """
import sys, json
import offgrid_llama as og
rows = json.loads(sys.argv[2])
model = og.Model(sys.argv[1])
vocab = model.vocab
S = og.samplers

def fresh(**kw):
    global context, batch
    context = og.Context(model, **{"n_ctx": 512, "n_batch": 64, "n_ubatch": 32, "n_seq_max": 2, **kw})
    batch = og.Batch(128)
    return context

def decoded():
    fresh()
    batch.add_sequence(vocab.tokenize("Once upon a time"))
    context.decode(batch)
    return context

def filled(n):
    batch.add_sequence([5] * n)
    return batch

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
print(json.dumps(["alive", [], og.generate(model, "The capital of France is", max_tokens=4, temperature=0).text]))
"""

# What is done, what it raises, and what the message must name.
ROWS = {
    "batch": [
        ("og.Batch(4).add(1, -1, [0])", "ValueError", "pos"),  # hazard 1: silent corruption
        ("og.Batch(4).add(-1, 0, [0])", "ValueError", "token"),
        ("og.Batch(4).add(1, 0, [])", "ValueError", "seq_ids"),  # SIGSEGV
        ("og.Batch(4).add(1, 0, [-1])", "ValueError", "seq_ids"),
        ("og.Batch(4).add(1, 0, [0, 0])", "ValueError", "seq_ids"),
        ("og.Batch(4).add(1, 2**31, [0])", "ValueError", "pos"),
        ("og.Batch(0)", "ValueError", "n_tokens"),
        ("og.Batch(1).add_sequence([1, 2])", "ValueError", "room"),
    ],
    "context": [
        ("fresh(); context.decode(filled(65))", "ValueError", "n_batch"),  # abort
        ("fresh(attention_type='non_causal'); context.decode(filled(33))", "ValueError", "n_ubatch"),  # abort
        ("fresh(); context.encode(filled(4))", "ContextError", "encoder"),  # SIGSEGV
        ("fresh(); context.decode(batch)", "ValueError", "empty"),
        ("fresh(); batch.add(vocab.n_tokens, 0, [0]); context.decode(batch)", "ValueError", "token"),
        ("fresh(); batch.add(1, 0, [2]); context.decode(batch)", "ValueError", "n_seq_max"),
        ("fresh(); batch.add(1, 3, [0]); batch.add(1, 2, [0]); context.decode(batch)", "InvalidBatch", "-1"),
        ("fresh(n_batch=0)", "ValueError", "n_batch"),  # abort
        ("fresh(type_k='q3_K')", "ValueError", "type_k"),  # SIGSEGV, or abort with flash attention off
        ("fresh(type_k=9999)", "ValueError", "type_k"),
        ("fresh(n_ctx=2**32 - 1)", "ValueError", "n_ctx"),
        ("fresh(n_ctx=2**26)", "ContextError", "n_ctx"),
        ("fresh(n_seq_max=257)", "ValueError", "n_seq_max"),
        ("fresh(n_outputs_max=1)", "ValueError", "n_outputs_max"),  # abort
        ("fresh(n_threads=100_000); context.decode(filled(4)); raise KeyError('it was clamped')", "KeyError", "clamped"),
        ("og.Context(og.Model(sys.argv[1], vocab_only=True))", "ContextError", "vocab_only"),  # abort in decode
        ("decoded(); context.logits(0)", "ValueError", "row 0"),
        ("decoded(); context.logits(-2)", "ValueError", "row -2"),
        ("decoded(); context.argmax(99)", "ValueError", "row 99"),
    ],
    "memory": [
        ("decoded(); context.memory.remove(2)", "ValueError", "seq_id"),  # abort, all of these
        ("decoded(); context.memory.remove(-2)", "ValueError", "seq_id"),
        ("decoded(); context.memory.copy(0, 2)", "ValueError", "dst"),
        ("decoded(); context.memory.copy(-1, 0)", "ValueError", "src"),
        ("decoded(); context.memory.copy(0, 1, 1, 3)", "ValueError", "kv_unified"),
        ("decoded(); context.memory.keep(2)", "ValueError", "seq_id"),
        ("decoded(); context.memory.shift(2, 0, -1, 1)", "ValueError", "seq_id"),
        ("decoded(); context.memory.shift(0, 0, -1, 2**30)", "ValueError", "delta"),
        ("decoded(); context.memory.divide(0, 0, -1, 0)", "ValueError", "d must"),  # SIGFPE
        ("decoded(); context.memory.divide(2, 0, -1, 2)", "ValueError", "seq_id"),
        ("decoded(); context.memory.positions(2)", "ValueError", "seq_id"),
    ],
    "vocab": [
        *((f"vocab.{name}(vocab.n_tokens)", "ValueError", "token") for name in
          ("text", "score", "attr", "piece", "is_control", "is_eog")),
        *((f"vocab.{name}(-1)", "ValueError", "token") for name in
          ("text", "score", "attr", "piece", "is_control", "is_eog")),
        ("vocab.detokenize([0, vocab.n_tokens])", "ValueError", "tokens[1]"),
        (r"vocab.tokenize(b'\xf7\xbf\xbf\xbf')", "UnicodeDecodeError", "utf-8"),  # terminate
        ("vocab.tokenize('x' * 2_000_000)", "TokenizeError", "1,048,576"),
        ("vocab.tokenize(None)", "TypeError", "text"),
    ],
    "samplers": [
        ("S.penalties(vocab, last_n=2**31 - 1)", "ValueError", "last_n"),  # terminate
        ("S.mirostat(vocab, m=0)", "ValueError", "m must"),
        ("S.temp(float('nan'))", "ValueError", "temperature"),
        ("S.logit_bias(vocab, {vocab.n_tokens: 1.0})", "ValueError", "token"),
        ("S.dry(vocab, breakers=['\\ud800'])", "UnicodeEncodeError", "surrogates"),
        ("decoded(); og.SamplerChain([S.top_k(4)]).sample(context, -1)", "ValueError", "end with"),  # abort
        ("decoded(); og.SamplerChain().sample(context, -1)", "ValueError", "end with"),
        ("decoded(); og.SamplerChain([S.greedy()]).sample(context, 0)", "ValueError", "row 0"),  # abort
        ("s = S.top_k(4); og.SamplerChain([s]); og.SamplerChain([s])", "ClosedError", "given to"),  # double free
        ("og.SamplerChain([S.dist(1), S.top_k(4)])", "ValueError", "last"),
        ("decoded(); og.SamplerChain([S.logit_bias(vocab, {i: -float('inf') for i in range(vocab.n_tokens)}), "
         "S.dist(1)]).sample(context, -1)", "SamplerError", "no token"),
        ("decoded(); c = og.SamplerChain([S.logit_bias(vocab, {i: -float('inf') for i in range(vocab.n_tokens)}), "
         "S.adaptive_p(seed=1)]); raised(og.SamplerError, c.sample, context, -1); d = c.clone(); "
         "[d.accept(i) for i in range(vocab.n_tokens)]; raise KeyError('it lives')", "KeyError", "lives"),  # SIGSEGV
        ("S.dry(vocab, breakers=[b'\\xf7\\xbf\\xbf\\xbf'])", "TypeError", "breakers[0]"),  # terminate
        ("S.temp(1e300)", "ValueError", "temperature"),
        ("og.SamplerChain([S.infill(vocab)])", "ValueError", "top_k"),  # minutes
        ("og.SamplerChain([S.top_k(4), S.infill(vocab)]).remove(0)", "ValueError", "top_k"),
        ("decoded(); c = og.SamplerChain([S.custom(lambda i, x: c.close()), S.greedy()]); c.sample(context, -1)",
         "RuntimeError", "callback"),
        ("decoded(); og.SamplerChain([S.custom(lambda i, x: 1 / 0), S.greedy()]).sample(context, -1)",
         "ZeroDivisionError", "zero"),
        ("decoded(); og.SamplerChain([S.custom(lambda i, x: 2**31, selects=True)]).sample(context, -1)",
         "ValueError", "custom returned"),
        ("decoded(); og.SamplerChain([S.custom(lambda i, x: x.fill(float('nan'))), S.top_k(200), S.dist(1)])"
         ".sample(context, -1)", "SamplerError", "NaN"),
        ("og.SamplerChain([S.custom(print, accept=print)]).clone()", "SamplerError", "clone="),  # abort
    ],
    "grammar": [
        ("og.SamplerChain([S.top_k(1), og.Grammar.gbnf('root ::= \"q\"').sampler(vocab)])", "ValueError", "before"),
        ("decoded(); c = og.SamplerChain([og.Grammar.gbnf('root ::= \"\\\\U0001F9FF\\\\U0001F9FF\"').sampler(vocab), "
         "S.logit_bias(vocab, {i: -float('inf') for i in range(vocab.n_tokens)}), S.dist(1)]); c.sample(context, -1)",
         "GrammarError", "does not allow"),  # terminate
        ("og.SamplerChain([og.Grammar.gbnf('root ::= \"yes\"').sampler(vocab), S.greedy()]).accept(vocab.tokenize('no')[0])",
         "GrammarError", "does not allow"),  # terminate
        ("og.SamplerChain([og.Grammar.gbnf('root ::= \"yes\"').sampler(vocab), S.greedy()]).accept(vocab.eos)",
         "GrammarError", "does not allow"),  # abort
        ("og.Grammar.gbnf('root ::= root \"a\" | \"b\"').sampler(vocab)", "GrammarError", "left recursion"),
        ("og.Grammar.gbnf('root ::= <no such token>').sampler(vocab)", "GrammarError", "no such token"),
        ("og.Grammar.gbnf('root ::= <[49152]>').sampler(vocab)", "GrammarError", "49152"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("noun", ROWS)
def test_each_hazard_is_an_exception(noun: str, smollm2_path: Path, run_child: RunChild) -> None:
    """What llama.h would abort, crash or hang on is an exception that names the argument, and the process works on."""
    done = run_child(PRELUDE, str(smollm2_path), json.dumps([row for row, _, _ in ROWS[noun]]), timeout=240)
    seen = {row: (kinds, message) for row, kinds, message in map(json.loads, done.stdout.splitlines())}
    for row, kind, part in ROWS[noun]:
        assert row in seen, f"{row} ended the process with {done.returncode}: {done.stderr[-500:]}"
        kinds, message = seen[row]
        assert kind in kinds, f"{row} raised {kinds[0]}: {message}"
        assert part in message, f"{row}: {message}"
    assert "Paris" in seen["alive"][1]


RAW = {
    "n_tokens > n_batch": "lib.llama_decode(context, batch(65))",
    "a row without logits": "lib.llama_sampler_sample(lib.llama_sampler_init_greedy(), context, 3)",
    "a sequence out of range": "lib.llama_memory_seq_pos_max(lib.llama_get_memory(context), 999)",
}


@pytest.mark.parametrize("hazard", RAW)
def test_without_its_guard_a_hazard_is_deadly(hazard: str, smollm2_path: Path, run_child: RunChild) -> None:
    """The raw function still ends the process, so that the checks above are not for nothing."""
    done = run_child(
        f"""
        import os, sys
        from offgrid_llama import backend
        from offgrid_llama._capi import ffi, lib
        backend.start()
        model = lib.llama_model_load_from_file(os.fsencode(sys.argv[1]), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 128, 64, 32
        context = lib.llama_init_from_model(model, params)
        tokens = ffi.new("llama_token[]", [5] * 128)
        def batch(n):
            return lib.llama_batch_get_one(tokens, n)
        {RAW[hazard]}
        print("survived")
        """,
        smollm2_path,
    )
    assert "survived" not in done.stdout
    assert done.returncode < 0


def test_the_guard_catches_what_cpp_throws(smollm2: og.Model) -> None:
    """A C++ exception in a raw call comes back as a sentinel and a message, and not as std::terminate."""
    from offgrid_llama._capi import lib
    from offgrid_llama._check import raise_caught

    assert not lib.llama_vocab_get_text(smollm2.vocab._ptr, -1)
    with pytest.raises(og.NativeError, match="llama_vocab_get_text"):
        raise_caught()
    raise_caught()  # once is enough


def test_a_bad_trigger_pattern_is_caught(smollm2: og.Model) -> None:
    """A regular expression that std::regex does not take, in a lazy grammar, is caught, too; no noun makes one."""
    from offgrid_llama._capi import ffi, lib
    from offgrid_llama._check import raise_caught

    pattern = ffi.new("char[]", b"(")
    arguments = ffi.new("const char *[]", [pattern]), 1, ffi.NULL, 0
    assert not lib.llama_sampler_init_grammar_lazy_patterns(smollm2.vocab._ptr, b'root ::= "a"', b"root", *arguments)
    with pytest.raises(og.NativeError, match="llama_sampler_init_grammar_lazy_patterns"):
        raise_caught()


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


def test_mutated_headers_never_end_the_process(llama_cpp_dir: Path, tmp_path: Path, run_child: RunChild) -> None:
    """Two hundred headers with a few bytes changed load or are refused with a typed error."""
    done = run_child(
        """
        import random, shutil, sys
        import offgrid_llama as og
        random.seed(7)
        with open(sys.argv[1], "rb") as file:
            original = file.read()
        for trial in range(200):
            data = bytearray(original)
            for _ in range(random.randint(1, 6)):
                data[random.randrange(4, 3000)] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
            with open(sys.argv[2], "wb") as file:
                file.write(data)
            try:
                with og.Model(sys.argv[2], vocab_only=True) as model:
                    model.vocab.tokenize("Hello")
                print("loaded", flush=True)
            except (og.GGUFError, og.ModelLoadError) as error:
                print(type(error).__name__, flush=True)
        """,
        llama_cpp_dir / "models" / "ggml-vocab-llama-spm.gguf",
        tmp_path / "mutated.gguf",
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-800:]
    seen = done.stdout.split()
    assert len(seen) == 200
    assert {"loaded", "GGUFError"} <= set(seen)
