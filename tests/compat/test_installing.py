"""``import llama_cpp`` that gives our package, in processes that ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from offgrid_llama.compat import installing
from offgrid_llama.compat.llama_cpp.__main__ import main

LOOK = """
import sys
import llama_cpp, llama_cpp.llama_grammar
from llama_cpp import Llama, llama_cpp as raw
from llama_cpp.llama_types import ChatCompletionMessage
print(llama_cpp.__name__, raw.__name__, Llama.__module__, llama_cpp.llama_grammar is sys.modules["llama_cpp.llama_grammar"])
print(llama_cpp.__spec__.name, sys.argv[1:])
try:
    import llama_cpp.nobody
except ModuleNotFoundError as error:
    print(error)
"""
SEEN = """offgrid_llama.compat.llama_cpp offgrid_llama.compat.llama_cpp.llama_cpp offgrid_llama.compat.llama_cpp.llama True
offgrid_llama.compat.llama_cpp ['a', '-b']
No module named 'llama_cpp.nobody' in offgrid_llama.compat.llama_cpp
"""


def run(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout + "".join(done.stderr.splitlines()[-1:])


def test_a_script_and_a_module(tmp_path: Path) -> None:
    """Both see our package, with their arguments; the module is found in the working folder, as with ``python -m``."""
    (tmp_path / "look.py").write_text(LOOK, encoding="utf-8")
    ours = ("-m", installing.OURS)
    assert run(*ours, "look.py", "a", "-b", folder=tmp_path) == SEEN
    assert run(*ours, "-m", "look", "a", "-b", folder=tmp_path) == SEEN


def test_install(tmp_path: Path) -> None:
    """A call is enough, and a second one does nothing; without one there is no such module, or the real one."""
    twice = "from offgrid_llama.compat import llama_cpp; llama_cpp.install(); llama_cpp.install()\n"
    (tmp_path / "look.py").write_text(twice + LOOK, encoding="utf-8")
    assert run("look.py", "a", "-b", folder=tmp_path) == SEEN
    (tmp_path / "llama_cpp.py").write_text("", encoding="utf-8")
    real = "import offgrid_llama.compat.llama_cpp as ours, llama_cpp; print(llama_cpp.__file__)"
    assert run("-c", real, folder=tmp_path) == f"{tmp_path / 'llama_cpp.py'}\n"
    late = run("-c", f"{real}; ours.install()", folder=tmp_path)
    assert late.splitlines()[1] == (
        f"ImportError: llama_cpp is imported already, from {tmp_path / 'llama_cpp.py'}: call install() before that"
    )


def test_a_pth_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the file in site-packages and the variable, each process has it; without the variable none has."""
    ours = sysconfig.get_path("purelib")
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    tell = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.run(tell, capture_output=True, text=True, check=True).stdout.strip())
    (purelib / "a.pth").write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")  # our own, too
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(purelib))
    main(["--install"])
    assert capsys.readouterr().out.startswith(f"wrote {purelib / installing.PTH}; set {installing.VARIABLE}=1")
    line = [
        python,
        "-c",
        "import sys; print('offgrid_llama' in sys.modules); import llama_cpp; print(llama_cpp.__name__)",
    ]

    def told(**environment: str) -> tuple[str, str]:
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        return done.stdout, done.stderr

    out, error = told()
    assert (out, "No module named 'llama_cpp'" in error) == ("False\n", True)
    assert told(**{installing.VARIABLE: "1"}) == (f"True\n{installing.OURS}\n", "")
    main(["--uninstall"])
    assert not (purelib / installing.PTH).exists()


def test_no_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "SCRIPT is missing" in capsys.readouterr().err
