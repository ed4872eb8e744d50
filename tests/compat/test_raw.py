"""The raw layer at work: a model through llama.h's own calls, callbacks from C, structs by value."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.children import RunChild
from helpers.twin import TOKENS, Weights
from offgrid_llama._capi import ffi, lib
from offgrid_llama.compat.llama_cpp import llama_cpp as raw

PROMPT = "The capital of France is"
N_TOKENS = 24


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Iterator[int]:
    """The default model, loaded by a raw call."""
    raw.llama_backend_init()
    model = raw.llama_model_load_from_file(bytes(smollm2_path), raw.llama_model_default_params())
    assert isinstance(model, int)
    yield model
    raw.llama_model_free(model)


@pytest.fixture
def context(model: int) -> Iterator[int]:
    """A context of 256 tokens."""
    params = raw.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    context = raw.llama_init_from_model(model, params)
    assert isinstance(context, int)
    yield context
    raw.llama_free(context)


def tokenize(model: int, text: str) -> list[int]:
    """Return the tokens of a text, counted first by a call without room for any."""
    vocab, data = raw.llama_model_get_vocab(model), text.encode()
    count = -raw.llama_tokenize(vocab, data, len(data), None, 0, True, True)
    tokens = (raw.llama_token * count)()
    assert raw.llama_tokenize(vocab, data, len(data), tokens, count, True, True) == count
    return list(tokens)


def detokenize(model: int, tokens: list[int]) -> str:
    """Return the text of tokens."""
    buffer = ctypes.create_string_buffer(4096)
    array = (raw.llama_token * len(tokens))(*tokens)
    length = raw.llama_detokenize(
        raw.llama_model_get_vocab(model), array, len(tokens), buffer, len(buffer), False, False
    )
    return buffer.raw[:length].decode()


def decode(context: int, tokens: list[int]) -> None:
    array = (raw.llama_token * len(tokens))(*tokens)
    assert raw.llama_decode(context, raw.llama_batch_get_one(array, len(tokens))) == 0


def chain_of(*samplers: Any) -> Any:
    """Return a chain that owns the samplers."""
    chain = raw.llama_sampler_chain_init(raw.llama_sampler_chain_default_params())
    for sampler in samplers:
        raw.llama_sampler_chain_add(chain, sampler)
    assert raw.llama_sampler_chain_n(chain) == len(samplers)
    return chain


def go_on(context: int, tokens: list[int], count: int, *samplers: Any) -> list[int]:
    """Decode tokens, and return the next ones that the samplers choose."""
    chain = chain_of(*samplers)
    chosen: list[int] = []
    while len(chosen) < count:
        decode(context, tokens if not chosen else chosen[-1:])
        chosen.append(raw.llama_sampler_sample(chain, context, -1))
    raw.llama_sampler_free(chain)
    return chosen


@pytest.fixture(scope="module")
def expected(smollm2: og.Model) -> og.Completion:
    """The text that the Engine generates."""
    with og.Engine(smollm2, n_ctx=256) as engine:
        return engine.submit(PROMPT, temperature=0, max_tokens=N_TOKENS).result()


def test_greedy_text_is_the_engines(model: int, context: int, expected: og.Completion) -> None:
    """Load, tokenize, decode, sample, detokenize and free by raw calls."""
    chosen = go_on(context, tokenize(model, PROMPT), N_TOKENS, raw.llama_sampler_init_greedy())
    assert chosen == expected.tokens
    assert detokenize(model, chosen) == expected.text


def test_logits_are_floats(model: int, context: int, expected: og.Completion) -> None:
    """``llama_get_logits_ith`` gives a pointer, from which the first token can be chosen."""
    decode(context, tokenize(model, PROMPT))
    n_vocab = raw.llama_vocab_n_tokens(raw.llama_model_get_vocab(model))
    logits = raw.llama_get_logits_ith(context, -1)[:n_vocab]
    assert logits.index(max(logits)) == expected.tokens[0]


def test_a_batch_that_is_filled_by_hand(model: int, context: int, expected: og.Completion) -> None:
    """``llama_batch_init`` gives a struct by value, whose arrays are C's; ``llama_batch_free`` takes it by value."""
    tokens = tokenize(model, PROMPT)
    batch = raw.llama_batch_init(len(tokens), 0, 1)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, index == len(tokens) - 1
    batch.n_tokens = len(tokens)
    assert not batch.embd
    assert raw.llama_decode(context, batch) == 0
    raw.llama_batch_free(batch)
    chain = chain_of(raw.llama_sampler_init_greedy())
    assert raw.llama_sampler_sample(chain, context, len(tokens) - 1) == expected.tokens[0]
    raw.llama_sampler_free(chain)


