"""Answer thousands of prompts from a file, show the progress, and go on where a run was stopped or killed.

    python docs/recipes/many_prompts.py PROMPTS.jsonl ANSWERS.jsonl [--model NAME] [--max-tokens N]

Each line of PROMPTS is an object with an "id" and a "prompt", or "messages" for a conversation. Each line of ANSWERS is one
with the same "id", and a "text" or an "error". Only a few prompts are in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offgrid_llama as og


def answered(path: Path) -> set[Any]:
    """Return the ids that have an answer. A last line that a kill has cut short is removed."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    return {json.loads(line)["id"] for line in whole.splitlines()}


def main() -> None:
    """Answer what has no answer yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    known = answered(args.answers)
    running: deque[Any] = deque()  # the ids of the requests that have been submitted

    def todo() -> Iterator[Any]:
        with open(args.prompts, encoding="utf-8") as lines:
            for each in map(json.loads, lines):
                if each["id"] not in known:
                    running.append(each["id"])
                    yield each["prompt"] if "prompt" in each else each["messages"]

    n, begin = 0, time.monotonic()
    with og.Engine(args.model) as engine, open(args.answers, "a", encoding="utf-8") as out:
        options: Any = {"max_tokens": args.max_tokens, "temperature": 0}
        for n, found in enumerate(engine.map(todo(), return_exceptions=True, **options), 1):
            if isinstance(found, Exception):
                told = {"error": str(found)}
            else:
                told = {"text": found.text if isinstance(found, og.Completion) else found.content}
            out.write(json.dumps({"id": running.popleft(), **told}) + "\n")
            if n % 100 == 0:
                out.flush()
                print(f"{n} answers, {n / (time.monotonic() - begin):.1f} a second", file=sys.stderr)
    print(f"{len(known)} were there, {n} are new")


if __name__ == "__main__":
    main()
