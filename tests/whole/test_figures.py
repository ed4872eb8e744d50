"""The figures of helpers/hazards: many random cases, none of which may end the process or come out wrong.

CI tries some hundred of each. ``pytest tests/whole/test_figures.py --hazard-cases=10000`` tries as many as you like; the
cases of one number are the same in every run.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.twin import CLOSE, EXACT, N_VOCAB, Value, Weights, tiny_llama, write_gguf

if TYPE_CHECKING:
    from helpers.children import RunChild

Cases = Callable[[int], range]


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Cases:
    """Give the numbers of the cases to try: as many as the option says, or as the test says for CI."""
    asked = request.config.getoption("--hazard-cases")
    return lambda usual: range(asked or usual)


def _figures(request: pytest.FixtureRequest, what: str, found: object) -> None:
    """Show the figures with ``-v`` or where the test fails."""
    request.node.add_report_section("call", what, str(found))


# States ---------------------------------------------------------------------------------------------------------------


def test_mutated_states(tiny: og.Model, cases: Cases) -> None:
    """No state with bytes changed, cut off, put in, taken out or moved is taken, as its checksum is wrong."""
    with og.Context(tiny, n_ctx=256) as context:
        batch = og.Batch(8)
        batch.add_sequence(range(8))
        context.decode(batch)
        blob = bytes(context.save_state(0, range(8)))
    assert og.State.from_bytes(blob).tokens == tuple(range(8))
    taken = 0
    for case in cases(10_000):
        rng = random.Random(case)
        bad = bytearray(blob)
        kind = rng.randrange(6)
        at, other = sorted(rng.sample(range(len(bad)), 2))
        if kind < 2:
            for _ in range(rng.randint(1, 4)):
                bad[rng.randrange(len(bad) if kind else 300)] = rng.randrange(256)
        elif kind == 2:
            del bad[at:]
        elif kind == 3:
            del bad[at:other]
        elif kind == 4:
            bad[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            bad[at:other] = bad[at:other][::-1]
        try:
            og.State.from_bytes(bad)
        except og.StateError:
            continue
        taken += bad != blob
    assert not taken


# Batches --------------------------------------------------------------------------------------------------------------


def scheduled(context: og.Context, prompts: dict[int, list[int]], order: list[int]) -> dict[int, list[np.ndarray]]:
    """Decode the tokens of several sequences in two batches, row by row in this order; return the logits of each."""
    context.memory.clear(data=False)
    found: dict[int, list[np.ndarray]] = {seq: [] for seq in prompts}
    half = len(order) // 2 or 1
    for part in (order[:half], order[half:]):
        if not part:
            continue
        batch = og.Batch(len(part))
        done = {seq: len(found[seq]) for seq in prompts}
        for seq in part:
            batch.add(prompts[seq][done[seq]], done[seq], [seq], logits=True)
            done[seq] += 1
        context.decode(batch)
        for row, seq in enumerate(part):
            found[seq].append(context.logits(row).copy())
    return found


@pytest.mark.parametrize("unified", [False, True])
def test_neighbours_change_nothing(unified: bool, tiny: og.Model, cases: Cases) -> None:
    """A sequence has the logits that it has alone, however it is scheduled, and other tokens beside it change nothing."""
    with (
        og.Context(tiny, n_ctx=1024, n_seq_max=4, kv_unified=unified, **EXACT) as context,
        og.Context(tiny, n_ctx=256, **EXACT) as single,
    ):
        for case in cases(200):
            rng = random.Random(f"{unified} {case}")
            seqs = rng.sample(range(4), rng.randint(2, 4))
            prompts = {seq: [rng.randrange(N_VOCAB) for _ in range(rng.randint(1, 12))] for seq in seqs}
            order = [seq for seq in seqs for _ in prompts[seq]]
            rng.shuffle(order)
            together = scheduled(context, prompts, order)
            chosen = seqs[0]
            alone = scheduled(single, {0: prompts[chosen]}, [0] * len(prompts[chosen]))[0]
            np.testing.assert_allclose(together[chosen], alone, rtol=0, atol=CLOSE, err_msg=f"case {case}")
            for seq in seqs[1:]:
                prompts[seq] = [rng.randrange(N_VOCAB) for _ in prompts[seq]]
            beside = scheduled(context, prompts, order)
            np.testing.assert_array_equal(together[chosen], beside[chosen], err_msg=f"case {case}")


# Grammars -------------------------------------------------------------------------------------------------------------

GRAMMARS = r"""
import json, random, resource, sys, time
import offgrid_llama as og

