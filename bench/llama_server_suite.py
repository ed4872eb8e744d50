"""llama-server's own test suite, run against ``offgrid-llama llama-server`` or against a llama-server.

    python bench/llama_server_suite.py --out ours.json
    python bench/llama_server_suite.py --server build/llama-server/bin/llama-server --out theirs.json
    python bench/llama_server_suite.py --compare theirs.json ours.json

The suite is that of the submodule, ``vendor/llama.cpp/tools/server/tests``; it runs in its own folder, and writes nothing
there. Its models come from the network, so another one, SmolLM2-135M-Instruct by default, takes the place of each: where a
test expects certain words or numbers of tokens of the original model, llama-server fails it, too. The measure is how many of
the tests that llama-server passes with this model the other server passes, too.

Further arguments go to pytest: ``-k NAME``, or ``unit/test_completion.py``. A llama-server is built with:

    cmake -B build/llama-server -S vendor/llama.cpp -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
          -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build build/llama-server --target llama-server
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import socket
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

from offgrid_llama import store

ROOT = Path(__file__).resolve().parent.parent
SUITE = ROOT / "vendor/llama.cpp/tools/server/tests"
MAX_TEST_SECONDS = 180
MAX_REASON_CHARACTERS = 400


class Outcomes:
    """A pytest plugin that writes the outcome of each test to a file, as JSON.

    Args:
        file: is written after each test, so that a run that is cut short leaves what it has found.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.found: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a part of a test: its set-up, the test, or its end."""
        before = self.found.get(report.nodeid, {}).get("outcome")
        if report.when == "call" or (report.outcome != "passed" and before != "failed"):
            reason = "" if report.passed else str(getattr(report.longrepr, "reprcrash", report.longrepr))
            self.found[report.nodeid] = {"outcome": report.outcome, "why": reason[-MAX_REASON_CHARACTERS:]}
        if report.when == "teardown" and self._file is not None:
            self._file.write_text(json.dumps(self.found, indent=1, sort_keys=True), encoding="utf-8")


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def patch(utils: Any, server: str, model: str, encoder: str) -> None:
    """Let the suite's servers be this program, with these models.

    Args:
        utils: the suite's module of helpers.
        server: the program's file.
        model: the file that takes the place of each model.
        encoder: the same for models that compute embeddings.
    """
    begin, start = utils.ServerProcess.__init__, utils.ServerProcess.start

    def init(self: Any) -> None:
        begin(self)
        self.server_port = free_port()

    def start_with_model(self: Any, *args: Any, **kwargs: Any) -> None:
        self.server_path = server
        if self.model_hf_repo or self.model_url:
            self.model_file = encoder if "bert" in (self.model_hf_file or "") else model
            self.model_hf_repo = self.model_hf_file = self.model_url = None
        start(self, *args, **kwargs)

    utils.ServerProcess.__init__ = init
    utils.ServerProcess.start = start_with_model
    utils.ServerPreset.load_all = staticmethod(lambda: None)  # it downloads the models
    utils.download_file = lambda _url, _path=None: model


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the suite. Returns pytest's exit code."""
    model = str(store.resolve(options.model))
    encoder = str(store.resolve(options.encoder)) if options.encoder else model
    out = None if options.out is None else options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        server = str(options.server.resolve()) if options.server else _own_server(Path(folder))
        os.chdir(SUITE)  # its paths are relative to it
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(SUITE))
        sys.modules.setdefault("wget", types.ModuleType("wget"))  # downloads are replaced
        os.environ["LLAMA_CACHE"] = folder
        patch(importlib.import_module("utils"), server, model, encoder)
        paths = [] if any(each.startswith("unit") for each in rest) else ["unit"]
        arguments = ["-p", "no:cacheprovider", "-m", "not slow", "--timeout", str(MAX_TEST_SECONDS), "--tb=short", "-q"]
        return pytest.main([*arguments, *paths, *rest], plugins=[Outcomes(out)])


def _own_server(folder: Path) -> str:
    """Write a program that is ``offgrid-llama llama-server``; return its file."""
    file = folder / "llama-server"
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m offgrid_llama.cli llama-server "$@"\n')
    file.chmod(0o755)
    return str(file)


def compare(theirs: Path, ours: Path) -> int:
    """Print which tests that llama-server passes we pass, too; return how many we do not."""
    reference, found = (json.loads(file.read_text(encoding="utf-8")) for file in (theirs, ours))
    wanted = [name for name, each in reference.items() if each["outcome"] == "passed"]
    missing = [name for name in wanted if found.get(name, {}).get("outcome") != "passed"]
    for name in missing:
        print(f"{name}\n    {found.get(name, {}).get('why', 'was not run')!r}")
    n_more = sum(each["outcome"] == "passed" and name not in wanted for name, each in found.items())
    print(f"{len(wanted) - len(missing)} of the {len(wanted)} tests that llama-server passes pass, and {n_more} others")
    return len(missing)


def main() -> int:
    """Run the suite, or compare two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, help="a llama-server; the default is our own")
    parser.add_argument("--out", type=Path, help="a file for the outcomes, as JSON")
    parser.add_argument("--model", default=store.DEFAULT_MODEL, help="takes the place of each model")
    parser.add_argument("--encoder", help="takes the place of BERT models; the default is the same model")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("THEIRS", "OURS"), help="compare two files of outcomes"
    )
    options, rest = parser.parse_known_args()
    return compare(*options.compare) if options.compare else run(options, rest)


if __name__ == "__main__":
    sys.exit(main())