def test_a_state_is_saved_and_loaded(model: int, context: int, expected: og.Completion, tmp_path: Path) -> None:
    """In memory and in a file: the memory of the context is what it was."""
    memory, tokens = raw.llama_get_memory(context), tokenize(model, PROMPT)
    decode(context, tokens[:-1])
    assert raw.llama_memory_seq_pos_max(memory, 0) == len(tokens) - 2
    state = (ctypes.c_uint8 * raw.llama_state_get_size(context))()
    size = raw.llama_state_get_data(context, state, len(state))
    array = (raw.llama_token * len(tokens))(*tokens)
    path = bytes(tmp_path / "session")
    assert raw.llama_state_save_file(context, path, array, len(tokens)) is True

    raw.llama_memory_clear(memory, True)
    assert raw.llama_memory_seq_pos_max(memory, 0) == -1
    assert raw.llama_state_set_data(context, state, size) == size
    assert go_on(context, tokens[-1:], 4, raw.llama_sampler_init_greedy()) == expected.tokens[:4]

    raw.llama_memory_clear(memory, False)
    loaded, count = (raw.llama_token * 64)(), ctypes.c_size_t()
    assert raw.llama_state_load_file(context, path, loaded, 64, raw.byref(count)) is True
    assert list(loaded[: count.value]) == tokens
    assert go_on(context, tokens[-1:], 4, raw.llama_sampler_init_greedy()) == expected.tokens[:4]


def test_a_sampler_in_python(model: int, context: int) -> None:
    """A ``llama_sampler_i`` of Python's functions: C calls them with pointers to structs, which they change."""
    seen: list[int] = []

    def apply(_sampler: Any, candidates: Any) -> None:
        array = candidates.contents
        seen.append(array.size)
        array.selected = next(index for index in range(array.size) if array.data[index].id == 28)

    interface = raw.llama_sampler_i(apply=raw.llama_sampler_i_apply(apply))
    sampler = raw.llama_sampler_init(raw.byref(interface), None)
    assert go_on(context, tokenize(model, PROMPT), 2, sampler) == [28, 28]
    assert seen == [raw.llama_vocab_n_tokens(raw.llama_model_get_vocab(model))] * 2


def test_a_bias(model: int, context: int, expected: og.Completion) -> None:
    """An array of structs."""
    bias = (raw.llama_logit_bias * 1)(raw.llama_logit_bias(token=expected.tokens[0], bias=-1e9))
    n_vocab = raw.llama_vocab_n_tokens(raw.llama_model_get_vocab(model))
    biased = raw.llama_sampler_init_logit_bias(n_vocab, 1, bias)
    chosen = go_on(context, tokenize(model, PROMPT), 1, biased, raw.llama_sampler_init_greedy())
    assert chosen != expected.tokens[:1]


def test_candidates_by_reference(model: int) -> None:
    """``llama_sampler_apply`` changes an array of Python's."""
    data = (raw.llama_token_data * 3)(
        *(raw.llama_token_data(token, logit, 0) for token, logit in ((7, 1), (8, 3), (9, 2)))
    )
    array = raw.llama_token_data_array(data=data, size=3, selected=-1, sorted=False)
    sampler = raw.llama_sampler_init_greedy()
    raw.llama_sampler_apply(sampler, raw.byref(array))
    raw.llama_sampler_free(sampler)
    assert array.data[array.selected].id == 8


