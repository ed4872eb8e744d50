"""The programs of docs/recipes run as they stand, and do what their pages promise."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import offgrid_llama as og
from helpers import minilm
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
    programs = {path.name for path in RECIPES.iterdir() if path.suffix in (".ipynb", ".py")}
    assert set(re.findall(r"\(recipes/(\w+\.\w+)\)", page)) == programs


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


def test_retrieval(smollm2_path: Path) -> None:
    """The nearest paragraphs are found, and only these can be cited."""
    del smollm2_path
    found, *lines = run("retrieval.py", minilm.path(), "On which day of the week is the museum closed?").splitlines()
    names = found.removeprefix("found: ").split(", ")
    assert (names[0], len(names)) == ("opening", 3)
    cited = [re.match(r"  \[(\w+)\] ", line) for line in lines if line.startswith("  [")]
    assert cited
    assert {match[1] for match in cited if match} <= set(names)


def test_an_editor(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of keystrokes without a pause only the last one is answered, the file is computed once, and nothing runs on."""
    monkeypatch.syspath_prepend(str(RECIPES))
    editor = importlib.import_module("editor")
    marks = {f"tokenizer.ggml.fim_{name}_token_id": 3 + i for i, name in enumerate(("rep", "sep", "pre", "suf", "mid"))}

    async def session(engine: og.Engine) -> list[str | None]:
        completer = editor.Completer(engine, {"shapes.py": "def area(width, height):\n    return width * height\n"})
        typed = [completer.typed("print(shapes.area"[:n], ")\n") for n in range(9, 18)]
        answers: list[str | None] = await asyncio.gather(*typed)
        running = asyncio.create_task(completer.typed("print(shapes", ")\n"))
        while not engine.stats().prompt_tokens_cached and not running.done():
            await asyncio.sleep(0)  # until it has begun, with what is computed of the file
        answers.append(await completer.typed("print(shapes.a", ")\n"))
        await running  # None, or what it had written before the keystroke
        return answers

    with og.Model(smollm2_path, kv_overrides=marks) as model, og.Engine(model, n_ctx=2048, n_seq_max=2) as engine:
        answers = asyncio.run(session(engine))
        stats = engine.stats()
    assert answers[:8] == [None] * 8
    assert None not in answers[8:]
    assert stats.prompt_tokens_cached > 0
    assert (stats.n_running, stats.n_waiting) == (0, 0)
