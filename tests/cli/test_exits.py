"""Whatever goes wrong: one line on stderr, and the documented exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from helpers.commands import COMMAND, ENVIRONMENT, MAIN, Cli, posix

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "-m", "missing", "x"], 3, r"the model file .*missing\.gguf does not exist"),
        (["run", "-m", "no-such-model", "x"], 3, r"unknown model 'no-such-model'"),
        (["inspect", "folder"], 3, r"is a folder, not a file"),
        (["inspect", "text"], 4, r"is no GGUF file: it begins with b'I am'"),
        (["inspect", "empty"], 4, r"is no GGUF file"),
        (["run", "-m", "header", "x"], 4, r"is damaged or cut off: its header cannot be read: "),
        (["tokenize", "-m", "cut", "x"], 4, r"is cut off: it has 3,000,000 bytes of 98,362,432"),
        (["run", "x", "--top-p", "2"], 2, r"Invalid value for '--top-p'"),
        (["run", "x", "--n-gpu-layers", "many"], 2, r"--n-gpu-layers is a number or auto, not 'many'"),
        (["run", "x", "--grammar", "bad.gbnf"], 2, r"line 1, column 14"),
        (["run", "x", "--grammar", "missing"], 3, r"missing\.gguf: No such file or directory"),
        (["run", "x", "--n-ctx", "8"], 1, r"n_ctx is 8: there is no room to generate"),
        (["inspect", "smollm2-135m-instruct", "--type-k", "f17"], 2, r"type_k must be one of f32, f16, "),
        (["run"], 2, r"Missing argument 'PROMPT'"),
        (["rum", "x"], 2, r"No such command 'rum'"),
        (["models", "--all"], 2, r"No such option: --all"),
        (["pull", "../x"], 3, r"the model file \.\./x does not exist|unknown model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line(cli: Cli, broken: dict[str, Path], args: list[str], code: int, message: str) -> None:
    """Whatever goes wrong: one line on stderr, nothing on stdout, and the documented exit code."""
    out, err = cli(*(broken.get(arg, arg) for arg in args), code=code)
    assert out == ""
    assert re.fullmatch(rf"offgrid-llama: error: .*(?:{message}).*\n", err)


def test_an_error_as_json(cli: Cli, tmp_path: Path) -> None:
    """With --json a program reads the error, also that of a wrong command line."""
    for args, code, kind in (
        (["inspect", tmp_path / "x", "--json"], 3, "UnknownModelError"),
        (["run", "--json"], 2, None),
    ):
        out, err = cli(*args, code=code)
        assert out == ""
        error = json.loads(err)["error"]
        assert error["exit_code"] == code
        assert error["message"]
        assert kind in (None, error["type"])


def test_text_that_is_no_utf8(cli: Cli) -> None:
    """Bytes that are no text are refused by name and place."""
    _, err = cli("tokenize", "-", stdin=b"abc\xff", code=2)
    assert err == "offgrid-llama: error: stdin is no UTF-8: byte 0xff at 3\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_on_the_way_out() -> None:
    """A result that cannot be written is an error, not a silence."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "models"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False
        )
    assert done.returncode == 5
    assert done.stderr == f"offgrid-llama: error: stdout: {os.strerror(errno.ENOSPC)}\n"


@posix
def test_a_full_disk_on_the_way_in(cli: Cli, tmp_path: Path) -> None:
    """A model that the disk has no room for is refused with what is needed and what is free."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system needs root")
    try:
        out, err = cli("pull", env={"OFFGRID_LLAMA_CACHE": str(tmp_path)}, code=5)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("offgrid-llama: error: no room for smollm2-135m-instruct: about 284 MB are needed in ")


@posix
def test_a_cache_that_is_no_folder(cli: Cli) -> None:
    """A cache folder that cannot be made is named in the error."""
    _, err = cli("pull", env={"OFFGRID_LLAMA_CACHE": "/dev/null/cache"}, code=5)
    assert err.startswith("offgrid-llama: error: the model cache /dev/null/cache cannot take smollm2-135m-instruct")


@posix
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Permission denied is one line, with the file's name."""
    path = tmp_path / "secret.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    command: list[str | Path] = [*COMMAND, "inspect", path]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.stderr == f"offgrid-llama: error: {path}: Permission denied\n"
    assert done.returncode == 3


def test_what_nobody_thought_of(run_child: Any) -> None:
    """A fault of ours is one line as well, and says how to see more."""
    code = "from offgrid_llama import store; store.catalog = lambda: 1 / 0; "
    done = run_child(f"{code}{MAIN}", "models")
    assert (
        done.stderr == "offgrid-llama: error: unexpected ZeroDivisionError: division by zero (--verbose shows where)\n"
    )
    assert done.returncode == 1
    done = run_child(f"{code}{MAIN}", "models", "--verbose")
    assert "Traceback" in done.stderr
    assert "1 / 0" in done.stderr or "lambda" in done.stderr
