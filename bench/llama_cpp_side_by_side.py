"""llama-cpp-python and the drop-in beside each other: the calls of `llama_cpp_calls.py`, on the same library.

`python bench/llama_cpp_side_by_side.py` runs each call in both, in a process each, and tells where they differ: in keys, in
types, in texts, in tokens (all calls are greedy or do not show what was drawn), or in numbers by more than `CLOSE`. An error
of llama-cpp-python must be one here, of the same type or of a subclass of it. `EXPECTED` says where ours is another on
purpose.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llama_cpp_calls import CALLS, NAMES
from peers import ROOT, Peers

CLOSE = 0.05
"""By how much logprobs and values of vectors may differ: batches of other shapes are rounded otherwise."""

SPACES = "JSON under a schema has one space behind each comma and colon here, and those that the model writes there"
EXPECTED = {
    "unicode": "llama-cpp-python goes on beyond max_tokens where a character is not whole",
    "chat with a schema": SPACES,
    "a forced tool": SPACES,
    "a forced tool as a stream": SPACES,
    "a forced function": SPACES,
}
"""The calls whose outcome is another here, and why."""


def told(value: Any) -> Any:
    """Return a value for JSON: of numbers of NumPy the number, of bytes their text, of an id the letters before it."""
    if isinstance(value, dict):
        return {str(key): "(an id)" if key in ("id", "created") else told(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ in ("dict_keys", "deque"):
        return [told(each) for each in value]
    if isinstance(value, bytes):
        return {"bytes": value.decode("utf-8", errors="backslashreplace")}
    item = getattr(value, "item", None)
    return value if item is None else item()


def run_calls(folder: Path) -> None:
    """Run the calls with whatever `llama_cpp` is, and print what each gives."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    np: Any = importlib.import_module("numpy")
    importlib.import_module("llama_cpp.llama_speculative")
    model, vectors, vocabulary = (str(folder / name) for name in ("model.gguf", "vectors.gguf", "vocabulary.gguf"))

    def new(path: str = model, **arguments: Any) -> Any:
        return llama_cpp.Llama(path, **{"n_ctx": 512, "verbose": False, **arguments})

    known: dict[str, Any] = {
        "llama_cpp": llama_cpp, "np": np, "new": new, "text": new(), "all": new(logits_all=True), "chat": new(),
        "vector": new(vectors, embedding=True), "words": new(vocabulary, vocab_only=True),
    }  # fmt: skip
    exec(NAMES, known)
    for name, call in CALLS.items():
        try:
            found = {"value": told(eval(call, known))}
        except Exception as error:
            found = {"error": [each.__name__ for each in type(error).__mro__[:-2]], "text": str(error)[:200]}
        print(json.dumps([name, found]), flush=True)


def outcomes(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return what each call gives in a process of its own."""
    line = [sys.executable, *command, __file__, "--run", str(folder)]
    done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, check=False, text=True)
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    if done.returncode:
        sys.exit(f"{' '.join(line)} ended with {done.returncode} after {list(found)[-1:]}")
    return found


def difference(theirs: Any, ours: Any, at: str = "") -> str:
    """Return where two values differ first; empty if they do not."""
    other = f"{at}: {theirs!r} there, {ours!r} here"
    if type(theirs) is not type(ours):
        return other
    if isinstance(theirs, float):
        return "" if abs(theirs - ours) <= CLOSE else other
    if isinstance(theirs, dict):
        if theirs.keys() != ours.keys():
            return f"{at}: the keys {sorted(theirs)} there, {sorted(ours)} here"
        pairs = [(f"{at}.{key}", theirs[key], ours[key]) for key in theirs]
    elif isinstance(theirs, list):
        if len(theirs) != len(ours):
            return f"{at}: {len(theirs)} there, {len(ours)} here"
        pairs = [(f"{at}[{i}]", *both) for i, both in enumerate(zip(theirs, ours, strict=True))]
    else:
        return "" if theirs == ours else other
    return next(filter(None, (difference(a, b, where) for where, a, b in pairs)), "")


def compared(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Return how two outcomes differ; empty if they do not."""
    if "error" in theirs:
        same = "error" in ours and theirs["error"][0] in ours["error"]
        return "" if same else f"{theirs['error'][0]} ({theirs['text']}) there, {ours} here"
    return f"{ours['error'][0]}: {ours['text']} here" if "error" in ours else difference(theirs["value"], ours["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--model", type=Path, help="a small chat model; by default SmolLM2 of the tests")
    parser.add_argument("--vectors", type=Path, help="an embedding model; by default MiniLM of the tests")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_calls(args.run)
        return
    peers = Peers(args.folder.resolve())
    environment = peers.environment()
    models = Path(os.environ.get("OFFGRID_LLAMA_CACHE", Path.home() / ".cache/offgrid-llama"))
    with tempfile.TemporaryDirectory() as folder:
        for name, path in {
            "model": args.model or models / "models/smollm2-135m-instruct.gguf",
            "vectors": args.vectors or models / "tests/all-MiniLM-L6-v2.F16.gguf",
            "vocabulary": ROOT / "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf",
        }.items():
            (Path(folder) / f"{name}.gguf").symlink_to(path.resolve())
        theirs = outcomes([], Path(folder), environment)
        ours = outcomes(["-m", "offgrid_llama.compat.llama_cpp"], Path(folder), environment)
    different = {name: found for name in CALLS if (found := compared(theirs[name], ours[name]))}
    for name, found in different.items():
        print(f"{name}: {found}{f' (expected: {EXPECTED[name]})' if name in EXPECTED else ''}")
    left = different.keys() - EXPECTED.keys()
    alike, meant = len(CALLS) - len(different), len(different) - len(left)
    print(f"{len(CALLS)} calls, {alike} alike, {meant} others on purpose, {len(left)} differ")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
