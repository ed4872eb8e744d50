"""Fixtures of the tests: the two real models and a tiny one, llama.cpp's own files, and child processes that may die.

The models come from the store, which downloads them on first use. A test that closes a model opens its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import offgrid_llama as og
from offgrid_llama import store

pytest.register_assert_rewrite("helpers")  # before they are imported
from helpers.children import RunChild  # noqa: E402
from helpers.serving import ALIAS, MODEL, Served, serving  # noqa: E402
from helpers.twin import TOKENS, decode, write_tiny_llama  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from helpers.twin import Weights


REAL = {"smollm2", "smollm2_path", "gemma", "gemma_path", "server", "served", "kinds", "sentences"}
"""Fixtures that need a model of the store."""

LONG = {
    "whole", "chat/template/test_template.py", "chat/test_prompt.py", "chat/tools/test_call_reader.py",
    "engine/test_schedules.py", "files/test_gguf.py", "files/test_quantize.py", "model/test_round_trips.py",
    "model/test_tokenize_limits.py", "sampling/test_fast_sampler.py", "server/test_deployment.py", "store/test_pypi.py",
    "test_docs.py", "test_fetch.py",
}  # fmt: skip
"""Files and folders that take more than some seconds. ``pytest --tiny`` leaves them out, unless it is given paths."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let tests that try many cases try more, and slow builds leave the real models out."""
    parser.addoption("--hazard-cases", type=int, help="how many cases each test of test_figures.py tries")
    parser.addoption("--machine-steps", type=int, default=10_000, help="steps of test_machine.py, 10,000 by default")
    parser.addoption(
        "--tiny",
        action="store_true",
        help="leave out tests that need a real model and, without paths, those that take long",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what takes long, for ``--tiny`` without paths."""
    first_run = config.getoption("--tiny") and config.args_source is not pytest.Config.ArgsSource.ARGS
    tests = Path(__file__).parent
    if first_run and collection_path.is_relative_to(tests) and collection_path.relative_to(tests).as_posix() in LONG:
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``--tiny`` asks for."""
    if config.getoption("--tiny"):
        items[:] = [item for item in items if not REAL & _needs(item)]


def _needs(item: pytest.Item) -> set[object]:
    """Return the fixtures of a test, and the names of fixtures among its parameters."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {*getattr(item, "fixturenames", ()), *(each for each in parameters if isinstance(each, str))}


def pytest_configure() -> None:
    """Write no core files, for some children die on purpose; and let children have Ctrl-C, which `cmd &` takes away.

    Hypothesis has no deadlines: on a busy machine any example may take longer than 200 ms.
    """
    settings.register_profile("no deadlines", settings(), deadline=None)
    settings.load_profile("no deadlines")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@pytest.fixture(scope="session")
def llama_cpp_dir() -> Path:
    """The pinned llama.cpp, with its vocabularies in ``models``."""
    return Path(__file__).parents[1] / "vendor" / "llama.cpp"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct: 98 MB, llama architecture, BPE, 49,152 tokens."""
    return store.resolve("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M: 253 MB, sliding-window attention, SPM, 262,144 tokens."""
    return store.resolve("gemma-3-270m")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[og.Model]:
    """SmolLM2, open for the whole session; do not close it."""
    with og.Model(smollm2_path) as model:
        yield model


@pytest.fixture(scope="session")
def gemma(gemma_path: Path) -> Iterator[og.Model]:
    """Gemma 3, open for the whole session; do not close it."""
    with og.Model(gemma_path) as model:
        yield model


@pytest.fixture(scope="session")
def child_command() -> list[str]:
    """How a child is started: Python's own checks on, every warning an error; the source and its arguments follow."""
    return [sys.executable, "-X", "dev", "-W", "error", "-c"]


@pytest.fixture(scope="session")
def run_child(child_command: list[str]) -> RunChild:
    """Run Python source in a process of its own, which may hang or die without harm to the test run."""

    def run(
        source: str, *args: str | os.PathLike[str], timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [*child_command, textwrap.dedent(source), *(os.fspath(argument) for argument in args)]
        # On a failed assertion ggml would start a debugger on the process.
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", **(env or {})}
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, env=environment, check=False
        )

    return run


@pytest.fixture(scope="session")
def server(smollm2_path: Path, gemma_path: Path) -> Iterator[Served]:
    """A server with both real models, the second of which is loaded when it is asked for; do not harm it."""
    del smollm2_path, gemma_path  # they are there
    with serving(MODEL, "gemma-3-270m", "--alias", f"{ALIAS}={MODEL}") as served:
        yield served


@pytest.fixture(scope="session")
def served(server: Served) -> str:
    """The address of the server."""
    return server.url


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of the tiny llama; its file lies beside."""
    return write_tiny_llama(tmp_path_factory.getbasetemp() / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """The tiny llama, open for the whole session; do not close it."""
    with og.Model(tmp_path_factory.getbasetemp() / "tiny.gguf") as model:
        yield model


@pytest.fixture(scope="module")
def context(tiny: og.Model) -> Iterator[og.Context]:
    """A context with logits for each of TOKENS; do not decode in it."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        yield context


@pytest.fixture(scope="module")
def real(smollm2: og.Model) -> Iterator[og.Context]:
    """A context of a real model with logits for one row; do not decode in it."""
    with og.Context(smollm2, n_ctx=256, n_threads=1) as context:
        batch = og.Batch(16)
        batch.add_sequence(smollm2.vocab.tokenize("Once upon a time, there was a"))
        context.decode(batch)
        yield context
