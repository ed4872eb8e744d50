"""Batch, context, memory."""

from __future__ import annotations

from helpers.hazards.row import Hazard

BATCH = [
    Hazard(
        "n_tokens > n_batch",
        (("fresh(); context.decode(filled(65))", "ValueError", "n_batch"),),
        "lib.llama_decode(context(), text(65))",
    ),
    Hazard(
        "non-causal decode, or encode, with n_tokens > n_ubatch",
        (("fresh(attention_type='non_causal'); context.decode(filled(33))", "ValueError", "n_ubatch"),),
        "lib.llama_decode(context(attention_type=lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL), text(33))",
        tests=("context/test_encoder.py::test_an_encoder_and_its_decoder",),
    ),
    Hazard(
        "a row with no sequence id",
        (("og.Batch(4).add(1, 0, [])", "ValueError", "seq_ids"),),
        "lib.llama_decode(context(), rows((1, 0, [], 1)))",
    ),
    Hazard(
        "pos = NULL with a bad seq_id",
        (("og.Batch(4).add(1, None, [0])", "TypeError", "pos"), ("og.Batch(4).add(1, 0, [-1])", "ValueError", "seq_ids")),
        "batch = rows((1, 0, [2**30], 1)); batch.pos = ffi.NULL; lib.llama_decode(context(), batch)",
    ),
    Hazard(
        "encode on a decoder-only model",
        (("fresh(); context.encode(filled(4))", "ContextError", "encoder"),),
        "made = context(); lib.llama_encode(made, text(4))",
    ),
    Hazard(
        "bad token id, seq_id >= n_seq_max, empty batch",
        (
            ("fresh(); batch.add(vocab.n_tokens, 0, [0]); context.decode(batch)", "ValueError", "token"),
            ("og.Batch(4).add(-1, 0, [0])", "ValueError", "token"),
            ("fresh(); batch.add(1, 0, [2]); context.decode(batch)", "ValueError", "n_seq_max"),
            ("fresh(); context.decode(batch)", "ValueError", "empty"),
            ("fresh(); batch.add(1, 3, [0]); batch.add(1, 2, [0]); context.decode(batch)", "InvalidBatch", "-1"),
            ("og.Batch(4).add(1, 0, [0, 0])", "ValueError", "seq_ids"),
            ("og.Batch(4).add(1, 2**31, [0])", "ValueError", "pos"),
            ("og.Batch(0)", "ValueError", "n_tokens"),
            ("og.Batch(1).add_sequence([1, 2])", "ValueError", "room"),
        ),
        "batches = rows((99, 0, [0], 1)), rows((1, 0, [4], 1)), rows()\n"
        "assert [lib.llama_decode(context(), batch) for batch in batches] == [-1] * 3",
        "lives",
        note="-1",
    ),
    Hazard(
        "seq_rm with a bad sequence",
        (
            ("decoded(); context.memory.remove(2)", "ValueError", "seq_id"),
            ("decoded(); context.memory.remove(-2)", "ValueError", "seq_id"),
        ),
        "lib.llama_memory_seq_rm(memory(decoded()), 999, -1, -1)",
    ),
    Hazard(
        "seq_cp with a bad sequence",
        (
            ("decoded(); context.memory.copy(0, 2)", "ValueError", "dst"),
            ("decoded(); context.memory.copy(-1, 0)", "ValueError", "src"),
        ),
        "lib.llama_memory_seq_cp(memory(decoded()), 0, 999, -1, -1)",
    ),
    Hazard(
        "seq_keep with a bad sequence",
        (("decoded(); context.memory.keep(2)", "ValueError", "seq_id"),),
        "lib.llama_memory_seq_keep(memory(decoded()), 999)",
    ),
    Hazard(
        "seq_add with a bad sequence",
        (
            ("decoded(); context.memory.shift(2, 0, -1, 1)", "ValueError", "seq_id"),
            ("decoded(); context.memory.shift(0, 0, -1, 2**30)", "ValueError", "delta"),
        ),
        "lib.llama_memory_seq_add(memory(decoded()), 999, -1, -1, 1)",
    ),
    Hazard(
        "seq_div with a bad sequence",
        (("decoded(); context.memory.divide(2, 0, -1, 2)", "ValueError", "seq_id"),),
        "lib.llama_memory_seq_div(memory(decoded()), 999, -1, -1, 2)",
    ),
    Hazard(
        "seq_pos_* with a bad sequence",
        (("decoded(); context.memory.positions(2)", "ValueError", "seq_id"),),
        "lib.llama_memory_seq_pos_max(memory(decoded()), 999)",
    ),
    Hazard(
        "seq_div by 0",
        (("decoded(); context.memory.divide(0, 0, -1, 0)", "ValueError", "d must"),),
        "lib.llama_memory_seq_div(memory(decoded()), 0, -1, -1, 0)",
    ),
    Hazard(
        "partial seq_cp, not unified",
        (("decoded(); context.memory.copy(0, 1, 1, 3)", "ValueError", "kv_unified"),),
        "lib.llama_memory_seq_cp(memory(decoded()), 0, 1, 2, 4)",
    ),
    Hazard(
        "seq_add/div on M-RoPE, or where shift is unsupported",
        (
            ("of_file('mrope.gguf'); context.memory.shift(0, 0, -1, 1)", "ContextError", "can_shift"),
            ("of_file('mrope.gguf'); context.memory.divide(0, 0, -1, 2)", "ContextError", "can_shift"),
        ),
        "lib.llama_memory_seq_add(memory(context(of=load(folder + '/mrope.gguf'))), 0, -1, -1, 1)",
    ),
    Hazard(
        "n_batch = 0 with n_ubatch > 0",
        (("fresh(n_batch=0)", "ValueError", "n_batch"),),
        "context(n_batch=0)",
    ),
    Hazard(
        "type_k of a type that is no KV type",
        (("fresh(type_k=9999)", "ValueError", "type_k"), ("fresh(type_k='i8')", "ValueError", "type_k")),
        "context(type_k=9999)",
        note="the pinned llama.cpp aborts for 9999 and makes a context for I8",
    ),
    Hazard(
        "type_k = Q3_K with flash attention off",
        (
            ("fresh(type_k='q3_K')", "ValueError", "type_k"),
            ("fresh(type_k='q3_k', flash_attn_type='disabled')", "ValueError", "type_k"),
        ),
        "context(type_k=lib.GGML_TYPE_Q3_K, flash_attn_type=lib.LLAMA_FLASH_ATTN_TYPE_DISABLED)",
        tests=("context/test_context.py::test_quantized_types_need_heads_of_whole_blocks",),
    ),
    Hazard(
        "decode on a vocab_only context",
        (("og.Context(og.Model(sys.argv[1], vocab_only=True))", "ContextError", "vocab_only"),),
        "lib.llama_decode(context(of=words), text(1))",
    ),
    Hazard(
        "n_threads = 100000",
        (
            ("fresh(n_threads=100_000); context.decode(filled(1)); raise KeyError('one')", "KeyError", "one"),
            ("fresh(n_threads=100_000); context.decode(filled(4)); raise KeyError('four')", "KeyError", "four"),
        ),
        "lib.llama_decode(context(n_threads=100_000), text(1))",
        note="ours cuts them to the number of processors; SIGSEGV, where it was std::terminate",
    ),
    Hazard(
        "n_ctx = 2^32-1, n_seq_max = 257",
        (
            ("fresh(n_ctx=2**32 - 1)", "ValueError", "n_ctx"),
            ("fresh(og.Model(sys.argv[1]), n_ctx=2**26)", "ContextError", "n_ctx"),
            ("fresh(n_seq_max=257)", "ValueError", "n_seq_max"),
            ("fresh(n_outputs_max=1)", "ValueError", "n_outputs_max"),
        ),
        "assert not context(n_ctx=2**32 - 1) and not context(n_seq_max=257)",
        "lives",
        note="NULL",
    ),
    Hazard(
        "model freed while a context lives",
        raw="made = context(); lib.llama_model_free(model); lib.llama_decode(made, text(4))",
        tests=(
            "whole/test_ownership.py::test_closing_a_model_closes_all_that_needs_it",
            "whole/test_ownership.py::test_close_in_any_order", "whole/test_ownership.py::test_a_child_keeps_its_parent",
        ),
    ),
    Hazard(
        "two threads in one context",
        raw="""
made = context(n_ctx=4096)
begin = threading.Barrier(2)
def run(seq):
    begin.wait()
    while True:  # until they meet
        lib.llama_memory_clear(memory(made), False)
        lib.llama_decode(made, text(4, seq))
threads = [threading.Thread(target=run, args=(seq,)) for seq in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""",
        tests=("context/test_context.py::test_two_threads_decode_at_once",),
    ),
    Hazard(
        "state_seq_set_data_ext(ON_DEVICE), bad magic",
        (("decoded(); context.restore(bytes(64))", "TypeError", "snapshot"),),
        "lib.llama_state_seq_set_data_ext(decoded(), bytes(64), 64, 0, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)",
        "throws",
        ("context/test_state.py::test_what_no_snapshot_is_taken_of_or_restored",),
    ),
    Hazard(
        "state_seq_set_data(seq=999)",
        (
            ("decoded(); context.load_state(context.save_state(0), 999)", "ValueError", "seq_id"),
            ("decoded(); context.save_state(999)", "ValueError", "seq_id"),
        ),
        """
made = decoded()
blob, size = saved(made, 0)
lib.llama_state_seq_set_data(made, blob, size, 999)
""",
    ),
    Hazard(
        "a buffer cannot be allocated in decode",
        (("starved()", "DecodeFailed", "insufficient memory"),),
        """
made = context(n_ctx=4096, n_batch=512, n_ubatch=512)
lib.llama_set_embeddings(made, True)
no_more_memory()
lib.llama_decode(made, text(500))
""",
        "throws",
    ),
]  # fmt: skip
