"""Peers' bugs, figures, and what was found since."""

from __future__ import annotations

from helpers.hazards.row import RAW_GRAMMAR, Hazard

PEERS = [
    Hazard("pieces longer than a fixed buffer cut silently", tests=("model/test_vocab.py::test_every_piece_and_text",)),
    Hazard("logits_all needed for logprobs", tests=("context/test_outputs.py::test_only_rows_that_asked_can_be_read",)),
    Hazard(
        "logs on stderr that cannot be turned off",
        tests=("native/test_callbacks.py::test_the_log_is_quiet_by_default",),
    ),
    Hazard("GPU layers asked for, no GPU backend built", tests=("model/test_model.py::test_gpu_layers_without_a_gpu",)),
    Hazard("a second request that cuts off the first", tests=("tasks/test_generate.py::test_two_generations_at_once",)),
    Hazard(
        "user text that turns into special tokens",
        tests=(
            "model/test_tokenize_limits.py::test_special_text_is_text_unless_asked_for",
            "chat/template/test_template.py::test_control_tokens_in_messages_stay_text",
        ),
    ),
    Hazard("overflow that drops the prompt's head", tests=("tasks/test_generate.py::test_a_prompt_that_does_not_fit",)),
    Hazard(
        "chat templates are code from strangers",
        tests=(
            "chat/template/test_template.py::test_hostile_templates_are_stopped",
            "chat/template/test_template.py::test_only_plain_values_come_in",
        ),
    ),
]

FIGURES = [
    Hazard("100,000 mutated state blobs", tests=("whole/test_figures.py::test_mutated_states",)),
    Hazard("10,000 random co-scheduled batches", tests=("whole/test_figures.py::test_neighbours_change_nothing",)),
    Hazard(
        "10,000 grammars: ready or rejected in 250 ms and 50 MB",
        tests=("whole/test_figures.py::test_grammars_are_quick",),
    ),
    Hazard("10,000 mutated GGUF and LoRA files", tests=("whole/test_figures.py::test_mutated_files",)),
]

