"""Mutated pictures, sounds and projectors: none ends the process, and every failure has a type of ours.

CI tries some of each. ``pytest tests/whole/test_mutated_media.py --hazard-cases=10000`` tries as many as you like; the cases
of one number are the same in every run.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.architectures import ARCHITECTURES, N_EMBD
from helpers.media_files import picture_files, sound_files
from helpers.projectors import KINDS, MARKED, write_random

if TYPE_CHECKING:
    from helpers.children import RunChild

MEDIA = r"""
import json, os, random, resource, sys
from contextlib import ExitStack
from pathlib import Path
import numpy as np
import offgrid_llama as og

sys.path.append(sys.argv[1])
folder, begin, end = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from helpers.mutations import mutated

files = sorted(Path(folder).glob("media-*"))
stack = ExitStack()
model = stack.enter_context(og.Model(folder + "/llama.gguf"))
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
        ended = "taken" if np.isfinite(rows).all() else "not finite"
    except og.OffgridLlamaError as error:
        ended = type(error).__name__
    print(json.dumps([case, ended, file.name]), flush=True)
stack.close()
"""

PROJECTORS = r"""
import json, os, random, resource, sys
from contextlib import ExitStack
from pathlib import Path
import offgrid_llama as og

sys.path.append(sys.argv[1])
folder, begin, end = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from helpers.mutations import mutated_header

resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
stack = ExitStack()
models = {name: stack.enter_context(og.Model(folder + f"/{name}.gguf")) for name in ("llama", "qwen2vl")}
image, audio = og.Image(folder + "/media-0.png"), og.Audio(folder + "/media-0.wav")
for case in range(begin, end):
    rng = random.Random(case)
    kind = rng.choice(["idefics3", "qwen2vl_merger", "qwen2a"])
    print(json.dumps([case, "begun", kind]), flush=True)
    path = folder + f"/mutated-{case}.gguf"
    with open(folder + f"/{kind}.gguf", "rb") as file:
        data = mutated_header(rng, file.read())
    with open(path, "wb") as file:
        file.write(data)
    ended = "taken"
    try:
        with og.Projector(models["qwen2vl" if kind == "qwen2vl_merger" else "llama"], path) as projector:
            projector.embed(image if projector.vision else audio)
    except og.OffgridLlamaError as error:
        ended = type(error).__name__
    os.unlink(path)
    print(json.dumps([case, ended, kind]), flush=True)
stack.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, a projector of each kind, and pictures and sounds of each format."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("llama", "qwen2vl"):
        ARCHITECTURES[name].write(folder / f"{name}.gguf", MARKED)
    for kind in KINDS:
        write_random(folder / f"{kind}.gguf", kind, N_EMBD)
    for files in (picture_files(), sound_files()):
        for index, (suffix, data) in enumerate(files):
            (folder / f"media-{index}{suffix}").write_bytes(data)
    return folder


def run_cases(run_child: RunChild, source: str, folder: Path, count: int) -> tuple[Counter[str], list[str]]:
    """Run all cases in children; return how they ended, and which ended their child."""
    ended: Counter[str] = Counter()
    deaths = []
    begin = 0
    while begin < count:
        done = run_child(source, Path(__file__).parents[1], folder, str(begin), str(count), timeout=3000)
        lines: list[Any] = [json.loads(line) for line in done.stdout.splitlines()]
        ended.update(how for _, how, _ in lines if how != "begun")
        assert lines, done.stderr[-800:]
        case, how, what = lines[-1]
        if how == "begun":
            deaths.append(f"{case} {what}: {done.returncode} {done.stderr[-300:]}")
        begin = case + 1
    return ended, deaths


@pytest.mark.parametrize(("source", "usual"), [(MEDIA, 400), (PROJECTORS, 150)], ids=["media", "projectors"])
def test_mutations(source: str, usual: int, folder: Path, run_child: RunChild, request: pytest.FixtureRequest) -> None:
    """Whatever bytes change, a file is taken or refused with an error of ours."""
    count = request.config.getoption("--hazard-cases") or usual
    ended, deaths = run_cases(run_child, source, folder, count)
    request.node.add_report_section("call", "mutations", f"{dict(ended)}, {len(deaths)} deaths")
    assert deaths == []
    assert sum(ended.values()) == count
    assert ended["not finite"] == 0
    assert ended["taken"] > count // 100
    assert ended["MediaError"] + ended["GGUFError"] + ended["ModelLoadError"] > count // 10
