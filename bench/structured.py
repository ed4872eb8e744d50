"""Structured output: decoding under a JSON Schema, the table of tokens that it takes, and conversations into tokens.

    python bench/structured.py [--pairs 5] [--threads N] [--model NAME=FILE] [--no-write]

Every sample is a fresh process that loads the model and warms up; all sides run the same libllama.

- decode: tokens a second, greedily, of a list of ten people under a JSON Schema, to those of as many tokens of free text by
  the same engine, and to those of llama-cpp-python's create_chat_completion with the same schema as response_format (which
  makes GBNF of it). Speed is that after the first token; the answer is the same list, valid under the schema. Under the
  schema we look up what to guess, as is the default; the free text is without.
- table: seconds from a model that was just loaded to the table of its tokens, to what llguidance's constructor takes of them
  with the lists at hand.
- prompt: milliseconds of rendering and tokenizing a conversation of 100 messages that was never seen, and of the same with
  the next turn, when it was; and how many of its tokens the next turn begins with.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "offgrid_llama"
N_PEOPLE = 10
PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 12}, "last_name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120}, "profession": {"enum": ["baker", "smith", "teacher"]},
    },
    "required": ["first_name", "last_name", "age", "profession"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMA = {"type": "array", "items": PERSON, "minItems": N_PEOPLE, "maxItems": N_PEOPLE}
ASKED = [{"role": "user", "content": f"Write a JSON list of {N_PEOPLE} people of a small town."}]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
MOST = 700


def check(text: str) -> None:
    """Exit unless a text is what the schema says."""
    people = json.loads(text)
    if len(people) != N_PEOPLE or any(list(each) != PERSON["required"] for each in people):
        sys.exit(f"not what the schema says: {text}")


def decode(file: str, threads: int, constrained: int) -> dict[str, float]:
    """Return the tokens a second of our engine."""
    import offgrid_llama as og
    from offgrid_llama.chat import ChatTemplate

    with og.Engine(file, n_seq_max=1, n_ctx=1024, n_threads=threads) as engine:
        options: dict[str, Any] = {"template": ChatTemplate(TEMPLATE), "temperature": 0, "lookup": bool(constrained)}
        schema = og.Grammar.json_schema(SCHEMA)
        length = len(engine.chat(ASKED, **options, response_format=schema, max_tokens=MOST).result().completion.tokens)
        speeds = []
        for _ in range(3):
            if constrained:
                reply = engine.chat(ASKED, **options, response_format=schema, max_tokens=MOST).result()
                check(reply.content)
            else:
                endless = {token: float("-inf") for token in engine.model.vocab.eog_tokens()}
                free = og.SamplingParams(temperature=0, logit_bias=endless)
                reply = engine.chat(ASKED, **options, sampling=free, max_tokens=length).result()
            n = len(reply.completion.tokens)
            speeds.append((n - 1) / (reply.timings.decode or 1.0))
        return {"speed": statistics.median(speeds), "tokens": n}


def decode_of_llama_cpp_python(file: str, threads: int, _: int = 0) -> dict[str, float]:
    """Return the tokens a second of llama-cpp-python."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    formatter = importlib.import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter
    llama = llama_cpp.Llama(
        file, n_ctx=1024, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )
    llama.chat_handler = formatter(template=TEMPLATE, eos_token="<|im_end|>", bos_token="").to_chat_handler()
    response_format = {"type": "json_object", "schema": SCHEMA}

    def answer() -> tuple[str, float]:
        pieces, times = [], []
        for chunk in llama.create_chat_completion(
            ASKED, response_format=response_format, temperature=0.0, max_tokens=MOST, stream=True
        ):
            if piece := chunk["choices"][0]["delta"].get("content"):
                pieces.append(piece)
                times.append(time.perf_counter())
        return "".join(pieces), (len(pieces) - 1) / (times[-1] - times[0])

    text, speed = answer()
    check(text)
    return {"speed": speed, "tokens": len(llama.tokenize(text.encode(), add_bos=False))}


def table(file: str, _: int, ours: int) -> dict[str, float]:
    """Return how long it takes to make the table of a model's tokens."""
    llguidance: Any = importlib.import_module("llguidance")

    import offgrid_llama as og
    from offgrid_llama.sampling.grammar import guide

    vocab = og.Model(file).vocab
    vocab.eog_tokens()
    if ours:
        begin = time.perf_counter()
        guide._compiler(vocab).table(vocab)
        return {"seconds": time.perf_counter() - begin}
    wrapped = llguidance.TokenizerWrapper(guide._Tokenizer(vocab))
    begin = time.perf_counter()
    llguidance.LLTokenizer(wrapped, n_vocab=vocab.n_tokens, eos_token=sorted(vocab.eog_tokens()))
    return {"seconds": time.perf_counter() - begin}


