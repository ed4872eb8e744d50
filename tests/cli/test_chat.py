"""``offgrid-llama chat``, from a pipe and at a terminal."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.media_files import png, wav
from helpers.projectors import write_meaning
from offgrid_llama.cli.chat import Talk, _allowed

COMMAND = [sys.executable, "-W", "error", "-m", "offgrid_llama.cli", "chat", "-t", "0", "-n", "24"]
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "100", "PYTHONUNBUFFERED": ""}

posix = pytest.mark.skipif(os.name != "posix", reason="terminals are those of POSIX")


def piped(*args: str | Path, lines: str, code: int = 0) -> tuple[str, str]:
    """Talk from a pipe; return what came to stdout and stderr."""
    done = subprocess.run(
        [*COMMAND, *args], input=lines, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_a_conversation_from_a_pipe(smollm2_path: Path, tmp_path: Path) -> None:
    """Each line is a message, the answers go to stdout, and the conversation is kept, saved and gone on with."""
    file = tmp_path / "talk.json"
    lines = f"My name is Ann.\n\nWhat is my name?\n/stats\n/save {file}\n/exit\nnever said\n"
    out, err = piped("-m", smollm2_path, "--system", "Be brief.", lines=lines)
    messages = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert out == f"{messages[2]['content']}\n{messages[4]['content']}\n"
    assert re.search(
        r"\d+ prompt tokens, \d+ of them cached; \d+ tokens; the first after [\d.]+ s, then [\d.]+ tokens/s", err
    )

    lines = f"/load {file}\n/undo\nWhat is my name?\n/retry\n/save {file}\n"
    again, err = piped("-m", smollm2_path, lines=lines)
    assert again == f"{messages[4]['content']}\n" * 2  # greedy: the same answer to the same question
    assert "5 messages" in err
    assert json.loads(file.read_text(encoding="utf-8")) == messages

    lines = f"/load {file}\n/clear\n/save {file}\n/system\n/retry\n/stats\n"
    _, err = piped("-m", smollm2_path, lines=lines)
    assert json.loads(file.read_text(encoding="utf-8")) == messages[:1]
    assert "There is no question yet." in err
    assert "There is no answer yet." in err


def test_pictures_and_sounds(smollm2: og.Model, tmp_path: Path) -> None:
    """/image and /audio go with the next message, are saved with it, and are there when it is loaded or asked again."""
    projector, image, sound, file = (tmp_path / name for name in ("mmproj.gguf", "a.png", "a.wav", "talk.json"))
    write_meaning(projector, smollm2)
    image.write_bytes(base64.b64decode(png(" dog")))
    sound.write_bytes(base64.b64decode(wav(" cat")))
    arguments = ("-m", smollm2.path, "--system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    lines = f"/image {image}\nRepeat this word once:\n/save {file}\n/clear\n/audio {sound}\nRepeat this word once:\n/retry\n"
    out, err = piped(*arguments, "--projector", projector, lines=lines)
    seen, *heard = out.splitlines()
    assert err == ""
    assert "dog" in seen
    assert len(heard) == 2
    assert all("cat" in line for line in heard)
    again, _ = piped(*arguments, "--projector", projector, lines=f"/load {file}\n/retry\n")
    assert again == f"{seen}\n"
    lines = f"/image {image}\n"
    assert "--projector" in piped(*arguments, lines=lines)[1]
    lines = f"/image {sound}\n/image\n/image {tmp_path / 'none.png'}\n"
    _, err = piped(*arguments, "--projector", projector, lines=lines)
    told = zip(("no PNG", "the name of a file", "none.png"), err.splitlines(), strict=True)
    assert all(words in line for words, line in told)


def test_what_goes_wrong_in_a_conversation(smollm2_path: Path, gemma_path: Path, tmp_path: Path) -> None:
    """Wrong commands and files are named, and the conversation goes on; a model without a template is refused."""
    bad = tmp_path / "bad.json"
    bad.write_text("[1]", encoding="utf-8")
    lines = f"/nothing\n/help\n/load {bad}\n/load {tmp_path}/none\n/save\n{'word ' * 300}\nHello.\n"
    out, err = piped("-m", smollm2_path, "--n-ctx", "128", lines=lines)
    assert "There is no command /nothing" in err
    assert "/retry    answer the last question again" in err
    assert "no conversation: messages[0] must be a dict" in err
    assert "No such file" in err
    assert "/save takes the name of a file" in err
    assert "The conversation is too long: the prompt has" in err
    assert len(out.splitlines()) >= 1
    out, err = piped("-m", gemma_path, lines="Hello.\n", code=1)
    assert out == ""
    assert "has no chat template" in err


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, model: Path, home: Path) -> None:
        import pty

        self._master, slave = pty.openpty()
        env = {**ENVIRONMENT, "TERM": "xterm", "XDG_STATE_HOME": str(home), "LINES": "24"}
        self._process = subprocess.Popen(
            [*COMMAND, "-n", "8000", "-m", model], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """Read until the pattern is there, and return what came before it, without the terminal's commands."""
        end = time.monotonic() + seconds
        while True:
            plain = re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-_])", "", self.seen)
            if found := re.search(pattern, plain):
                self.seen = plain[found.end() :]
                return plain[: found.end()]
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                pytest.fail(f"{pattern!r} did not come: {plain[-2000:]!r}")
            try:
                text = os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError:  # its end is closed
                pytest.fail(f"{pattern!r} did not come before the end: {plain[-2000:]!r}")
            if "\x1b[6n" in text:  # where is the cursor?
                os.write(self._master, b"\x1b[1;1R")
            self.seen += text

    def type(self, text: str) -> None:
        """Type keys."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C while the terminal is not in raw mode."""
        os.killpg(self._process.pid, signal.SIGINT)

    def close(self) -> int:
        """Wait for the end, and return the exit code."""
        end = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < end:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    os.read(self._master, 65536)
                except OSError:
                    break
        return self._process.wait(10)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@posix