def test_progress_is_told_and_can_stop_a_load(smollm2_path: Path) -> None:
    """A callback in a struct that is given by value; its False makes the model NULL, which is None."""
    told: list[float] = []

    def progress(share: float, user_data: int) -> bool:
        told.append(share)
        return user_data != 5

    params = raw.llama_model_default_params()
    params.progress_callback = raw.llama_progress_callback(progress)
    params.vocab_only = False
    params.progress_callback_user_data = 5
    gc.collect()
    assert raw.llama_model_load_from_file(bytes(smollm2_path), params) is None
    assert told == [0.0]
    params.progress_callback_user_data = 6
    model = raw.llama_model_load_from_file(bytes(smollm2_path), params)
    raw.llama_model_free(model)
    assert told[-1] == 1.0


@pytest.fixture
def log() -> Iterator[list[tuple[int, str]]]:
    """The lines that llama.cpp logs meanwhile, by a callback in ctypes. Then the log goes where it went before."""
    lines: list[tuple[int, str]] = []
    before, data = raw.llama_log_callback(), ctypes.c_void_p()
    raw.llama_log_get(raw.byref(before), raw.byref(data))
    callback = raw.llama_log_callback(lambda level, text, _: lines.append((level, text.decode())))
    raw.llama_log_set(callback, None)
    yield lines
    raw.llama_log_set(before, data)


def test_the_log(log: list[tuple[int, str]], tmp_path: Path) -> None:
    """Levels and texts. A file that is no model gives NULL."""
    path = tmp_path / "no.gguf"
    path.write_bytes(b"no model")
    assert raw.llama_model_load_from_file(bytes(path), raw.llama_model_default_params()) is None
    assert any(level == lib.GGML_LOG_LEVEL_ERROR and "no.gguf" in text for level, text in log)


def test_the_library_is_the_one_that_the_extension_runs_on(log: list[tuple[int, str]]) -> None:
    """The one reads the log callback that the other has set, and no second copy is mapped."""
    callback, data = ffi.new("ggml_log_callback *"), ffi.new("void **")
    lib.llama_log_get(callback, data)
    ours, theirs = raw.llama_log_callback(), ctypes.c_void_p()
    raw.llama_log_get(raw.byref(ours), raw.byref(theirs))
    assert int(ffi.cast("intptr_t", callback[0])) == ctypes.cast(ours, ctypes.c_void_p).value
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text("utf-8")
        assert len({line.split()[-1] for line in maps.splitlines() if "/libllama" in line}) == 1


def test_a_model_of_the_engine_in_raw_calls(smollm2: og.Model) -> None:
    """A pointer of ours is a pointer there."""
    with smollm2.handle as pointer:
        address = int(ffi.cast("intptr_t", pointer))
        assert raw.llama_model_n_embd(address) == 576
        buffer = ctypes.create_string_buffer(64)
        assert raw.llama_model_meta_val_str(address, b"general.architecture", buffer, len(buffer)) == 5
        assert buffer.value == b"llama"


def test_a_decode_is_aborted(model: int, context: int) -> None:
    """A callback that C calls from a decode."""
    calls: list[int | None] = []

    def abort(data: int | None) -> bool:
        calls.append(data)
        return True

    callback = raw.ggml_abort_callback(abort)
    raw.llama_set_abort_callback(context, callback, 3)
    tokens = (raw.llama_token * 3)(1, 2, 3)
    assert raw.llama_decode(context, raw.llama_batch_get_one(tokens, 3)) == 2
    assert calls
    assert set(calls) == {3}


def test_structs_by_value(context: int) -> None:
    """Large ones, as parameters are, come in memory, small ones in registers."""
    params = raw.llama_context_default_params()
    assert (params.n_batch, params.rope_scaling_type, params.yarn_ext_factor) == (2048, -1, -1.0)
    assert raw.llama_model_quantize_default_params().quantize_output_tensor is True
    assert raw.llama_sampler_chain_default_params().no_perf is True
    timings = raw.llama_perf_context(context)
    assert (timings.n_p_eval, timings.n_eval) == (1, 1)  # llama.cpp says 1 of none, so that it can be divided by
    assert raw.llama_n_ctx(context) == 256