begin, end = int(sys.argv[2]), int(sys.argv[3])
NAMES = [f"r{i}" for i in range(12)]
DIGITS = ["[0-9]"]
TEXT = ["a", "b", "{", ":", ", ", "\\n", '\\"', "é", "中"]

def item(rng, depth, names):
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return '"' + "".join(rng.choice(TEXT) for _ in range(rng.randint(0, 30))) + '"'
    if kind == 1:
        return rng.choice(["[a-z]", '[^"\\\\]', "[0-9]", "[一-龥]", "[\\x00-\\x1f]", ".", "[a-]"])
    if kind < 5:
        return rng.choice(names)
    if kind == 5:
        special = ["<|im_end|>", "!<|im_end|>", "<[5]>", "<[99999]>", "<nobody>"]
        return rng.choice(special) if rng.random() < 0.02 else '"x"'
    return "(" + alternatives(rng, depth - 1, names) + ")"

def sequence(rng, depth, names):
    text = []
    for _ in range(rng.randint(0 if rng.random() < 0.1 else 1, 4)):
        text.append(item(rng, depth, names))
        if rng.random() < 0.3:
            n = rng.choice([0, 1, 1, 2, 2, 3, 3, 4])
            text[-1] += rng.choice(["*", "+", "?", f"{{{n}}}", f"{{{n},}}", f"{{0,{n}}}", f"{{{n},{n + 2}}}"])
            if rng.random() < 0.02:
                text[-1] += rng.choice(["{3,1}", "{2000}", "{0,500}", "{100,}"])
    return " ".join(text)

def alternatives(rng, depth, names):
    return " | ".join(sequence(rng, depth, names) for _ in range(rng.randint(1, 40 if rng.random() < 0.02 else 4)))

def grammar(case):
    rng = random.Random(case)
    if case < len(WORST):
        return WORST[case]
    names = ["root", *NAMES[: rng.randint(0, 12)]]
    back = rng.random() < 0.1  # rules that lead back to themselves
    text = "\n".join(
        f"{name} ::= {alternatives(rng, rng.randint(0, 3), names if back else names[i + 1 :] or DIGITS)}"
        for i, name in enumerate(names)
    )
    if rng.random() < 0.3:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", "(", ")", '"', "[", "{", "|", "\0", "\\", "::="]) + text[at + rng.randint(0, 3) :]
    return text

WORST = [
    'root ::= "' + "a" * 65_000 + '"',
    'root ::= "a"{2000}',
    "root ::= " + "(" * 100 + '"a"' + ")" * 100,
    "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(1998)) + '\nr1998 ::= "a"',
    'root ::= "' + "a" * 240 + '"{2000}',
    "root ::= " + "r? " * 2000 + '\nr ::= "a" | "b" | "c"',
    "root ::= " + " ".join(f"r{i}?" for i in range(1900)) + "\n" + "\n".join(f'r{i} ::= "a"?' for i in range(1900)),
    "root ::= " + " | ".join(["."] * 3999),
    "root ::= " + " | ".join(["."] * 30_000),
    "root ::= " + "r? " * 28 + "\nr ::= " + " | ".join(["."] * 100),
    "root ::= " + "r? " * 10_000 + "\nr ::= " + " | ".join(["."] * 16_000),
    "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} ." for i in range(1900)) + "\nr1900 ::= " + ".|" * 80,
    "root ::= [" + "a-z" * 20_000 + "]",
    'root ::= (("a"? "b"?){0,40} "c"?){0,40}',
    "root ::= " + "(" * 99 + '"a"?' + ")?" * 99,
    "root ::= " + "<|im_end|> " * 5000,
    "root ::= " + " | ".join(f"r{i}" for i in range(1500)) + "\n" + "\n".join(f"r{i} ::= .? .? .?" for i in range(1500)),
    "root ::= " + "(" * 50 + '"a"? ' * 12_000 + ")?" * 50,
]

resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)  # what would take all memory shall not

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024

with og.Model(sys.argv[1], vocab_only=True) as model:
    worst = {"seconds": 0.0, "mb": 0.0, "ready": 0, "refused": 0, "slow": [], "large": []}
    og.Grammar.gbnf('root ::= "a"').sampler(model.vocab).close()
    for case in range(begin, end):
        text = grammar(case)
        for _ in range(3):  # again where something else kept the processor busy
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak begins anew
            before = memory("VmRSS")
            since = time.thread_time()
            try:
                og.Grammar.gbnf(text).sampler(model.vocab).close()
            except og.GrammarError:
                result = "refused"
            except og.NativeError as error:
                result = str(error)
            else:
                result = "ready"
            seconds, mb = time.thread_time() - since, memory("VmHWM") - before
            if seconds <= 0.25:
                break
        worst[result] = worst.get(result, 0) + 1
        worst["seconds"], worst["mb"] = max(seconds, worst["seconds"]), max(mb, worst["mb"])
        if seconds > 0.25:
            worst["slow"].append([case, seconds, text[:100]])
        if mb > 50:
            worst["large"].append([case, mb, text[:100]])
    print(json.dumps(worst))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_grammars_are_quick(
    smollm2_path: Path, run_child: RunChild, cases: Cases, request: pytest.FixtureRequest
) -> None:
    """A grammar is ready or refused within 250 ms of the processor's time and 50 MB, the worst ones that we know too."""
    numbers = cases(200)
    usual = {"PYTHONMALLOC": "pymalloc"}  # the children's -X dev has another, which takes as long again
    done = run_child(GRAMMARS, smollm2_path, "0", str(len(numbers)), timeout=3000, env=usual)
    assert done.returncode == 0, done.stderr[-800:]
    worst = json.loads(done.stdout)
    _figures(request, "grammars", worst)
    assert worst["ready"] + worst["refused"] == len(numbers)
    assert min(worst["ready"], worst["refused"]) > len(numbers) // 20
    assert (worst["slow"], worst["large"]) == ([], [])


# JSON Schemas, regular expressions and Lark ---------------------------------------------------------------------------