def test_at_a_terminal(smollm2_path: Path, tmp_path: Path) -> None:
    """Several lines in a message, Markdown, Ctrl-C that stops the answer and not the program, history of what was typed."""
    file = tmp_path / "talk.json"
    terminal = Terminal(smollm2_path, tmp_path)
    try:
        terminal.wait_for(r"/help lists the commands.*\n(.|\n)*>")
        terminal.type("Tell me a long story.\x1b\rAbout a dragon.\r")
        terminal.wait_for(r"(\w+,? ){9}")  # more than was typed
        terminal.interrupt()
        terminal.wait_for(r"\(stopped\)(.|\n)*>")
        terminal.type("\x03")
        terminal.wait_for(r"Ctrl-D or /exit ends")
        terminal.wait_for(">")
        terminal.type(f"/save {file}\r")
        terminal.wait_for(r"\n(.|\n)*>")  # the next prompt, not what is left of this one
        terminal.type("\x04")
        assert terminal.close() == 0
    finally:
        terminal.kill()
    messages = json.loads(file.read_text(encoding="utf-8"))
    assert messages[0]["content"] == "Tell me a long story.\nAbout a dragon."
    assert len(messages) == 2
    history = (tmp_path / "offgrid-llama/chat_history").read_text(encoding="utf-8")
    assert "+Tell me a long story.\n+About a dragon." in history


def test_tools(smollm2: og.Model, capsys: pytest.CaptureFixture[str]) -> None:
    """A call is shown and carried out, its result goes back, and the model answers; an error goes back, too."""
    called: list[str] = []

    def tell(city: str) -> str:
        called.append(city)
        raise LookupError("no station")

    city = {"type": "object", "properties": {"city": {"enum": ["Bern"]}}, "required": ["city"]}
    tools = [og.Tool("weather", "The weather of a city.", city, tell)]
    with og.Engine(smollm2, n_ctx=2048, n_seq_max=1) as engine:
        talk = Talk(engine, None, {"tools": tools, "tool_choice": "required", "temperature": 0, "max_tokens": 60})
        talk._take("How is the weather in Bern?")
        roles = [message["role"] for message in talk._chat.messages]
    out, err = capsys.readouterr()
    assert called
    assert set(called) == {"Bern"}
    assert roles[:3] == ["user", "assistant", "tool"]
    assert "LookupError: no station" in talk._chat.messages[2]["content"]
    assert '(weather {"city": "Bern"})' in err
    assert (roles[-1], out.endswith("\n")) == ("assistant", True)


def test_consent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a tool is not called, and stderr says what allows it."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not _allowed("things", "weather", {"city": "Bern"})
    assert "(the tool weather of things was not called: --allow-tools allows it)" in capsys.readouterr().err


def test_servers_of_tools_that_cannot_be_had(smollm2_path: Path, tmp_path: Path) -> None:
    """A file that is none is a wrong argument."""
    (tmp_path / "mcp.json").write_text("{", encoding="utf-8")
    out, err = piped("-m", smollm2_path, "--mcp", tmp_path / "mcp.json", lines="Hello\n", code=2)
    assert out == ""
    assert "--mcp" in err
