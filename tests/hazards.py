"""The hazards of llama.h, row by row: what stands against each, and what the raw function does without it.

``ours`` runs through the public API, in a child: a statement, the exception that it raises, and what its message names.
``raw`` runs through ``_capi.lib``, in a fork of a child of its own, and ends as ``ends`` says:

======  =====================================================================================
dies    by a signal: abort(), SIGSEGV, SIGFPE
throws  a C++ exception, which the guard of shim.cpp catches; from plain C it ends the process
hangs   until its time is over
harm    it comes back as if all were well, and the row shows the damage
lives   the pinned llama.cpp refuses it by itself; the note says what was seen before
======  =====================================================================================

``tests`` are tests elsewhere that hold the row. What the statements can use is in test_hazards.py.
"""

from __future__ import annotations

from dataclasses import dataclass

Ours = tuple[str, str, str]


@dataclass(frozen=True)
class Hazard:
    """One row."""

    row: str
    ours: tuple[Ours, ...] = ()
    raw: str = ""
    ends: str = "dies"
    tests: tuple[str, ...] = ()
    note: str = ""
    openmp: bool = False  # only where ggml's threads are those of OpenMP


# The words of a few statements that several rows need.
GRAMMAR = "og.Grammar.gbnf({!r}).sampler(vocab)"
RAW_GRAMMAR = "lib.llama_sampler_init_grammar(words_vocab, {}, b'root')"
RAW_YES = RAW_GRAMMAR.format("b'root ::= \"yes\"'")
RAW_CHAIN = "chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())"
FORBID_ALL = "S.logit_bias(vocab, {i: -float('inf') for i in range(vocab.n_tokens)})"
RAW_OTHERS = "rows((9, {}, [0], 1))"
TOKEN_CALLS = ("text", "score", "attr", "piece", "is_control", "is_eog")