FOUND = [
    Hazard(
        "GBNF: left recursion behind what may be empty through another rule",
        (
            ("og.Grammar.gbnf('root ::= (\"a\"?) root \"b\" | \"c\"')", "GrammarError", "left recursion"),
            ("og.Grammar.gbnf('root ::= root \"a\" | \"b\"')", "GrammarError", "left recursion"),
        ),
        "no_more_memory(2**28); " + RAW_GRAMMAR.format("b'root ::= (\"a\"?) root \"b\" | \"c\"'"),
        "throws",
        note="llama-grammar.cpp:980 takes a rule for empty only by an empty alternative; 23 GB were seen",
    ),
    Hazard(
        "GBNF: many ways to go on from one place",
        (("og.Grammar.gbnf('root ::= ' + 'r? ' * 500 + '\\nr ::= ' + '.|' * 500)", "GrammarError", "ways to go on"),),
        RAW_GRAMMAR.format("b'root ::= ' + b'r? ' * 500 + b'\\nr ::= ' + b'.|' * 500"),
        "hangs",
        ("whole/test_hazards.py::test_a_bad_grammar_is_refused_with_its_place",),
        note="each is a stack, and each stack is compared with each",
    ),
    Hazard(
        "seq_div turns the keys the wrong way",
        raw="""
def after(divide):
    made = decoded(16)
    divide(memory(made))
    assert lib.llama_decode(made, rows((7, 8, [0], 1))) == 0
    return logits(made, 0)
def one_by_one(mem):
    for pos in range(16):
        lib.llama_memory_seq_add(mem, 0, pos, pos + 1, pos // 2 - pos)
differ(after(lambda mem: lib.llama_memory_seq_div(mem, 0, -1, -1, 2)), after(one_by_one))
""",
        ends="harm",
        tests=("context/test_memory.py::test_divide", "whole/test_hazards.py::test_what_has_no_guard_is_not_called"),
    ),
    Hazard(
        "seq_keep looks only at the kept sequence's own stream",
        raw="""
made = decoded()
lib.llama_decode(made, text(4, 1))
lib.llama_memory_seq_keep(memory(made), 0)
if lib.llama_memory_seq_pos_max(memory(made), 1) >= 0:
    harm("sequence 1 is still there")
""",
        ends="harm",
        tests=("context/test_memory.py::test_keep", "whole/test_hazards.py::test_what_has_no_guard_is_not_called"),
    ),
    Hazard(
        "a context that pools, n_seq_max does not divide the micro-batch",
        (
            (
                "fresh(embeddings=True, pooling_type='mean', n_seq_max=3, n_ubatch=2, kv_unified=True)",
                "ValueError", "n_ubatch",
            ),
            ("fresh(embeddings=True, pooling_type='mean', n_seq_max=3, kv_unified=True); raise KeyError(context.n_ubatch)",
             "KeyError", "30"),
        ),
        "context(embeddings=True, pooling_type=lib.LLAMA_POOLING_TYPE_MEAN, n_seq_max=3, kv_unified=True)",
        note="ours takes the next smaller micro-batch that fits",
    ),
    Hazard(
        "a snapshot (ON_DEVICE) of a quantized KV cache copies a part of the data",
        (("decoded(type_k='q8_0'); context.snapshot(0)", "StateError", "type_k"),),
        """
def lost(flags):
    made = decoded(8, type_k=lib.GGML_TYPE_Q8_0)
    blob, size = saved(made, 0, flags)
    def next():
        assert lib.llama_decode(made, text(1, 0, 8)) == 0
        return logits(made, 0)
    before = next()
    lib.llama_memory_clear(memory(made), True)
    assert lib.llama_state_seq_set_data_ext(made, blob, size, 0, flags) == size
    return before, next()
assert not apart(*lost(0))
differ(*lost(lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE))
""",
        "harm",
        ("context/test_state.py::test_what_no_snapshot_is_taken_of_or_restored",),
    ),
    Hazard(
        "a state loaded into a stream for which a seq_cp waits",
        (
            (
                "decoded(); state = context.save_state(0); context.memory.copy(0, 1); context.load_state(state, 1)",
                "StateError", "decode something first",
            ),
        ),
        """
made = decoded()
blob, size = saved(made, 0)
def after(copy):
    mem = memory(made)
    lib.llama_memory_clear(mem, True)
    lib.llama_decode(made, rows(*((50, pos, [1], 0) for pos in range(8))))
    if copy:
        lib.llama_memory_seq_cp(mem, 1, 2, -1, -1)
        lib.llama_memory_seq_rm(mem, 2, -1, -1)
    assert lib.llama_state_seq_set_data(made, blob, size, 2) == size
    assert lib.llama_decode(made, text(1, 2, 8)) == 0
    return logits(made, 0)
differ(after(False), after(True))
""",
        "harm",
        ("context/test_state.py::test_what_a_copy_would_write_over_is_not_loaded",),
    ),
    Hazard(
        "a state saved between a shift or copy and the next decode",
        (("decoded(); context.memory.shift(0, 0, -1, 20); context.save_state(0)", "StateError", "decode something first"),),
        """
def after(wait):
    made = decoded()
    lib.llama_memory_seq_add(memory(made), 0, -1, -1, 20)
    if wait:
        lib.llama_decode(made, text(1, 1))
    blob, size = saved(made, 0)
    other = context()
    assert lib.llama_state_seq_set_data(other, blob, size, 0) == size
    assert lib.llama_decode(other, rows((5, 28, [0], 1))) == 0
    return logits(other, 0)
differ(after(False), after(True))
""",
        "harm",
        ("context/test_state.py::test_what_waits_for_the_next_decode_cannot_be_saved",),
    ),
    Hazard(
        "RPC: no server, one that is something else, of another version, or one that dies",
        tests=(
            "native/test_rpc.py::test_what_is_no_server", "native/test_rpc.py::test_a_server_that_went_away",
            "native/test_rpc.py::test_a_busy_server", "native/test_rpc.py::test_a_server_that_dies_takes_its_callers_along",
        ),
        note="the last cannot be stopped: it ends the process, and only a process of its own keeps others alive",
    ),
    Hazard(
        "a thread pool smaller than n_threads",
        (
            ("fresh(threadpool=og.ThreadPool(1), n_threads=2)", "ValueError", "n_threads"),
            ("fresh(threadpool=og.ThreadPool(1)).set_n_threads(2)", "ValueError", "n_threads"),
        ),
        """
reg = lib.ggml_backend_reg_by_name(b"CPU")
new = ffi.cast("ggml_threadpool_new_t", lib.ggml_backend_reg_get_proc_address(reg, b"ggml_threadpool_new"))
params = lib.ggml_threadpool_params_default(1)
pool = new(ffi.addressof(params))
made = context(n_threads=64, n_threads_batch=64)
lib.llama_attach_threadpool(made, pool, pool)
lib.llama_decode(made, text(32))
""",
        tests=("native/test_threadpool.py::test_more_threads_than_the_pool_has",),
        openmp=True,
    ),
    Hazard(
        "tokenizers that recurse, abort or take the square: exaone-moe, superbpe, whitespace, afmoe",
        tests=(
            "model/test_tokenize_limits.py::test_a_chapter_of_words_without_punctuation",
            "model/test_tokenize_limits.py::test_a_long_number_where_each_digit_looks_ahead",
            "model/test_tokenize_limits.py::test_spaces_in_a_row_in_a_whitespace_vocabulary",
            "model/test_tokenize_limits.py::test_runs_at_the_limit_in_other_pre_tokenizers",
        ),
    ),
]  # fmt: skip