SCHEMAS = r"""
import json, random, resource, sys, time
import offgrid_llama as og

begin, end = int(sys.argv[2]), int(sys.argv[3])
PATTERNS = ["^a+$", "[0-9]{2,9}", "(a|b)*c", "^[A-Z][a-z]*( [A-Z][a-z]*){0,9}$", "x", "(a+)+$", "\\\\d{3}", ".{0,500}", "("]
FORMATS = ["date-time", "date", "time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "duration", "regex"]

def number(rng):
    return rng.choice([0, 1, 2, 3, 7, 100, -5, 0.5, 0.01, 1e6, 12.75, 2**40])

def schema(rng, depth):
    kind = rng.randrange(12 if depth else 6)
    if kind < 2:
        found = {"type": "string"}
        for key in ("minLength", "maxLength"):
            if rng.random() < 0.3:
                found[key] = rng.choice([0, 1, 3, 20, 300, 5000, 10**6])
        if rng.random() < 0.3:
            found["pattern"] = rng.choice(PATTERNS)
        if rng.random() < 0.1:
            found["format"] = rng.choice(FORMATS)
        return found
    if kind < 4:
        found = {"type": rng.choice(["integer", "number"])}
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            if rng.random() < 0.2:
                found[key] = number(rng)
        return found
    if kind == 4:
        others = [{"type": "null"}, {"const": [1, {"a": None}]}, {"$ref": "#"}, {"$ref": "#/$defs/d"}, {}]
        return rng.choice([{"type": "boolean"}, *others])
    if kind == 5:
        n = rng.randint(1, 300 if rng.random() < 0.1 else 5)
        return {"enum": [rng.choice(["red", 1, None, "blue", 2.5, [1]]) for _ in range(n)]}
    if kind < 8:
        names = [f"p{rng.randrange(30)}" for _ in range(rng.randint(0, 9))]
        found = {"type": "object", "properties": {name: schema(rng, depth - 1) for name in names}}
        found["required"] = [name for name in dict.fromkeys(names) if rng.random() < 0.6]
        if rng.random() < 0.2:
            found["additionalProperties"] = rng.choice([False, True, schema(rng, 0)])
        if rng.random() < 0.1:
            found["patternProperties"] = {rng.choice(PATTERNS): schema(rng, 0)}
        if rng.random() < 0.1:
            found[rng.choice(["minProperties", "maxProperties"])] = rng.choice([0, 1, 2])
        return found
    if kind < 10:
        found = {"type": "array", "items": schema(rng, depth - 1)}
        for key in ("minItems", "maxItems"):
            if rng.random() < 0.3:
                found[key] = rng.choice([0, 1, 2, 5, 300, 10**5])
        if rng.random() < 0.2:
            found["prefixItems"] = [schema(rng, depth - 1) for _ in range(2)]
        return found
    key = rng.choice(["anyOf", "anyOf", "allOf", "oneOf"])
    return {key: [schema(rng, depth - 1) for _ in range(rng.randint(1, 6))]}

def nested(depth, leaf):
    for _ in range(depth):
        leaf = {"type": "array", "items": leaf}
    return leaf

def twice(i):
    return [{"$ref": f"#/$defs/a{i}"}] * 2

def strings(n, **more):
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(n)}, **more}

S, R, L = og.Grammar.json_schema, og.Grammar.regex, og.Grammar.lark
WORST = [
    lambda: S({"type": "string", "maxLength": 10**9}),
    lambda: S({"type": "string", "minLength": 10**6}),
    lambda: S({"type": "array", "items": {"type": "integer"}, "maxItems": 10**6}),
    lambda: S({"type": "array", "items": {"type": "integer"}, "minItems": 10**5}),
    lambda: S(nested(60, {"type": "integer"})),
    lambda: S(nested(30, {"type": "integer"})),
    lambda: S({"allOf": [{"anyOf": [strings(j + 1) for j in range(6)]} for i in range(8)]}),
    lambda: S({"allOf": [{"anyOf": [{"minimum": i * j} for j in range(10)]} for i in range(10)]}),
    lambda: S({"enum": [f"v{i}" for i in range(5000)]}),
    lambda: S({"anyOf": [{"const": i} for i in range(1500)]}),
    lambda: S({"anyOf": [strings(3, required=["p0"]) for _ in range(300)]}),
    lambda: S(strings(1500, required=[f"p{i}" for i in range(1500)])),
    lambda: S(strings(1500)),
    lambda: S(strings(400)),
    lambda: S({"$ref": "#"}),
    lambda: S({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    lambda: S({"$defs": {f"a{i}": {"allOf": twice(i + 1)} for i in range(300)}, **twice(0)[0]}),
    lambda: S({"allOf": [{"$ref": "#"}, {"type": "object"}]}),
    lambda: S({"anyOf": [{"$ref": "#"}, {"type": "object"}]}),
    lambda: S({"type": "string", "pattern": "(.{0,1000}){0,1000}"}),
    lambda: S({"allOf": [{"type": "string", "pattern": f"[a-z]{{{i},}}.*x{i}"} for i in range(40)]}),
    lambda: S({"allOf": [{"type": "string", "pattern": f"[a-z]{{{i},}}.*x{i}"} for i in range(8)]}),
    lambda: S({"type": "number", "multipleOf": 0.00007, "minimum": -1e18, "maximum": 1e18}),
    lambda: S({"type": "integer", "multipleOf": 999983}),
    lambda: S({"type": "integer", "multipleOf": 9973}),
    lambda: S({"allOf": [{"type": "integer", "multipleOf": each} for each in (9973, 9967)]}),
    lambda: S({"type": "object", "patternProperties": {f"^(a|b)*a(a|b){{{i}}}x{i}$": {} for i in range(60)}}),
    lambda: S({"type": "object", "patternProperties": {f"^(a|b)*a(a|b){{{i}}}x{i}$": {} for i in range(32)}}),
    lambda: S({"allOf": [{"enum": ["a" * i for i in range(300)]}, {"type": "string", "pattern": "^(a|aa|aaa)*$"}]}),
    lambda: R(r"(\p{L}|\p{N}){1,2000}"),
    lambda: R("|".join(f"w{i}x*" for i in range(8000))),
    lambda: R("(a|b)*a(a|b){18}"),
    lambda: R("(" * 200 + "a" + ")*" * 200),
    lambda: R("((a{99}){99}){99}"),
    lambda: L('start: start start | "a" | ""'),
    lambda: L("start: " + "(" * 20000 + '"a"' + ")" * 20000),
    lambda: L('start: start "a" | "b"'),
    lambda: L("start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(1500)) + '\nr1500: "a"'),
    lambda: L('start: ("a"{0,1000} "b"){0,1000}'),
    lambda: L('start: (("a"? "b"?){0,60} "c"?){0,60}'),
    lambda: L("start: A\nA: " + " & ".join(f"/[a-z]{{{i},}}.*x{i}/" for i in range(40))),
    lambda: L("start: %json " + json.dumps(strings(400))),
    lambda: og.Grammar.choices([f"choice {i}" for i in range(3000)]),
]

def grammar(case):
    rng = random.Random(case)
    if case < len(WORST):
        return WORST[case]()
    made = {"$defs": {"d": schema(rng, 2)}, **schema(rng, rng.randint(0, 4))}
    return og.Grammar.json_schema(made, whitespace=rng.random() < 0.3)

def follow(guide, rng):
    slowest = 0.0
    for _ in range(20):
        since = time.thread_time()
        guide.fill()
        words = guide.words()
        bits = range(8)
        allowed = [8 * i + bit for i, byte in enumerate(words) for bit in bits if byte >> bit & 1]
        if guide.error is not None or not allowed or guide.ended:
            break
        slowest = max(slowest, time.thread_time() - since)
        since = time.thread_time()
        guide.accept(rng.choice(allowed))
        guide.forced()
        slowest = max(slowest, time.thread_time() - since)
    return slowest

resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024

with og.Model(sys.argv[1], vocab_only=True) as model:
    worst = {"seconds": 0.0, "mb": 0.0, "step_seconds": 0.0, "ready": 0, "refused": 0, "slow": [], "large": []}
    follow(og.Grammar.json_schema({}).guide(model.vocab), random.Random(1))
    for case in range(begin, end):
        for _ in range(3):  # again where something else kept the processor busy
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak begins anew
            before = memory("VmRSS")
            since = time.thread_time()
            try:
                guide = grammar(case).guide(model.vocab)
            except og.GrammarError as error:
                guide = None
            seconds, mb = time.thread_time() - since, memory("VmHWM") - before
            if seconds <= 0.25:
                break
        worst["ready" if guide else "refused"] += 1
        worst["seconds"], worst["mb"] = max(seconds, worst["seconds"]), max(mb, worst["mb"])
        if seconds > 0.25:
            worst["slow"].append([case, seconds])
        if mb > 50:
            worst["large"].append([case, mb])
        if guide:
            worst["step_seconds"] = max(worst["step_seconds"], follow(guide, random.Random(case)))
    print(json.dumps(worst))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")
def test_schemas_are_quick(
    smollm2_path: Path, run_child: RunChild, cases: Cases, request: pytest.FixtureRequest
) -> None:
    """A schema, an expression or a Lark grammar is ready or refused within 250 ms of the processor's time and 50 MB."""
    numbers = cases(300)
    usual = {"PYTHONMALLOC": "pymalloc"}
    done = run_child(SCHEMAS, smollm2_path, "0", str(len(numbers)), timeout=3000, env=usual)
    assert done.returncode == 0, done.stderr[-800:]
    worst = json.loads(done.stdout)
    _figures(request, "schemas", worst)
    assert worst["ready"] + worst["refused"] == len(numbers)
    assert min(worst["ready"], worst["refused"]) > len(numbers) // 20
    assert (worst["slow"], worst["large"]) == ([], [])
    assert worst["step_seconds"] < 0.25


