"""Facts that the repository says twice are the same in both places, and nothing is kept that a tool has written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import offgrid_llama as og

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = (
    "dspy", "haystack-ai", "langchain-core", "litellm", "llama-index-core", "llm", "lm-eval", "mcp", "pydantic-ai-slim",
)  # fmt: skip
"""Packages that docs/integrations needs, untyped for mypy."""
REQUIREMENT = re.compile(r"""(?<!\[)[A-Za-z][A-Za-z0-9-]+>=[0-9.]+(?:; python_version<'3\.11')?""")


def requirements(path: Path) -> set[str]:
    """Return the requirements that a file names, without those of the build."""
    text = path.read_text(encoding="utf-8")
    return set(REQUIREMENT.findall(re.sub(r"(?s)\[build-system\].*?(?=\n\[)", "", text)))


def test_hooks_use_the_versions_of_the_project() -> None:
    """Each requirement of pyproject.toml is one of a pre-commit hook, and the other way round, but for frameworks."""
    hooks = requirements(ROOT / ".pre-commit-config.yaml")
    others = ("pre-commit", *FRAMEWORKS)
    assert hooks == {each for each in requirements(ROOT / "pyproject.toml") if not each.startswith(others)}


def test_the_version_is_typed_once() -> None:
    """pyproject.toml takes it from the package."""
    assert og.__version__ not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    sources = [
        path for path in (ROOT / "src").rglob("*.py") if f'"{og.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert sources == [ROOT / "src" / "offgrid_llama" / "__init__.py"]


def test_nothing_ignored_is_kept() -> None:
    """No file in git is one that .gitignore names."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_contributing_names_files_that_are_there() -> None:
    """Each path in CONTRIBUTING.md is one of the repository or of the package; NAME stands for a new one."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = {
        path for path in re.findall(r"`([\w./]+/[\w./]*|\w+/\w+\.\w+)`", page) if not re.match("build/|.*NAME", path)
    }
    assert len(paths) > 20
    roots = ROOT, ROOT / "src" / "offgrid_llama"
    assert sorted(path for path in paths if not any((root / path).exists() for root in roots)) == []