def prompt(file: str, _: int) -> dict[str, float]:
    """Return how long a conversation of 100 messages takes to become tokens, and what the next turn shares with it."""
    import offgrid_llama as og
    from offgrid_llama.chat import ChatTemplate
    from offgrid_llama.chat.chat_format import ChatFormat

    model = og.Model(file)
    try:
        template = ChatTemplate.of(model)
    except og.ChatTemplateError:
        template = ChatTemplate(TEMPLATE)
    made = ChatFormat(template, model)
    said = "The harbour of the old town lies between two hills, and the boats come back with the tide each morning. "
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i}: {said * (1 + i % 3)}"} for i in range(101)]
    first, later = [], []
    for _ in range(20):
        made.text_tokens.clear()
        begin = time.perf_counter()
        tokens = made.prompt(messages[:99], False, {}).tokens
        first.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        longer = made.prompt(messages, False, {}).tokens
        later.append(time.perf_counter() - begin)
    shared = next((i for i, (a, b) in enumerate(zip(tokens, longer, strict=False)) if a != b), len(tokens))
    times = {"ms": 1000 * statistics.median(first), "ms_later": 1000 * statistics.median(later)}
    return {**times, "tokens": len(tokens), "shared": shared}


CHILDREN: dict[str, Callable[..., Any]] = {
    "decode": decode, "llama-cpp-python": decode_of_llama_cpp_python, "table": table, "prompt": prompt,
}  # fmt: skip


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--model", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args.file, args.threads, *args.arguments)), flush=True)
        os._exit(0)

    peers = Peers(args.peers.resolve())
    peers.check()
    env = peers.environment()

    def sample(file: Path, section: str, *arguments: int) -> Any:
        command = [sys.executable, __file__, "--child", section, "--file", str(file), "--threads", str(args.threads)]
        found = harness.run_json([*command, *map(str, arguments)], env)
        print(f"  {section} {arguments}: {found}", file=sys.stderr)
        return found

    rows: list[list[str]] = []
    verdicts: list[str] = []
    results: dict[str, Any] = {}
    for model, file in harness.resolve(args.model).items():
        sides: dict[str, Callable[[], Any]] = {
            "schema": partial(sample, file, "decode", 1), "free": partial(sample, file, "decode", 0),
            "llama-cpp-python": partial(sample, file, "llama-cpp-python"), "table": partial(sample, file, "table", 1),
            "llguidance": partial(sample, file, "table", 0), "prompt": partial(sample, file, "prompt"),
        }  # fmt: skip
        samples, quiet = harness.in_turn(tuple(sides), args.pairs, lambda side, sides=sides: sides[side]())  # type: ignore[misc]
        speeds = {side: [each["speed"] for each in samples[side]] for side in ("schema", "free", "llama-cpp-python")}
        seconds = {side: [each["seconds"] for each in samples[side]] for side in ("table", "llguidance")}
        figures = [
            ("decode under a schema, to free text", harness.ratios(speeds["schema"], speeds["free"]), 1.0, False),
            ("the same, to llama-cpp-python", harness.ratios(speeds["schema"], speeds["llama-cpp-python"]), 3.0, False),
            ("table of tokens, to llguidance's time", harness.ratios(seconds["table"], seconds["llguidance"]), 1.2, True),
            ("ms for 100 messages", harness.median_range([each["ms"] for each in samples["prompt"]]), 20.0, True),
            ("ms for the next turn", harness.median_range([each["ms_later"] for each in samples["prompt"]]), 20.0, True),
        ]  # fmt: skip
        results[model] = {"samples": samples, "figures": {name: found for name, found, _, _ in figures}, "quiet": quiet}
        for name, found, limit, low in figures:
            held = found["median"] <= limit if low else found["median"] >= limit
            asked = f"at {'most' if low else 'least'} {limit}"
            rows.append([model, name, "{median:.2f} ({min:.2f} to {max:.2f})".format(**found), asked])
            verdicts.append(harness.verdict(f"{model}, {name}: {found['median']:.2f}, {asked} asked", held))
        last = samples["prompt"][-1]
        held = last["shared"] >= last["tokens"] - 8
        text = f"{model}: of {last['tokens']} tokens the prompt of the next turn begins with {last['shared']}"
        verdicts.append(harness.verdict(text, held))
    about = harness.environment() | {"threads": args.threads, "pairs": args.pairs}
    data = {"environment": about, "results": results}
    body = harness.table(["model", "figure", "median (range)", "asked"], rows) + "\n\n## Figures to hold\n\n"
    harness.report("structured", "Structured output", data, body + "\n".join(verdicts), write=not args.no_write)


if __name__ == "__main__":
    main()
