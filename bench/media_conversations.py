"""Conversations with pictures and sound: the same answers as llama-server of the same commit gives, cold and cached.

    python bench/peers.py --server && python bench/media_conversations.py [--conversations N]

Both have the same model and the projector with meaning (tests/helpers/projectors.py), and answer greedily, each turn of each
conversation twice. The texts must be the same, and the tokens of the prompts.
"""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import httpx
import numpy as np
import PIL.Image
from peers import Peers

sys.path.append(str(harness.ROOT / "tests"))

import offgrid_llama as og
from helpers.media_files import wav
from helpers.projectors import COLOURS, TONES, write_meaning
from helpers.serving import MODEL, serving

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTIONS = (
    "Repeat this word once:",
    "What is this?",
    "Tell me about it.",
    "And this one?",
    "Write one sentence about:",
)
MAX_TOKENS = 24


def picture(rng: random.Random) -> dict[str, Any]:
    """Return a part with a picture: of one colour, or of two."""
    height, width = 4 * rng.randint(1, 6), 4 * rng.randint(1, 6)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:] = rng.choice(list(COLOURS.values()))
    if rng.random() < 0.5:
        pixels[: height // 2] = rng.choice(list(COLOURS.values()))
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def sound(rng: random.Random) -> dict[str, Any]:
    """Return a part with a sound."""
    return {"type": "input_audio", "input_audio": {"data": wav(rng.choice(list(TONES))), "format": "wav"}}


def turns(rng: random.Random) -> list[Any]:
    """Return the contents of a user's messages."""
    found: list[Any] = []
    for _ in range(rng.randint(1, 3)):
        media = [rng.choice((picture, picture, sound))(rng) for _ in range(rng.choice((0, 1, 1, 2)))]
        text = {"type": "text", "text": rng.choice(QUESTIONS)}
        found.append([text, *media] if rng.random() < 0.5 else [*media, text])
    return found


def answers(url: str, conversation: list[Any], said: list[str] | None) -> list[tuple[str, int]]:
    """Return the answer to each turn, and the tokens of its prompt. The history has the answers in ``said``, if given."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    found = []
    for index, content in enumerate(conversation):
        messages.append({"role": "user", "content": content})
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=240)
        answer.raise_for_status()
        told = answer.json()
        text = told["choices"][0]["message"]["content"]
        found.append((text, told["usage"]["prompt_tokens"]))
        messages.append({"role": "assistant", "content": text if said is None else said[index]})
    return found


@contextmanager
def llama_server(peers: Peers, model: Path, projector: Path) -> Iterator[str]:
    """Run llama-server, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = ["--image-min-tokens", "1", "--image-max-tokens", "64"]
    process = subprocess.Popen(
        [
            peers.bin / "llama-server", "-m", model, "--mmproj", projector, *limits, "--port", str(port), "-c", "8192",
            "--jinja",
        ],
        env=peers.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = harness.parser(__doc__, "--peers")
    parser.add_argument("--conversations", type=int, default=20)
    options = parser.parse_args()
    rng = random.Random(1)
    conversations = [turns(rng) for _ in range(options.conversations)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        projector, config = folder / "mmproj.gguf", folder / "settings.toml"
        with og.Model(MODEL) as model:
            write_meaning(projector, model)
            path = model.path
        config.write_text(
            f'[[models]]\nname = "{MODEL}"\nprojector = "{projector}"\nimage_min_tokens = 1\nimage_max_tokens = 64\n'
        )
        with llama_server(Peers(options.peers), path, projector) as url:
            theirs = [answers(url, each, None) for each in conversations]
        with serving("--config", str(config), ready=False) as served:
            ours = {
                kind: [
                    answers(served.url, each, [text for text, _ in told])
                    for each, told in zip(conversations, theirs, strict=True)
                ]
                for kind in ("cold", "cached")
            }
    n_turns = sum(map(len, conversations))
    for kind, told in ours.items():
        both = zip(told, theirs, strict=True)
        pairs = [pair for mine, peer in both for pair in zip(mine, peer, strict=True)]
        for one, other in pairs:
            if one != other:
                print(json.dumps({kind: one, "llama-server": other}))
        n_same = sum(one == other for one, other in pairs)
        text = f"{kind}: {n_same} of {n_turns} answers of {len(conversations)} conversations are those of llama-server"
        print(harness.verdict(text, n_same == n_turns))


if __name__ == "__main__":
    main()
