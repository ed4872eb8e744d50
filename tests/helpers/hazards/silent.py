"""Silent corruption and hangs."""

from __future__ import annotations

from helpers.hazards.row import RAW_GRAMMAR, Hazard

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
        ("whole/test_hazards.py::test_a_bad_grammar_is_refused_with_its_place",),
    ),
    Hazard(
        "3: lazy-grammar trigger pattern",
        raw="""
pattern = ffi.new("char[]", b"[a-z ]*zq")
lazy = lib.llama_sampler_init_grammar_lazy_patterns(
    words_vocab, b'root ::= "a"*', b"root", ffi.new("const char *[]", [pattern]), 1, ffi.NULL, 0)
for _ in range(100_000):  # each takes longer than the one before
    lib.llama_sampler_accept(lazy, 64)
""",
        ends="hangs",
        tests=("whole/test_hazards.py::test_what_has_no_guard_is_not_called",),
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
            "context/test_state.py::test_another_model_is_refused",
            "context/test_state.py::test_damage_is_found",
            "context/test_state.py::test_another_layout_is_refused",
            "whole/test_figures.py::test_mutated_states",
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
        tests=("context/test_state.py::test_no_room", "whole/test_hazards.py::test_a_state_that_fails_leaves_nothing"),
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
        tests=("context/test_state.py::test_damage_is_found", "context/test_state.py::test_headers_that_were_made_up"),
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
        tests=(
            "context/test_state.py::test_a_file_is_replaced_whole",
            "whole/test_hazards.py::test_what_has_no_guard_is_not_called",
        ),
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
        tests=("whole/test_ownership.py::test_a_forked_child_is_refused",),
        note="ggml's own threads hang as well where a pool was attached",
        openmp=True,
    ),
]
