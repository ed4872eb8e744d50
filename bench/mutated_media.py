"""Mutated pictures, sounds and projectors through the server: its process lives, and every failure is a JSON error.

    python bench/mutated_media.py [--media N] [--projectors N] [--seed N]

Three tiny models have a projector each: one sees tiles, one sees with M-RoPE, one hears. The pictures and sounds have
changed, cut or inserted bytes, and come in conversations. Each projector with a changed header is that of a model of its
own, which is loaded for one conversation, and unloaded.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import httpx

sys.path.append(str(harness.ROOT / "tests"))

from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.media_files import picture_files, sound_files
from helpers.mutations import mutated, mutated_header
from helpers.projectors import MARKED, write_random
from helpers.serving import Served, serving

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
BASES = {"idefics3": "llama", "qwen2vl_merger": "qwen2vl", "qwen2a": "llama"}
"""The models by the projectors that they have."""
N_CLIENTS = 4
ALLOWED = (200, 400, 503)
"""Statuses that an answer may have: 503 is that of a model that does not load, or whose worker has died."""


def settings(folder: Path, projectors: Sequence[tuple[str, Path]]) -> str:
    """Return the path of a file of settings: a model for each projector, by their names."""
    lines = []
    for name, path in projectors:
        base = BASES[name.partition("-")[0]]
        lines.append(
            f'[[models]]\nname = "{name}"\nmodel = "{folder / base}.gguf"\nprojector = "{path}"\nn_ctx = 1024\n'
            f"n_parallel = 1\nn_threads = 1\ntemplate = {json.dumps(TEMPLATE)}\n"
        )
    config = folder / f"settings-{len(projectors)}.toml"
    config.write_text("".join(lines))
    return str(config)


def asked(model: str, suffix: str, data: bytes) -> dict[str, Any]:
    """Return a conversation with a file."""
    encoded = base64.b64encode(data).decode()
    if suffix in (".wav", ".flac", ".mp3"):
        part: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": encoded, "format": suffix[1:]}}
    else:
        part = {"type": "image_url", "image_url": {"url": f"data:application/octet-stream;base64,{encoded}"}}
    return {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": [part]}]}


async def told(client: httpx.AsyncClient, path: str, body: Any = None) -> str:
    """Return how a request ended: its status, and the code of its error."""
    answer = await client.post(path, json=body)
    if answer.status_code == 200:
        return "200"
    error = answer.json()["error"]
    if answer.status_code not in ALLOWED:
        return f"WRONG {answer.status_code} {error['message']}"
    return f"{answer.status_code} {error['code']}"


async def tried(served: Served, n: int, case: Callable[[httpx.AsyncClient, int], Awaitable[str]]) -> Counter[str]:
    """Try all cases, some at a time."""
    found: Counter[str] = Counter()
    todo = iter(range(n))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=served.url, timeout=120) as made:
            for number in todo:
                try:
                    found[await case(made, number)] += 1
                except httpx.HTTPError as error:
                    found[f"WRONG {type(error).__name__} in case {number}"] += 1
                if found.total() % 500 == 0:
                    print(f"  {found.total()} {dict(found)}", file=sys.stderr, flush=True)

    await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return found


def media(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Try pictures and sounds."""
    files = [*picture_files(), *sound_files()]
    known = [(kind, folder / f"{kind}.gguf") for kind in BASES]

    async def case(client: httpx.AsyncClient, number: int) -> str:
        rng = random.Random(f"{seed} {number}")
        suffix, data = rng.choice(files)
        hears = suffix in (".wav", ".flac", ".mp3")
        model = "qwen2a" if hears else rng.choice(["idefics3", "qwen2vl_merger"])
        return await told(client, "/v1/chat/completions", asked(model, suffix, mutated(rng, data)))

    with serving("--config", settings(folder, known), ready=False) as served:
        return _report(served, asyncio.run(tried(served, n, case)))


def projectors(folder: Path, n: int, seed: int) -> dict[str, Any]:
    """Try projectors, each on a model of its own."""
    known = []
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        kind = rng.choice(list(BASES))
        path = folder / f"mutated-{number}.gguf"
        path.write_bytes(mutated_header(rng, (folder / f"{kind}.gguf").read_bytes()))
        known.append((f"{kind}-{number}", path))
    picture, sound = picture_files()[0], sound_files()[0]

    async def case(client: httpx.AsyncClient, number: int) -> str:
        name = known[number][0]
        found = await told(
            client, "/v1/chat/completions", asked(name, *(sound if name.startswith("qwen2a") else picture))
        )
        await client.post(f"/models/unload/{name}")
        return found

    with serving("--config", settings(folder, known), ready=False) as served:
        return _report(served, asyncio.run(tried(served, n, case)))


def _report(served: Served, found: Counter[str]) -> dict[str, Any]:
    for line in served.log:
        if " E " in line or "Error" in line:
            print(line, file=sys.stderr)
    lives = served.process.poll() is None and httpx.get(f"{served.url}/health", timeout=60).status_code in (200, 503)
    return {"the HTTP process lives": lives, "answers": dict(found.most_common())}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--media", type=int, default=10_000)
    parser.add_argument("--projectors", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for base in set(BASES.values()):
            ARCHITECTURES[base].write(folder / f"{base}.gguf", MARKED)
        for kind in BASES:
            write_random(folder / f"{kind}.gguf", kind, N_EMBD)
        for what, run, n in (("media", media, options.media), ("projectors", projectors, options.projectors)):
            begin = time.monotonic()
            found = run(folder, n, options.seed)
            print(json.dumps({what: n, "seconds": round(time.monotonic() - begin), **found}, indent=1))
            well = found["the HTTP process lives"] and not any(each.startswith("WRONG") for each in found["answers"])
            print(harness.verdict(f"{n} mutated {what}: no death of the HTTP process, every failure typed", well))


if __name__ == "__main__":
    main()