# Files ----------------------------------------------------------------------------------------------------------------

MUTATE = r'''
import random, resource, struct, sys
import offgrid_llama as og

kind, source, scratch, base = sys.argv[1:5]
begin, end = int(sys.argv[5]), int(sys.argv[6])
NUMBERS = [0, 1, 2, 3, 7, 31, 255, 256, 65_535, 65_536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 0x7FC00000, 0xBF800000]
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

def fields(data):
    """Return offset and size of the numbers in a header: of types and values of the keys, and of the tensors."""
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    keys, tensors, at = [], [], 24
    def skip_string():
        return at + 8 + struct.unpack_from("<Q", data, at)[0]
    for _ in range(n_keys):
        at = skip_string()
        kind, count = struct.unpack_from("<I", data, at)[0], 1
        keys.append((at, 4))
        at += 4
        if kind == 9:
            kind, count = struct.unpack_from("<IQ", data, at)
            keys += [(at, 4), (at + 4, 8)]
            at += 12
        for i in range(count):
            if kind == 8:
                if i < 20:
                    keys.append((at + 8, 1))
                at = skip_string()
            else:
                if i < 20:
                    keys.append((at, SIZES[kind]))
                at += SIZES[kind]
    for _ in range(n_tensors):
        at = skip_string()
        n_dims = struct.unpack_from("<I", data, at)[0]
        tensors += [(at, 4), *((at + 4 + 8 * i, 8) for i in range(n_dims + 1))]
        at += 4 + 8 * n_dims
        tensors[-1] = (at, 4)
        tensors.append((at + 4, 8))
        at += 12
    return keys, tensors or keys, at

def mutated(rng):
    new = bytearray(data)
    if rng.random() < 0.6:  # a number that stays one
        for _ in range(rng.randint(1, 2)):
            at, size = rng.choice(keys if rng.random() < 0.8 else tensors)
            old = int.from_bytes(new[at : at + size], "little")
            flipped = old ^ 1 << rng.randrange(8 * size)
            near = [old + 1, old - 1, old * 2, old // 2, flipped]
            number = rng.choice([*near, rng.choice(NUMBERS), rng.randrange(64), -1])
            new[at : at + size] = (number % 256**size).to_bytes(size, "little")
        return new
    for _ in range(rng.randint(1, 4)):  # any bytes
        at, size = rng.randrange(4, rng.choice([front, header_end])), rng.choice([1, 1, 4, 8])
        number = rng.choice([new[at] ^ 1 << rng.randrange(8), rng.choice(NUMBERS), rng.randrange(256), 2**64 - 1])
        new[at : at + size] = (number % 256**size).to_bytes(size, "little")
    if rng.random() < 0.05:
        del new[rng.randrange(len(new)) :]
    return new

def compute(model, *loras):
    with og.Context(model, n_ctx=64, n_threads=1) as context:
        context.set_loras(loras)
        batch = og.Batch(3)
        batch.add_sequence([1, 2, 3])
        context.decode(batch)
        context.logits(-1).copy()

with open(source, "rb") as file:
    data = file.read()
keys, tensors, header_end = fields(data)
header_end = min(header_end, len(data) - 8)
front = min(3000, header_end)
model = og.Model(base) if kind == "LoRA" else None
for case in range(begin, end):
    with open(scratch, "wb") as file:
        file.write(mutated(random.Random(f"{kind} {case}")))
    print(case, end=" ", flush=True)
    try:
        if kind == "LoRA":
            with og.LoRA(model, scratch) as lora:
                compute(model, lora)
        elif kind == "vocabulary":
            with og.Model(scratch, vocab_only=True) as mutant:
                mutant.vocab.detokenize(mutant.vocab.tokenize("Hello, wörld 12"))
        else:
            with og.Model(scratch) as mutant:
                compute(mutant)
    except (og.OffgridLlamaError, UnicodeError) as error:
        print(type(error).__name__, flush=True)
    else:
        print("worked", flush=True)
if model:
    model.close()
'''

