"""Sampling, grammar, vocabulary."""

from __future__ import annotations

from helpers.hazards.row import FORBID_ALL, RAW_CHAIN, RAW_GRAMMAR, RAW_YES, Hazard

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
        ("sampling/grammar/test_grammar.py::test_a_refused_token_changes_nothing",),
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
        tests=("sampling/grammar/test_grammar.py::test_an_end_too_early_is_refused",),
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
        tests=("whole/test_hazards.py::test_what_has_no_guard_is_not_called",),
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
        tests=(
            "model/test_tokenize_limits.py::test_a_million_letters",
            "model/test_tokenize_limits.py::test_runs_at_the_limit",
        ),
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
            "chat/template/test_template.py::test_prompts_are_those_of_transformers",
            "whole/test_hazards.py::test_what_has_no_guard_is_not_called",
        ),
        note="ours renders with Jinja, where None is a value like any other",
    ),
    Hazard(
        "arguments that are no numbers",
        (
            ("S.temp(float('nan'))", "ValueError", "temperature"),
            ("S.mirostat(vocab, m=0)", "ValueError", "m must"),
        ),
        tests=(
            "sampling/test_sampler.py::test_arguments_out_of_range",
            "sampling/test_sampler.py::test_extreme_arguments_do_no_harm",
        ),
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
        ("sampling/test_chain.py::test_a_logit_that_overflows", "sampling/test_chain.py::test_nothing_left_to_choose"),
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
