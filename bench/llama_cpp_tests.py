"""llama-cpp-python's own tests, out of its sdist, with llama-cpp-python and with offgrid_llama.compat.llama_cpp.

`python bench/llama_cpp_tests.py` runs each in both and prints where they differ. The models of the hub that the tests ask
for are replaced by such as are here (`llama_cpp_models.py`), so some tests fail with both: those that know what a certain
model writes. Every test that llama-cpp-python passes must pass with ours. It takes the packages scipy and diskcache, and
the models of our own tests in the cache.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from peers import ROOT, Peers, unpack

sys.path += [str(ROOT / "tests"), str(ROOT / "vendor")]

from fetch_llama_cpp import download

RESULT = re.compile(r"^(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)", re.MULTILINE)


def unpack_tests(sdist: Path, folder: Path) -> None:
    """Unpack the tests out of the sdist."""
    with tarfile.open(sdist) as archive:
        members = []
        for member in archive.getmembers():
            member.name = member.name.partition("/")[2]
            if re.match(r"tests/\w+\.py$", member.name):
                members.append(member)
        archive.extractall(folder, members=members)


def write_models(folder: Path) -> None:
    """Put the models that stand for those of the hub into a folder."""
    from helpers import architectures, minilm
    from helpers.twin import LETTERS
    from offgrid_llama import store

    (folder / "smollm2.gguf").symlink_to(store.pull("smollm2-135m-instruct"))
    (folder / "gemma.gguf").symlink_to(store.pull("gemma-3-270m"))
    (folder / "minilm.gguf").symlink_to(minilm.path())
    for name in ("mamba", "falcon-h1"):
        architectures.ARCHITECTURES[name].write(folder / f"{name}.gguf", LETTERS)


def results(command: list[str], tests: Path, models: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return how each test ends."""
    line = [sys.executable, *command, "pytest", "-p", "llama_cpp_models", "-p", "no:cacheprovider", "-v", "--tb=line"]
    done = subprocess.run(
        [*line, "-o", "addopts=", "-o", "filterwarnings=", str(tests)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        check=False, env={**environment, "LLAMA_CPP_TEST_MODELS": str(models)},
    )  # fmt: skip
    print(done.stdout)
    return dict(RESULT.findall(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--sdist", type=Path, help="a local file of the sdist; without it pip brings one")
    args = parser.parse_args()
    peers = Peers(args.folder.resolve())
    with tempfile.TemporaryDirectory() as folder:
        sdist = args.sdist or download(Path(folder))
        unpack_tests(sdist, Path(folder))
        if not peers.llama_cpp_python.exists():
            unpack(peers, sdist)
        models = Path(folder) / "models"
        models.mkdir()
        write_models(models)
        tests, environment = Path(folder) / "tests", peers.environment()
        theirs = results(["-m"], tests, models, environment)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        ours = results(["-m", "offgrid_llama.compat.llama_cpp", "-m"], tests, models, environment)
    worse = [name for name, result in theirs.items() if result == "PASSED" and ours.get(name) != "PASSED"]
    better = [name for name, result in ours.items() if result == "PASSED" and theirs.get(name) != "PASSED"]
    passed = [sum(result == "PASSED" for result in each.values()) for each in (theirs, ours)]
    print(f"of {len(theirs)} tests {passed[0]} pass with llama-cpp-python, {passed[1]} with ours")
    print(f"only there: {', '.join(worse) or 'none'}; only here: {', '.join(better) or 'none'}")
    sys.exit(1 if worse or not theirs else 0)


if __name__ == "__main__":
    main()