def test_overrides_of_metadata(smollm2_path: Path) -> None:
    """An array of structs with a union in them, whose last has no key."""
    overrides = (raw.llama_model_kv_override * 2)()
    overrides[0].tag, overrides[0].key = raw.LLAMA_KV_OVERRIDE_TYPE_INT, b"llama.context_length"
    overrides[0].value.val_i64 = 777
    params = raw.llama_model_default_params()
    params.kv_overrides, params.vocab_only = overrides, False
    model = raw.llama_model_load_from_file(bytes(smollm2_path), params)
    assert raw.llama_model_n_ctx_train(model) == 777
    raw.llama_model_free(model)


def test_chat_messages() -> None:
    """Structs of texts, and a buffer that C writes to."""
    messages = (raw.llama_chat_message * 1)(raw.llama_chat_message(b"user", b"Hi"))
    buffer = ctypes.create_string_buffer(256)
    length = raw.llama_chat_apply_template(b"chatml", messages, 1, True, buffer, len(buffer))
    assert buffer.raw[:length] == b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_an_adapter(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> None:
    """The pointer to an adapter goes back as it came; the old name for setting one takes a scale. Its logits change."""
    write_lora(tmp_path / "lora.gguf", weights, seed=1)
    tiny = bytes(tmp_path_factory.getbasetemp() / "tiny.gguf")
    model = raw.llama_model_load_from_file(tiny, raw.llama_model_default_params())
    adapter = raw.llama_adapter_lora_init(model, bytes(tmp_path / "lora.gguf"))
    assert adapter
    context = raw.llama_init_from_model(model, raw.llama_context_default_params())
    decode(context, TOKENS)
    without = raw.llama_get_logits_ith(context, -1)[:8]
    with pytest.warns(DeprecationWarning, match="llama_set_adapter_lora is deprecated: use llama_set_adapters_lora"):
        assert raw.llama_set_adapter_lora(context, adapter, 1.0) == 0
    raw.llama_memory_clear(raw.llama_get_memory(context), True)
    decode(context, TOKENS)
    assert raw.llama_get_logits_ith(context, -1)[:8] != without
    raw.llama_free(context)
    raw.llama_model_free(model)


def test_deprecated_functions_warn_and_work(model: int, context: int) -> None:
    """The warning names the caller's line."""
    with pytest.warns(DeprecationWarning, match="llama_n_embd is deprecated: use llama_model_n_embd") as caught:
        assert raw.llama_n_embd(model) == 576
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="llama_apply_adapter_cvec is deprecated"):
        assert raw.llama_apply_adapter_cvec(context, None, 0, 0, 0, 0) == 0
    raw.llama_set_warmup(context, False)


def test_arguments_are_converted_as_ctypes_does(model: int) -> None:
    """None is NULL, bytes are a text; a str is refused where bytes are needed, as are floats for numbers."""
    assert raw.llama_model_chat_template(model, None).startswith(b"{%")
    assert raw.llama_model_chat_template(model, b"no such template") is None
    with pytest.raises(ctypes.ArgumentError):
        raw.llama_model_chat_template(model, "str")
    with pytest.raises(ctypes.ArgumentError):
        raw.llama_sampler_init_top_k(1.5)


def test_it_is_all_that_a_process_needs(run_child: RunChild, smollm2_path: Path) -> None:
    """A process that only uses the raw layer has a CPU to compute on, logs nothing to stderr, and ends in order."""
    source = """
        import sys
        from offgrid_llama.compat.llama_cpp.llama_cpp import *
        llama_backend_init()
        model = llama_model_load_from_file(sys.argv[1].encode(), llama_model_default_params())
        context = llama_init_from_model(model, llama_context_default_params())
        tokens = (llama_token * 2)(1, 2)
        print(llama_decode(context, llama_batch_get_one(tokens, 2)))
        llama_free(context)
        llama_model_free(model)
        llama_backend_free()
    """
    ended = run_child(source, smollm2_path)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 0)
