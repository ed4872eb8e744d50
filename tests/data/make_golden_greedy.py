# ruff: noqa: RUF001, T201 - prompts in many scripts; a script that prints
"""Make golden_greedy.json: greedy tokens of llama.cpp's own llama-completion, for ten prompts and each model.

    python make_golden_greedy.py --bin BUILD/bin --peer BUILD/llama-cpp-python
        smollm2-135m-instruct=SmolLM2-135M-Instruct.Q4_1.gguf gemma-3-270m=gemma-3-270m-q4_k_m.gguf

`bench/peers.py` builds the tools and unpacks the peer; both are of the pinned commit.

Where each part of a case comes from:
- `prompt_tokens`, `tokens`: the token ids that llama-completion itself wrote into its `--prompt-cache` file. With that
  file it decodes the prompt as two batches, all tokens but the last, then the last, so the test does the same.
  llama-tokenize must agree about the prompt.
- `text`: what llama-completion printed, with the whole prompt in one batch and no cache file; the run with the cache
  file must print the same. Bytes that are no UTF-8 (a character cut by the end) read U+FFFD.
- `margins`, `runners_up`: how far each step's best logit is above the second best, and whose the second is. They come
  from llama-cpp-python on the same libllama, which is fed the tokens above and must agree about every one of them.
- `close_call` in the header: with other CPU kernels a smaller margin may go the other way; make_golden_near_ties.py
  finds out where, and the test allows it there only. The same prompts decoded in one batch and in two, so with other
  kernels for the last token, moved margins by 0.13 (90th percentile), 0.36 (99th) and 0.74 at most.

A case ends at an end-of-generation token, which is kept, or after `n_predict` tokens.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PARAGRAPH = (
    "The lighthouse keeper wrote in his book every evening, whatever the weather. He noted the wind, the height of the "
    "waves, the ships that had passed and the birds that had rested on the rail. When the lamp was made electric in "
    "1931 he was told that the book was no longer needed, and he went on with it. Thirty years later a young woman "
    "from the university climbed the 212 steps and asked to read it, for nobody else on that coast had counted the "
    "birds. She stayed for a week, copied the pages by hand, and then she said to him:"
)
# Picked among some fifty for few close calls with either model.
PROMPTS = {
    "english": "The capital of France is",
    "code": "def fibonacci(n):\n    ",
    "numbers": "2, 4, 6, 8, 10, 12, 14, 16, 18, 20,",
    "chinese": "你好，世界！你好，世界！你好，世界！你好，",
    "emoji": "🍎 = apple, 🍌 = banana, 🍒 = cherry, 🍎 = apple, 🍌 =",
    "scripts": "français: « déjà vu », Ελλάδα, Привет, नमस्ते, 안녕하세요\nfrançais: « déjà vu », Ελλάδα,",
    "spaces": "   three spaces first,\ttab\n\n\n  two more, and then the list:\n  -",
    "json": '[{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name":',
    "chat": "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "paragraph": PARAGRAPH + "\n\n" + PARAGRAPH[:120],
}
N_PREDICT, N_CTX, N_BATCH, N_UBATCH, N_THREADS = 48, 512, 512, 512, 2
CLOSE_CALL = 0.5
COMPLETION_FLAGS = (
    f"-no-cnv --no-escape -n {N_PREDICT} --temp 0 --top-k 1 --seed 1 -t {N_THREADS} -tb {N_THREADS} "
    f"-c {N_CTX} -b {N_BATCH} -ub {N_UBATCH} -fa on -ctk f16 -ctv f16 -fit off "
    "--no-warmup --no-perf --simple-io --no-display-prompt"
).split()


def tool(*command: str | os.PathLike[str]) -> bytes:
    """Return the standard output of a command that must succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def complete(bin_dir: Path, model: Path, prompt: str) -> tuple[list[int], str]:
    """Return all token ids, prompt included, and the generated text, as llama-completion gives them."""
    run: list[str | Path] = [bin_dir / "llama-completion", "-m", model, "-p", prompt, *COMPLETION_FLAGS, "-lv", "1"]
    plain = tool(*run)
    text = plain.removesuffix(b"\n\n").removesuffix(b" [end of text]\n")
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder, "session")
        cached = tool(*run, "--prompt-cache", session, "--prompt-cache-all")
        head = session.read_bytes()
    if not cached.startswith(text):
        sys.exit(f"the prompt in one batch and in two gives different text:\n{plain!r}\n{cached!r}")
    _magic, _version, n_tokens = struct.unpack_from("<III", head)
    return list(struct.unpack_from(f"<{n_tokens}i", head, 12)), text.decode("utf-8", "replace")


