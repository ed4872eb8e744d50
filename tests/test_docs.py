"""The code in README.md and docs/ runs as it stands, and what it promises is what happens."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import soundfile

import offgrid_llama as og
from helpers.projectors import picture, tone, write_meaning
from helpers.speech import write_speaker

ROOT = Path(__file__).resolve().parent.parent
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "node_modules" not in page.parts]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
SERVER = "http://127.0.0.1:11611"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Return the fenced blocks of a page: language, body, line."""
    text = page.read_text(encoding="utf-8")
    return [(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in _BLOCK.finditer(text)]


BLOCKS = [
    pytest.param(page, body, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    for language, body, line in blocks(page)
    if language == "python"
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_code_runs(
    page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each block of Python in the pages runs by itself, in an empty folder; what asks a server asks one that runs."""
    monkeypatch.chdir(tmp_path)
    if "pocket-tts.gguf" in code:
        _write_speech(tmp_path)
    if "mmproj.gguf" in code:
        _write_media(tmp_path, request.getfixturevalue("smollm2"))
    if SERVER in code:
        code = code.replace(SERVER, request.getfixturevalue("served"))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"{page.name}", "exec", dont_inherit=True), names)
    if "client" in names:  # an example leaves it open; its socket would be an error of whichever test runs later
        names["client"].close()


def _write_media(folder: Path, model: og.Model) -> None:
    """Write the files that the page on pictures and sound names: a projector, a picture and a sound."""
    write_meaning(folder / "mmproj.gguf", model)
    PIL.Image.fromarray(picture(" dog", 48, 48)).save(folder / "dog.png")
    soundfile.write(folder / "bark.wav", tone(" dog", 3), 16000)


def _write_speech(folder: Path) -> None:
    """Write the files that the page on speech names: a model that speaks, its projector and a voice."""
    write_speaker(folder / "pocket-tts.gguf", folder / "mmproj-pocket-tts.gguf")
    soundfile.write(folder / "anna.wav", tone(" dog", 30), 16000)


def test_a_screenful_prints_real_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's first example prints what a model that works would say."""
    code = next(body for language, body, _ in blocks(ROOT / "README.md") if language == "python")
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    first, *_, last = capsys.readouterr().out.split("\n")[:-1]
    assert "Paris" in first
    assert last.endswith(("yes", "no"))


def test_the_readme_has_two_commands_first() -> None:
    """The README's two commands stand before any other code, and each is one line."""
    blocks = re.findall(
        r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [kind for kind, _ in blocks[:2]] == ["bash", "bash"]
    run, test = (body.strip() for _, body in blocks[:2])
    assert "\n" not in run
    assert run.endswith('offgrid-llama run "What is 2+2?"')
    assert "\n" not in test
    assert test.endswith("pytest")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A link from one page to another file of the repository finds it."""
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_reference_is_what_the_code_says() -> None:
    """docs/reference.md has every bound function of llama.h: where it lives, or why nowhere; and is up to date."""
    script = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert text == module.page(), f"run python {script.relative_to(ROOT)}"
    assert len(module.declared()) > 200
    for function in module.declared():
        assert f"| `{function}` |" in text
