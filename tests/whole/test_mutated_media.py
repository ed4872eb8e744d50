"""Mutated pictures, sounds and projectors: none ends the process, and every failure has a type of ours.

CI tries some of each. ``pytest tests/whole/test_mutated_media.py --hazard-cases=10000`` tries as many as you like; the cases
of one number are the same in every run.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.media_files import picture_files, sound_files
from helpers.projectors import KINDS, write_random
from helpers.twin import LETTERS

if TYPE_CHECKING:
    from helpers.children import RunChild

MEDIA = r"""
import json, sys, random

sys.path.append(sys.argv[1])
folder, begin, end = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from helpers.mutations import mutated

files = sorted(__import__("pathlib").Path(folder).glob("media-*"))
model = og.Model(folder + "/llama.gguf")
sees = og.Projector(model, folder + "/idefics3.gguf")
hears = og.Projector(model, folder + "/qwen2a.gguf")
for case in range(begin, end):
    rng = random.Random(case)
    file = rng.choice(files)
    print(json.dumps([case, "begun", file.name]), flush=True)
    data = mutated(rng, file.read_bytes())
    try:
        if file.suffix in (".wav", ".flac", ".mp3"):
            rows = hears.embed(og.Audio(data, max_seconds=40))
        else:
            rows = sees.embed(og.Image(data, max_pixels=2**20))
        ended = "taken"
    except og.OffgridLlamaError as error:
        ended = type(error).__name__
    print(json.dumps([case, ended, file.name]), flush=True)
"""

PROJECTORS = r"""
import json, sys, random

sys.path.append(sys.argv[1])
folder, begin, end = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import resource
from helpers.mutations import mutated_header

resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
models = {name: og.Model(folder + f"/{name}.gguf") for name in ("llama", "qwen2vl")}
image = og.Image(open(folder + "/media-0.png", "rb"))
audio = og.Audio(open(folder + "/media-0.wav", "rb"))
for case in range(begin, end):
    rng = random.Random(case)
    kind = rng.choice(["idefics3", "qwen2vl", "qwen2a"])
    print(json.dumps([case, "begun", kind]), flush=True)
    path = folder + f"/mutated-{case}.gguf"
    with open(folder + f"/{kind}.gguf", "rb") as file:
        data = mutated_header(rng, file.read())
    with open(path, "wb") as file:
        file.write(data)
    ended = "taken"
    try:
        with og.Projector(models["qwen2vl" if kind == "qwen2vl" else "llama"], path) as projector:
            projector.embed(image if projector.vision else audio)
    except og.OffgridLlamaError as error:
        ended = type(error).__name__
    import os
    os.unlink(path)
    print(json.dumps([case, ended, kind]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, a projector of each kind, and pictures and sounds of each format."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("llama", "qwen2vl"):
        ARCHITECTURES[name].write(folder / f"{name}.gguf", LETTERS)
    for kind in KINDS:
        write_random(folder / f"{kind}.gguf", kind, N_EMBD)
    for index, (suffix, data) in enumerate([*picture_files(), *sound_files()]):
        (folder / f"media-{index}{suffix}").write_bytes(data)
    return folder


def run_cases(run_child: RunChild, source: str, folder: Path, count: int) -> tuple[Counter[str], list[str]]:
    """Run all cases in children; return how they ended, and which ended their child."""
    ended: Counter[str] = Counter()
    deaths = []
    begin = 0
    while begin < count:
        done = run_child(source, Path(__file__).parents[1], folder, str(begin), str(count), timeout=3000)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        ended.update(how for _, how, _ in lines if how != "begun")
        last = lines[-1] if lines else [begin, "no start", done.stderr[-500:]]
        if last[1] in ("begun", "no start"):
            deaths.append(f"{last[0]} {last[2]}: {done.returncode} {done.stderr[-300:]}")
        begin = last[0] + 1
    return ended, deaths


@pytest.mark.parametrize(("source", "usual"), [(MEDIA, 400), (PROJECTORS, 150)], ids=["media", "projectors"])
def test_mutations(source: str, usual: int, folder: Path, run_child: RunChild, request: pytest.FixtureRequest) -> None:
    """Whatever bytes change, a file is taken or refused with an error of ours."""
    count = request.config.getoption("--hazard-cases") or usual
    ended, deaths = run_cases(run_child, source, folder, count)
    request.node.add_report_section("call", "mutations", f"{dict(ended)}, {len(deaths)} deaths")
    assert deaths == []
    assert sum(ended.values()) == count
    assert ended["taken"] > count // 100
    assert ended["MediaError"] + ended["GGUFError"] + ended["ModelLoadError"] > count // 10