def tokenize(bin_dir: Path, model: Path, prompt: str) -> list[int]:
    """Return the prompt's token ids as llama-tokenize gives them."""
    return list(json.loads(tool(bin_dir / "llama-tokenize", "-m", model, "--ids", "--no-escape", "-p", prompt)))


class Peer:
    """llama-cpp-python's raw functions, to read logits along tokens that are given."""

    def __init__(self, peer_dir: Path, bin_dir: Path, model: Path) -> None:
        os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["MTMD_CPP_LIB"] = str(bin_dir)
        sys.path.insert(0, str(peer_dir))
        self.raw: Any = importlib.import_module("llama_cpp")
        self.llama: Any = self.raw.Llama(
            str(model), n_ctx=N_CTX, n_batch=N_BATCH, n_ubatch=N_UBATCH, n_threads=N_THREADS, n_threads_batch=N_THREADS,
            flash_attn=True, swa_full=False, verbose=False,
        )  # fmt: skip

    def margins(self, prompt: list[int], tokens: list[int]) -> tuple[list[float], list[int]]:
        """Return for each of `tokens` its logit less the second best, and the second best's id."""
        import numpy as np

        self.llama.reset()
        margins, runners_up = [], []
        self.llama.eval(prompt[:-1])
        for before, token in zip([prompt[-1], *tokens], tokens, strict=False):
            self.llama.eval([before])
            pointer = self.raw.llama_get_logits_ith(self.llama.ctx, -1)
            row = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.llama.n_vocab(),))
            second, best = (int(i) for i in np.argsort(row)[-2:])
            if best != token:
                sys.exit(f"llama-completion chose {token}, the logits of the same libllama say {best}")
            margins.append(round(float(row[best] - row[second]), 4))
            runners_up.append(second)
        return margins, runners_up


def cpu(bin_dir: Path, model: Path) -> str:
    """Return ggml's own line about the CPU features that it uses."""
    log = subprocess.run(
        [bin_dir / "llama-completion", "-m", model, "-no-cnv", "-p", "a", "-n", "1", "-c", "64", "-lv", "4"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    found = re.search(rb"system_info:.*\| (CPU :.*)", log.stdout + log.stderr)
    return f"{os.uname().machine}, {found.group(1).decode().strip(' |') if found else 'features unknown'}"


def main() -> None:
    """Run the tools and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="folder of the tools and libllama.so")
    parser.add_argument("--peer", type=Path, required=True, help="folder that holds the llama_cpp package")
    parser.add_argument("--commit", default="0c1e57098bba43ac29e6e3b677cdceebdd22334f", help="of llama.cpp")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("golden_greedy.json"))
    parser.add_argument("models", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()

    models, system = {}, ""
    for pair in args.models:
        name, file = pair.split("=", 1)
        model = Path(file)
        system = system or cpu(args.bin, model)
        peer, cases = Peer(args.peer, args.bin, model), []
        for label, prompt in PROMPTS.items():
            prompt_tokens = tokenize(args.bin, model, prompt)
            everything, text = complete(args.bin, model, prompt)
            tokens = everything[len(prompt_tokens) :]
            if everything[: len(prompt_tokens)] != prompt_tokens:
                sys.exit(f"llama-tokenize and llama-completion differ about {label!r}")
            margins, runners_up = peer.margins(prompt_tokens, tokens)
            print(f"{name:24}{label:12}{len(prompt_tokens):4} +{len(tokens):3} tokens, margins from {min(margins):.3f}")
            cases.append({
                "label": label, "prompt": prompt, "prompt_tokens": prompt_tokens, "tokens": tokens, "text": text,
                "margins": margins, "runners_up": runners_up,
            })  # fmt: skip
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        models[name] = {"size": model.stat().st_size, "sha256": digest, "cases": cases}

    header = {
        "made_by": "tests/data/make_golden_greedy.py",
        "made_on": datetime.date.today().isoformat(),
        "command": " ".join(["llama-completion -m FILE -p PROMPT", *COMPLETION_FLAGS]),
        "command_for_ids": "the same with --prompt-cache FILE --prompt-cache-all",
        "llama_cpp_commit": args.commit,
        "cpu": system,
        "flash_attn": "on", "type_k": "f16", "type_v": "f16", "n_ctx": N_CTX, "n_batch": N_BATCH, "n_ubatch": N_UBATCH,
        "n_threads": N_THREADS, "n_predict": N_PREDICT, "add_special": True, "parse_special": True,
        "prompt_batches": "all tokens but the last, then the last",
        "close_call": CLOSE_CALL,
    }  # fmt: skip
    text = json.dumps({"header": header, "models": models}, ensure_ascii=False, indent=1)
    text = re.sub(r"\[[\d\s,.\-]+\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