SILENT = [
    Hazard(
        "1: decode, the first token of a sequence at pos = -1",
        (
            ("og.Batch(4).add(1, -1, [0])", "ValueError", "pos"),
            ("og.Batch(4).add_sequence([1], -1)", "ValueError", "pos"),
        ),
        """
def after(token):
    made = context(kv_unified=True)
    assert lib.llama_decode(made, text(2, 1)) == 0
    assert lib.llama_decode(made, rows((5, -1, [0], 0))) == 0  # 0: all is well
    lib.llama_memory_seq_rm(memory(made), 1, -1, -1)
    assert lib.llama_decode(made, rows((3, 0, [1], 0), (4, 1, [1], 0), (token, 2, [1], 0))) == 0
    assert lib.llama_decode(made, rows((9, 5, [0], 1))) == 0
    return logits(made, 0)
differ(after(7), after(50))  # sequence 0 depends on what sequence 1 says
""",
        "harm",
    ),
    Hazard(
        "2: GBNF repetition {3,1}",
        (("og.Grammar.gbnf('root ::= \"a\"{3,1}')", "GrammarError", "smaller number"),),
        RAW_GRAMMAR.format("b'root ::= \"a\"{3,1}'"),
        "hangs",
        ("test_hazards.py::test_a_bad_grammar_is_refused_with_its_place",),
    ),
    Hazard(
        "3: lazy-grammar trigger pattern",
        raw="""
pattern = ffi.new("char[]", b"[a-z ]*zq")
lazy = lib.llama_sampler_init_grammar_lazy_patterns(
    words_vocab, b'root ::= "a"*', b"root", ffi.new("const char *[]", [pattern]), 1, ffi.NULL, 0)
for _ in range(4000):
    lib.llama_sampler_accept(lazy, 64)
""",
        ends="hangs",
        tests=("test_hazards.py::test_what_has_no_guard_is_not_called",),
    ),
    Hazard(
        "4: state_set_data with other weights or tampered K/V",
        raw="""
blob, size = saved(decoded())
blob[size - 100] ^= 1
if lib.llama_state_set_data(context(), blob, size) == size:
    harm("taken")
""",
        ends="harm",
        tests=(
            "test_state.py::test_another_model_is_refused",
            "test_state.py::test_damage_is_found",
            "test_state.py::test_another_layout_is_refused",
            "test_figures.py::test_mutated_states",
        ),
    ),
    Hazard(
        "5: failed whole-state restore",
        raw="""
made = decoded(40)
lib.llama_decode(made, text(20, 1))
blob, size = saved(made)
other = context()
if lib.llama_state_set_data(other, blob, size - 5261) == 0 and lib.llama_memory_seq_pos_max(memory(other), 0) >= 0:
    harm("cells without data")
""",
        ends="harm",
        tests=("test_state.py::test_no_room", "test_hazards.py::test_a_state_that_fails_leaves_nothing"),
    ),
    Hazard(
        "6: corrupt bytes in a state blob",
        raw="""
blob, size = saved(decoded())
blob[3] = 0x08
before = peak()
lib.llama_state_set_data(context(), blob, size)
if peak() - before > 100:
    harm("130 MB for a blob of 2 KB")
""",
        ends="harm",
        tests=("test_state.py::test_damage_is_found", "test_state.py::test_headers_that_were_made_up"),
        note="the length of a string says how much is allocated: up to 4 GB",
    ),
    Hazard(
        "7: state_save_file",
        raw="""
made = decoded()
path = folder + "/state"
with open(path, "wb") as file:
    file.write(b"x" * 100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))  # as if the disk were full
lib.llama_state_save_file(made, os.fsencode(path), ffi.NULL, 0)
with open(path, "rb") as file:
    if file.read() != b"x" * 100:
        harm("the old file is gone, the new one is torn")
""",
        ends="harm",
        tests=("test_state.py::test_a_file_is_replaced_whole", "test_hazards.py::test_what_has_no_guard_is_not_called"),
    ),
    Hazard(
        "8: fork after a decode, decode in the child",
        raw="""
made = decoded(30, n_threads=2, n_threads_batch=2)
child = os.fork()
if not child:
    signal.alarm(3)
    lib.llama_decode(made, text(30, 0, 30))
    os._exit(0)
if os.waitpid(child, 0)[1] == signal.SIGALRM:
    harm("the child hangs")
""",
        ends="harm",
        tests=("test_ownership.py::test_a_forked_child_is_refused",),
        note="ggml's own threads hang as well where a pool was attached",
        openmp=True,
    ),
]

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
        tests=("test_context.py::test_an_encoder_and_its_decoder",),
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
        tests=("test_context.py::test_quantized_types_need_heads_of_whole_blocks",),
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
            "test_ownership.py::test_closing_a_model_closes_all_that_needs_it",
            "test_ownership.py::test_close_in_any_order", "test_ownership.py::test_a_child_keeps_its_parent",
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
        tests=("test_context.py::test_two_threads_decode_at_once",),
    ),
    Hazard(
        "state_seq_set_data_ext(ON_DEVICE), bad magic",
        (("decoded(); context.restore(bytes(64))", "TypeError", "snapshot"),),
        "lib.llama_state_seq_set_data_ext(decoded(), bytes(64), 64, 0, lib.LLAMA_STATE_SEQ_FLAGS_ON_DEVICE)",
        "throws",
        ("test_state.py::test_what_no_snapshot_is_taken_of_or_restored",),
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

SAMPLING = [
    Hazard(
        "sample at a row not flagged for output",
        (
            ("decoded(); og.SamplerChain([S.greedy()]).sample(context, 0)", "ValueError", "row 0"),
            ("decoded(); og.SamplerChain([S.dist(1)]).sample(context, 0)", "ValueError", "row 0"),
            ("decoded(); context.logits(0)", "ValueError", "row 0"),
            ("decoded(); context.logits(-2)", "ValueError", "row -2"),
            ("decoded(); context.argmax(99)", "ValueError", "row 99"),
        ),
        "lib.llama_sampler_sample(lib.llama_sampler_init_greedy(), decoded(), 3)",
    ),
    Hazard(
        "chain with no selecting sampler",
        (
            ("decoded(); og.SamplerChain([S.top_k(4)]).sample(context, -1)", "ValueError", "end with"),
            ("decoded(); og.SamplerChain().sample(context, -1)", "ValueError", "end with"),
            ("og.SamplerChain([S.dist(1), S.top_k(4)])", "ValueError", "last"),
            (f"decoded(); og.SamplerChain([{FORBID_ALL}, S.dist(1)]).sample(context, -1)", "SamplerError", "no token"),
        ),
        f"{RAW_CHAIN}; lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(4)); "
        "lib.llama_sampler_sample(chain, decoded(), -1)",
    ),
    Hazard(
        "top_k before grammar",
        (
            ("og.SamplerChain([S.top_k(1), og.Grammar.gbnf('root ::= \"q\"').sampler(vocab)])", "ValueError", "before"),
            (
                f"decoded(); og.SamplerChain([og.Grammar.gbnf('root ::= \"q\"').sampler(vocab), {FORBID_ALL}, S.dist(1)])"
                ".sample(context, -1)",
                "GrammarError", "does not allow",
            ),
        ),
        f"""
{RAW_CHAIN}
lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(1))
lib.llama_sampler_chain_add(chain, {RAW_YES})
lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(1))
array = candidates([(64, 1.0), (65, 0.0)])
lib.llama_sampler_apply(chain, array)
lib.llama_sampler_accept(chain, array.data[array.selected].id)
""",
        "throws",
    ),
    Hazard(
        "accept of a disallowed token",
        (
            (
                "og.SamplerChain([og.Grammar.gbnf('root ::= \"yes\"').sampler(vocab), S.greedy()])"
                ".accept(vocab.tokenize('no')[0])",
                "GrammarError", "does not allow",
            ),
        ),
        f"lib.llama_sampler_accept({RAW_YES}, 64)",
        "throws",
        ("test_grammar.py::test_a_refused_token_changes_nothing",),
    ),
    Hazard(
        "accept of an early end of generation",
        (
            (
                "og.SamplerChain([og.Grammar.gbnf('root ::= \"yes\"').sampler(vocab), S.greedy()]).accept(vocab.eos)",
                "GrammarError", "does not allow",
            ),
        ),
        f"lib.llama_sampler_accept({RAW_YES}, lib.llama_vocab_eos(words_vocab))",
        tests=("test_grammar.py::test_an_end_too_early_is_refused",),
    ),
    Hazard(
        "NULL from a failed grammar added to a chain",
        (
            ("og.Grammar.gbnf('root ::= (\"a\" | ){2,}').sampler(vocab)", "GrammarError", "llama.cpp cannot use"),
            ("og.Grammar.gbnf('root ::= <no such token>').sampler(vocab)", "GrammarError", "no such token"),
            ("og.Grammar.gbnf('root ::= <[49152]>').sampler(vocab)", "GrammarError", "49152"),
            ("og.SamplerChain([None])", "TypeError", "sampler"),
        ),
        f"{RAW_CHAIN}; lib.llama_sampler_chain_add(chain, ffi.NULL); lib.llama_sampler_sample(chain, decoded(), -1)",
    ),
    Hazard(
        "one sampler in two chains",
        (("s = S.top_k(4); og.SamplerChain([s]); og.SamplerChain([s])", "ClosedError", "given to"),),
        f"""
sampler = lib.llama_sampler_init_dist(1)
for _ in range(2):
    {RAW_CHAIN}
    lib.llama_sampler_chain_add(chain, sampler)
    lib.llama_sampler_free(chain)
""",
    ),
    Hazard(
        "20,000 nested (",
        (("og.Grammar.gbnf('root ::= ' + '(' * 20_000 + '\"a\"' + ')' * 20_000)", "GrammarError", "nested"),),
        "on_8_mb(lambda: " + RAW_GRAMMAR.format("b'root ::= ' + b'(' * 20_000 + b'\"a\"' + b')' * 20_000") + ")",
    ),
    Hazard(
        "a chain of 200,000 rules",
        (
            (
                "og.Grammar.gbnf('root ::= r0\\n' + ''.join(f'r{i} ::= r{i + 1}\\n' for i in range(2000)) + "
                "'r2000 ::= \"a\"')",
                "GrammarError", "rules",
            ),
        ),
        "on_8_mb(lambda: " + RAW_GRAMMAR.format(
            "('root ::= r0\\n' + ''.join(f'r{i} ::= r{i + 1}\\n' for i in range(200_000)) + 'r200000 ::= \"a\"').encode()"
        ) + ")",
    ),
    Hazard(
        "bad regex in grammar_lazy_patterns",
        raw="""
pattern = ffi.new("char[]", b"(")
lib.llama_sampler_init_grammar_lazy_patterns(
    words_vocab, b'root ::= "a"', b"root", ffi.new("const char *[]", [pattern]), 1, ffi.NULL, 0)
""",
        ends="throws",
        tests=("test_hazards.py::test_what_has_no_guard_is_not_called",),
    ),
    Hazard(
        "penalties last_n = 2^31-1",
        (
            ("S.penalties(vocab, last_n=2**31 - 1)", "ValueError", "last_n"),
            ("S.dry(vocab, last_n=2**31 - 1)", "ValueError", "last_n"),
        ),
        "no_more_memory(2**30); lib.llama_sampler_init_penalties(50257, 2**31 - 1, 1.1, 0.0, 0.0)",
        "throws",
    ),
    Hazard(
        "tokenize bytes F7 BF BF BF",
        ((r"vocab.tokenize(b'\xf7\xbf\xbf\xbf')", "UnicodeDecodeError", "utf-8"),),
        r"lib.llama_tokenize(words_vocab, b'\xf7\xbf\xbf\xbf', 4, ffi.new('llama_token[]', 16), 16, False, False)",
        "throws",
    ),
    Hazard(
        "the same as DRY breaker",
        (
            (r"S.dry(vocab, breakers=[b'a\xf7\xbf\xbf\xbf'])", "TypeError", "breakers[0]"),
            (r"S.dry(vocab, breakers=['\ud800'])", "UnicodeEncodeError", "surrogates"),
        ),
        r"""
breaker = ffi.new("char[]", b"a\xf7\xbf\xbf\xbf")
lib.llama_sampler_init_dry(words_vocab, 0.8, 1.75, 2, 64, ffi.new("const char *[]", [breaker]), 1)
""",
        "throws",
    ),
    Hazard(
        "text_len < 0",
        (("vocab.tokenize(None)", "TypeError", "text"),),
        "lib.llama_tokenize(words_vocab, b'abc', -1, ffi.new('llama_token[]', 16), 16, False, False)",
        "throws",
        note="ours takes no length",
    ),
    Hazard(
        "40,000 letters in a row on deepseek-llm, deepseek-coder, falcon, gpt-neox vocabularies",
        (("vocab.tokenize('x' * 2_000_000)", "TokenizeError", "1,048,576"),),
        """
deep = lib.llama_model_get_vocab(load(deep_path, vocab_only=True))
tokens = ffi.new("llama_token[]", 40_000)
on_8_mb(lambda: lib.llama_tokenize(deep, b"a" * 40_000, 40_000, tokens, 40_000, False, False))
""",
        tests=("test_vocab.py::test_a_million_letters", "test_vocab.py::test_runs_at_the_limit"),
    ),
    *(
        Hazard(
            f"{name}, id out of range",
            tuple((f"vocab.{name}({token})", "ValueError", "token") for token in ("-1", "vocab.n_tokens", "2**31 - 1")),
            raw,
            "throws",
        )
        for name, raw in {
            "text": "lib.llama_vocab_get_text(words_vocab, -1)",
            "score": "lib.llama_vocab_get_score(words_vocab, 2**31 - 1)",
            "attr": "lib.llama_vocab_get_attr(words_vocab, 2**31 - 1)",
            "piece": "lib.llama_token_to_piece(words_vocab, 2**31 - 1, ffi.new('char[]', 64), 64, 0, False)",
        }.items()
    ),
    Hazard(
        "is_control out of range",
        (
            *((f"vocab.is_control({token})", "ValueError", "token") for token in ("-1", "vocab.n_tokens", "2**31 - 1")),
            *((f"vocab.is_eog({token})", "ValueError", "token") for token in ("-1", "vocab.n_tokens")),
            ("vocab.detokenize([0, vocab.n_tokens])", "ValueError", "tokens[1]"),
            ("S.logit_bias(vocab, {vocab.n_tokens: 1.0})", "ValueError", "token"),
        ),
        "lib.llama_vocab_is_control(words_vocab, 10**9)",
    ),
    Hazard(
        "chat message content NULL",
        raw="""
keep = role, one, three = [ffi.new("char[]", text) for text in (b"user", b"one", b"three")]
messages = ffi.new("llama_chat_message[]", [(role, one), (role, ffi.NULL), (role, three)])
prompt = ffi.new("char[]", 1000)
length = lib.llama_chat_apply_template(b"chatml", messages, 3, True, prompt, 1000)
if b"three" not in ffi.unpack(prompt, max(length, 0)):
    harm("the prompt is cut off")
""",
        ends="harm",
        tests=(
            "test_chat_template.py::test_prompts_are_those_of_transformers",
            "test_hazards.py::test_what_has_no_guard_is_not_called",
        ),
        note="ours renders with Jinja, where None is a value like any other",
    ),
    Hazard(
        "arguments that are no numbers",
        (
            ("S.temp(float('nan'))", "ValueError", "temperature"),
            ("S.mirostat(vocab, m=0)", "ValueError", "m must"),
        ),
        tests=("test_sampling.py::test_arguments_out_of_range", "test_sampling.py::test_extreme_arguments_do_no_harm"),
    ),
    Hazard(
        "adaptive-p: clone after a token that was refused, then accept",
        (
            (f"decoded(); c = og.SamplerChain([{FORBID_ALL}, S.adaptive_p(seed=1)]); "
             "raised(og.SamplerError, c.sample, context, -1); d = c.clone(); "
             "[d.accept(i) for i in range(vocab.n_tokens)]; raise KeyError('it lives')", "KeyError", "lives"),
        ),
        note="seen: SIGSEGV; the clone has the index of the refused token, and none of the probabilities",
    ),
    Hazard(
        "a logit that overflows, before a sampler that selects",
        (
            ("decoded(); big = [S.logit_bias(vocab, {3: 3e38}) for _ in range(2)]; "
             "og.SamplerChain([*big, S.dist(1)]).sample(context, -1)", "SamplerError", "no token"),
            (f"decoded(); og.SamplerChain([{FORBID_ALL}, S.dist(1)]).sample(context, -1)", "SamplerError", "no token"),
        ),
        """
tokens = ffi.new("llama_token_data[]", [(i, 1.0, 0.0) for i in range(8)])
tokens[3].logit = float("inf")
array = ffi.new("llama_token_data_array *", (tokens, 8, -1, False))
lib.llama_sampler_apply(lib.llama_sampler_init_dist(1), array)
if array.selected != 3:
    harm("a token without a probability")
""",
        "harm",
        ("test_chain.py::test_a_logit_that_overflows", "test_chain.py::test_nothing_left_to_choose"),
        note="a build with assertions on ends there",
    ),
    Hazard("infill without a top_k, over the whole vocabulary",
        (
            ("og.SamplerChain([S.infill(vocab)])", "ValueError", "top_k"),
            ("og.SamplerChain([S.top_k(4), S.infill(vocab)]).remove(0)", "ValueError", "top_k"),
        ),
        note="it compares each candidate with each: minutes",
    ),
    Hazard("arguments that are no float32", (("S.temp(1e300)", "ValueError", "temperature"),)),
    Hazard(
        "a Python sampler that raises, closes its chain, selects nothing that is there, writes NaN, or is to be cloned",
        (
            ("decoded(); c = og.SamplerChain([S.custom(lambda i, x: c.close()), S.greedy()]); c.sample(context, -1)",
             "RuntimeError", "callback"),
            ("decoded(); og.SamplerChain([S.custom(lambda i, x: 1 / 0), S.greedy()]).sample(context, -1)",
             "ZeroDivisionError", "zero"),
            ("decoded(); og.SamplerChain([S.custom(lambda i, x: 2**31, selects=True)]).sample(context, -1)",
             "ValueError", "custom returned"),
            ("decoded(); og.SamplerChain([S.custom(lambda i, x: x.fill(float('nan'))), S.top_k(200), S.dist(1)])"
             ".sample(context, -1)", "SamplerError", "NaN"),
            ("og.SamplerChain([S.custom(print, accept=print)]).clone()", "SamplerError", "clone="),
        ),
    ),
]  # fmt: skip

FILES = [
    *(
        Hazard(
            f"GGUF: {what}", ((f"of_file('{name}.gguf')", "GGUFError", part),), f"use(load(folder + '/{name}.gguf'))"
        )
        for what, name, part in [
            ("block_count of 0", "no-layers", "block_count"),
            ("block_count of 1,000,000", "many-layers", "block_count"),
            ("expert_count above what llama.cpp has room for", "many-experts", "expert_count"),
            ("more experts used than there are", "used-experts", "expert_used_count"),
            ("as many KV heads as overflow 32 bits", "many-heads", "head_count_kv"),
            ("rope.scaling.type that llama.cpp does not know", "odd-scaling", "rope.scaling.type"),
            ("pooling_type that llama.cpp does not know", "odd-pooling", "pooling_type"),
            ("a matrix of integers", "integers", "ffn_gate.weight"),
            ("weights of a norm that are not f32", "half-norm", "output_norm.weight"),
        ]
    ),
    Hazard(
        "GGUF: tensors that begin between multiples of 32 bytes, mapped",
        (("of_file('unaligned.gguf')", "ModelLoadError", "multiple of 32"),),
        "use(load(folder + '/unaligned.gguf'))",
    ),
    Hazard(
        "LoRA: wrong value types",
        (("og.LoRA(tiny(), folder + '/odd-lora.gguf')", "AdapterError", "alpha"),),
        "lib.llama_adapter_lora_init(model, os.fsencode(folder + '/odd-lora.gguf'))",
        tests=("test_adapter.py::test_files_that_are_refused",),
    ),
    Hazard(
        "an adapter freed after its model",
        raw="""
adapter = lib.llama_adapter_lora_init(model, os.fsencode(folder + "/lora.gguf"))
assert adapter
lib.llama_model_free(model)
lib.llama_adapter_lora_free(adapter)
""",
        tests=("test_adapter.py::test_any_order_of_closing", "test_adapter.py::test_a_forgotten_adapter"),
    ),
    Hazard(
        "an exception in a callback",
        tests=(
            "test_model.py::test_an_exception_in_progress",
            "test_callbacks.py::test_an_exception_in_a_log_handler_reaches_the_caller",
            "test_interrupt.py::test_ctrl_c_stops_a_long_prompt_within_half_a_second",
        ),
    ),
    Hazard(
        "a failed grammar prints itself to stderr", tests=("test_hazards.py::test_a_failed_grammar_prints_nothing",)
    ),
    Hazard("on a crash ggml starts a debugger on the process", tests=("test_backend.py::test_no_debugger_is_started",)),
]

PEERS = [
    Hazard("pieces longer than a fixed buffer cut silently", tests=("test_vocab.py::test_every_piece_and_text",)),
    Hazard("logits_all needed for logprobs", tests=("test_context.py::test_only_rows_that_asked_can_be_read",)),
    Hazard("logs on stderr that cannot be turned off", tests=("test_callbacks.py::test_the_log_is_quiet_by_default",)),
    Hazard("GPU layers asked for, no GPU backend built", tests=("test_model.py::test_gpu_layers_without_a_gpu",)),
    Hazard("a second request that cuts off the first", tests=("test_generate.py::test_two_generations_at_once",)),
    Hazard(
        "user text that turns into special tokens",
        tests=(
            "test_vocab.py::test_special_text_is_text_unless_asked_for",
            "test_chat_template.py::test_control_tokens_in_messages_stay_text",
        ),
    ),
    Hazard("overflow that drops the prompt's head", tests=("test_generate.py::test_a_prompt_that_does_not_fit",)),
    Hazard(
        "chat templates are code from strangers",
        tests=(
            "test_chat_template.py::test_hostile_templates_are_stopped",
            "test_chat_template.py::test_only_plain_values_come_in",
        ),
    ),
]

FIGURES = [
    Hazard("100,000 mutated state blobs", tests=("test_figures.py::test_mutated_states",)),
    Hazard("10,000 random co-scheduled batches", tests=("test_figures.py::test_neighbours_change_nothing",)),
    Hazard(
        "10,000 grammars: ready or rejected in 250 ms and 50 MB", tests=("test_figures.py::test_grammars_are_quick",)
    ),
    Hazard("10,000 mutated GGUF and LoRA files", tests=("test_figures.py::test_mutated_files",)),
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
        ("test_hazards.py::test_a_bad_grammar_is_refused_with_its_place",),
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
        tests=("test_memory.py::test_divide", "test_hazards.py::test_what_has_no_guard_is_not_called"),
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
        tests=("test_memory.py::test_keep", "test_hazards.py::test_what_has_no_guard_is_not_called"),
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
        ("test_state.py::test_what_no_snapshot_is_taken_of_or_restored",),
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
        ("test_state.py::test_what_a_copy_would_write_over_is_not_loaded",),
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
        ("test_state.py::test_what_waits_for_the_next_decode_cannot_be_saved",),
    ),
    Hazard(
        "RPC: no server, one that is something else, of another version, or one that dies",
        tests=(
            "test_rpc.py::test_what_is_no_server", "test_rpc.py::test_a_server_that_went_away",
            "test_rpc.py::test_a_busy_server", "test_rpc.py::test_a_server_that_dies_takes_its_callers_along",
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
        tests=("test_threadpool.py::test_more_threads_than_the_pool_has",),
        openmp=True,
    ),
    Hazard(
        "tokenizers that recurse, abort or take the square: exaone-moe, superbpe, whitespace, afmoe",
        tests=(
            "test_vocab.py::test_a_chapter_of_words_without_punctuation",
            "test_vocab.py::test_a_long_number_where_each_digit_looks_ahead",
            "test_vocab.py::test_spaces_in_a_row_in_a_whitespace_vocabulary",
            "test_vocab.py::test_runs_at_the_limit_in_other_pre_tokenizers",
        ),
    ),
]  # fmt: skip

HAZARDS = {
    "silent corruption and hangs": SILENT,
    "batch, context, memory": BATCH,
    "sampling, grammar, vocabulary": SAMPLING,
    "files and callbacks": FILES,
    "peers' bugs": PEERS,
    "figures": FIGURES,
    "found since": FOUND,
}

NOT_CALLED = {
    "llama_batch_get_one", "llama_batch_init", "llama_chat_apply_template", "llama_get_embeddings", "llama_get_logits",
    "llama_memory_seq_div", "llama_memory_seq_keep",
    "llama_sampler_init_grammar_lazy_patterns", "llama_sampler_sample", "llama_state_load_file", "llama_state_save_file",
    "llama_state_seq_load_file", "llama_state_seq_save_file",
}  # fmt: skip
"""Functions that no argument check makes safe, or that have a safe twin in ours."""
