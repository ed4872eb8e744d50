"""Speech: the same samples as llama.cpp's own program for it makes, of the same commit.

    python bench/peers.py --server && python bench/speech.py [--texts N]

Both have the same tiny random models (tests/helpers/speech.py, qwen_speech.py), seeds and voices. Half of the texts are
spoken like a voice.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import soundfile
from peers import Peers

sys.path.append(str(harness.ROOT / "tests"))

import offgrid_llama as og
from helpers.qwen_speech import write_qwen_speaker
from helpers.speech import SAMPLE_RATE, write_speaker

WRITERS: dict[str, Callable[[Path, Path], None]] = {"Pocket TTS": write_speaker, "Qwen3-TTS": write_qwen_speaker}
WORDS = ("hello", "you", "yes", "now", "who", "what,", "is it?", "so.", "never;", "Oh!")
GREEDY: dict[str, Any] = {"temperature": 0, "top_k": 1}
MAX_SECONDS = {"Pocket TTS": 60, "Qwen3-TTS": 8}
"""A greedy Qwen3-TTS finds no end. llama.cpp's limit is of steps, of which the last one of a sentence makes no sound."""


def theirs(
    peers: Peers, files: tuple[Path, Path], text: str, seed: int, voice: Path | None, seconds: int
) -> np.ndarray[Any, Any]:
    """Return the samples of llama.cpp's program, int16."""
    out = files[0].with_name("out.wav")
    command: list[str | Path] = [
        peers.bin / "llama-tts", "-m", files[0], "-mm", files[1], "-p", text, "-o", out, "--seed", str(seed),
        "-t", "1", "-n", str(int(seconds * 12.5)), "-c", "1024", "--top-k", "1", "--tts-lang", "en",
    ]  # fmt: skip
    if voice is not None:
        command += ["--tts-speaker-file", voice]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(peers.bin)}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return np.asarray(soundfile.read(out, dtype="int16")[0])


def main() -> None:
    """Compare, and print a row for each kind of model; exit with 1 where a sound differs."""
    parser = harness.parser(__doc__, "--peers")
    parser.add_argument("--texts", type=int, default=50, help="texts for each kind of model")
    args = parser.parse_args()
    rng, peers, n_wrong = random.Random(1), Peers(args.peers.resolve()), 0
    with tempfile.TemporaryDirectory() as name:
        voice = Path(name, "voice.wav")
        soundfile.write(voice, np.sin(np.arange(2 * SAMPLE_RATE) / 20) / 3, SAMPLE_RATE, subtype="FLOAT")
        for kind, write in WRITERS.items():
            files = Path(name, "model.gguf"), Path(name, "mmproj.gguf")
            write(*files)
            same = 0
            with (
                og.Model(files[0]) as model,
                og.Projector(model, files[1], n_threads=1) as projector,
                og.Synthesizer(model, projector, n_ctx=1024, n_threads=1) as synthesizer,
            ):
                for seed in range(args.texts):
                    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
                    like = voice if rng.random() < 0.5 else None
                    speech = synthesizer.speak(
                        text,
                        voice=None if like is None else og.Audio(like),
                        seed=seed,
                        max_seconds=MAX_SECONDS[kind],
                        **GREEDY,
                    )
                    ours = (np.clip(speech.samples, -1, 1) * 32767).astype(np.int16)
                    same += np.array_equal(ours, theirs(peers, files, text, seed, like, MAX_SECONDS[kind]))
            n_wrong += args.texts - same
            print(f"{kind}: {same} of {args.texts} texts have the same samples", flush=True)
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