EXTRA: dict[str, Value] = {
    "general.alignment": 32, "general.file_type": 0, "general.quantization_version": 2, "llama.expert_count": 0,
    "llama.expert_used_count": 0, "llama.expert_feed_forward_length": 96, "llama.rope.freq_base": 10000.0,
    "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0, "llama.rope.scaling.attn_factor": 1.0,
    "llama.rope.scaling.original_context_length": 4096, "llama.attention.key_length": 32,
    "llama.attention.value_length": 32, "llama.attention.causal": True, "llama.attention.sliding_window": 0,
    "llama.attention.clamp_kqv": 0.0, "llama.attention.max_alibi_bias": 0.0, "llama.logit_scale": 1.0,
    "llama.residual_scale": 1.0, "llama.embedding_scale": 1.0, "llama.pooling_type": 0,
    "llama.use_parallel_residual": False,
}  # fmt: skip
"""Keys that a llama may have, with what it does without them."""


@pytest.mark.parametrize(("kind", "usual"), [("model", 300), ("LoRA", 300), ("vocabulary", 200)])
def test_mutated_files(
    kind: str,
    usual: int,
    cases: Cases,
    weights: Weights,
    llama_cpp_dir: Path,
    tmp_path: Path,
    run_child: RunChild,
    request: pytest.FixtureRequest,
) -> None:
    """Files with a few numbers or bytes of the header changed load and compute, or are refused with a typed error."""
    keys, tensors = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", {**keys, **EXTRA}, tensors)
    write_lora(tmp_path / "lora.gguf", weights, 1)
    source = {
        "model": tmp_path / "tiny.gguf",
        "LoRA": tmp_path / "lora.gguf",
        "vocabulary": llama_cpp_dir / "models" / "ggml-vocab-llama-spm.gguf",
    }[kind]
    numbers = cases(usual)
    seen: Counter[str] = Counter()
    deaths = []
    begin = 0
    while begin < len(numbers):
        arguments = kind, source, tmp_path / "mutant.gguf", tmp_path / "tiny.gguf", str(begin), str(len(numbers))
        done = run_child(MUTATE, *arguments, timeout=3000)
        lines = [line.split() for line in done.stdout.splitlines()]
        seen.update(line[1] for line in lines if len(line) > 1)
        if done.returncode == 0:
            break
        begin = int(lines[-1][0]) + 1 if lines else len(numbers)
        if "`!isnan(sumf) && !isinf(sumf)'" in done.stderr:
            seen["no numbers"] += 1  # a build with assertions ends where another computes NaN, which nothing chooses
        else:
            deaths.append((begin - 1, done.returncode, done.stderr[-500:]))
    _figures(request, kind, dict(seen))
    assert not deaths
    assert sum(seen.values()) == len(numbers)
    assert seen["worked"] > len(numbers) // 50
    assert seen["GGUFError"] > len(numbers) // 50
