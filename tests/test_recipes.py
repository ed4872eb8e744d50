"""The programs of docs/recipes run as they stand, and do what their pages promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from helpers.serving import wait_until

RECIPES = Path(__file__).resolve().parent.parent / "docs" / "recipes"


def run(name: str, *arguments: str | Path) -> str:
    """Return what a recipe prints."""
    command = [sys.executable, RECIPES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_listed() -> None:
    """The page names each program, and no other."""
    page = (RECIPES.parent / "recipes.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(recipes/(\w+\.py)\)", page)) == {path.name for path in RECIPES.glob("*.py")}


def test_many_prompts(smollm2_path: Path, tmp_path: Path) -> None:
    """Each prompt has one answer, also after a run that was cut off; one that cannot be answered has an error."""
    del smollm2_path
    asked = [{"id": i, "prompt": f"The number {i} and"} for i in range(12)]
    asked += [
        {"id": "chat", "messages": [{"role": "user", "content": "What is 2+2?"}]},
        {"id": "long", "prompt": "a " * 9000},
    ]
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(each) + "\n" for each in asked[:9]), encoding="utf-8")
    assert "0 were there, 9 are new" in run("many_prompts.py", prompts, answers, "--max-tokens", "4")
    before = answers.read_bytes()
    answers.write_bytes(before[:-10])  # killed in the middle of a line
    prompts.write_text("".join(json.dumps(each) + "\n" for each in asked), encoding="utf-8")
    assert "8 were there, 6 are new" in run("many_prompts.py", prompts, answers, "--max-tokens", "4")
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [each["id"] for each in found] == [each["id"] for each in asked]
    assert all(each["text"] for each in found[:-1])
    assert "tokens" in found[-1]["error"]
    assert b"".join(before.splitlines(keepends=True)[:8]) == answers.read_bytes()[: before.rindex(b"\n", 0, -1) + 1]


def test_an_app(smollm2_path: Path) -> None:
    """It answers in pieces; a client that leaves cancels its request, and what cannot be answered is an error."""
    del smollm2_path
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(RECIPES), "--port", "0", "fastapi_app:app"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}) as server:
        assert server.stderr is not None
        try:
            line = next(line for line in server.stderr if "running on" in line)
            url = line.split("running on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=120) as client:
                asked = {"question": "What is 2+2?"}
                assert client.post("/ask", json=asked).text
                for _ in range(20):  # an answer may end before its client leaves
                    with client.stream(
                        "POST", "/ask", json={"question": "Tell a story.", "max_tokens": 1000}
                    ) as response:
                        assert next(response.iter_text())
                    wait_until(lambda: client.get("/load").json()["running"] == 0)
                    if client.get("/load").json()["finished"].get("cancelled"):
                        break
                else:
                    pytest.fail("no answer was cancelled")
                assert client.post("/ask", json={"question": "a " * 9000}).status_code == 413
        finally:
            server.terminate()
            server.communicate(timeout=60)


def test_processes(smollm2_path: Path) -> None:
    """Each process answers with its own engine."""
    del smollm2_path
    assert run("processes.py").splitlines()[0].startswith(" Paris")


@pytest.mark.parametrize("name", ["agent.py"])
def test_an_agent(smollm2_path: Path, name: str) -> None:
    """The model calls, answers, and reports in the shape that was asked for."""
    del smollm2_path
    called, _, reported = run(name).partition("and reports: ")
    assert "the model calls temperature {'city':" in called
    assert re.match(r"Report\(city='.*', degrees=-?\d+\)", reported)
