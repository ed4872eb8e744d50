"""Where tests lie: in the folders of the package, in files that can be read in one sitting."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "src" / "offgrid_llama"
MAX_LINES = 600
ABOUT_THE_WHOLE = {"data", "helpers", "whole"}


def test_folders_are_those_of_the_package() -> None:
    """A folder of tests has the name of the folder that it is about; ``capi`` is that of ``_capi``."""
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path()}
    missing = [
        folder
        for folder in folders
        if folder.parts[0] not in ABOUT_THE_WHOLE and not (PACKAGE / str(folder).replace("capi", "_capi")).is_dir()
    ]
    assert missing == []


def test_files_are_short() -> None:
    """No file of tests has more than 600 lines."""
    long = {str(path.relative_to(TESTS)): len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {name: n for name, n in long.items() if n > MAX_LINES} == {}
