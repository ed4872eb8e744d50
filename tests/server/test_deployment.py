"""The app below another program's path, the server as a service of systemd, and a check of its settings."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from helpers.serving import serving, wait_until
from offgrid_llama.server import ModelSettings, create_app

KEY = "a-key-of-some-length"


def test_the_app_below_a_path_of_another_program(coder: Path) -> None:
    """It is mounted there with its lifespan: it answers, asks for its key where it must, and its workers end with it."""
    own = create_app(models=[ModelSettings("coder", str(coder), preload=True)], api_keys=[KEY])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> Any:
        async with own.router.lifespan_context(own):
            yield

    program = FastAPI(lifespan=lifespan)
    program.mount("/llm", own)
    server = uvicorn.Server(uvicorn.Config(program, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/llm"
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        page = httpx.get(f"{url}/")
        assert "page/page.js" in page.text
        assert httpx.get(f"{url}/page/page.js").status_code == 200
        head = {"Authorization": f"Bearer {KEY}"}
        asked: Any = {"prompt": "ab", "max_tokens": 12, "temperature": 0}
        whole = httpx.post(f"{url}/v1/completions", json=asked, headers=head).json()["choices"][0]["text"]
        streamed = httpx.post(f"{url}/v1/completions", json={**asked, "stream": True}, headers=head).text
        assert streamed.endswith("data: [DONE]\n\n")
        assert whole
        pid = httpx.get(f"{url}/v1/models/coder", headers=head).json()["pid"]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not Path(f"/proc/{pid}").exists()


def test_a_service_of_systemd(coder: Path, tmp_path: Path) -> None:
    """It says when it listens, when its model is ready, that it lives, and when it stops; its workers say nothing."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30)
        said: list[str] = []

        def until(message: str) -> None:
            while message not in said:
                said.append(manager.recv(1000).decode())

        with serving(f"coder={coder}", environment={"NOTIFY_SOCKET": str(address)}) as served:
            until("READY=1")
            until("STATUS=ready")
            until("WATCHDOG=1")
            (pid,) = served.worker_pids()
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
            served.process.send_signal(signal.SIGTERM)
            until("STOPPING=1")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "offgrid_llama.cli", "serve", "--check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_check_of_the_settings(coder: Path, tmp_path: Path) -> None:
    """It tells what would be served and starts nothing, or what is wrong and with what."""
    well = check(f"coder={coder}", "--alias", "mine=coder")
    assert well.returncode == 0
    assert str(coder) in well.stdout
    assert "also mine" in well.stdout
    seeing = check(f"coder={coder}", "--mmproj", str(coder), "--image-max-tokens", "64")
    assert seeing.stdout.count(str(coder)) == 2
    assert "--projector is for one model" in check(f"a={coder}", f"b={coder}", "--projector", str(coder)).stderr
    assert "missing.gguf" in check(f"coder={coder}", "--projector", f"{tmp_path}/missing.gguf").stderr
    assert "mmproj" in check(f"coder={coder}", "--projector", "auto").stderr
    voice = check(f"coder={coder}", "--projector", str(coder), "--voice", f"anna={tmp_path}/missing.wav")
    assert "missing.wav" in voice.stderr
    assert "--voice anna: write NAME=FILE" in check(f"coder={coder}", "--voice", "anna").stderr
    file = tmp_path / "settings.toml"
    for text, says in (
        ("prot = 1", "prot"), ("port = 'x'", "port"), ("host = '0.0.0.0'", "insecure"), ("a = [", "settings.toml"),
        ("[[models]]\nname = '/a b'", "name"),
        (f"[[models]]\nname = 'a'\nmodel = '{tmp_path}/missing.gguf'", "missing.gguf"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\ntemplate = 'missing.jinja'", "missing.jinja"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\nloras = {{ 'missing.gguf' = 1 }}", "missing.gguf"),
        (f"[[models]]\nname = 'a'\nmodel = '{coder}'\nloras = {{ '{coder}' = nan }}", "scale"),
    ):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        wrong = check("--config", str(file))
        assert wrong.returncode != 0
        assert says in wrong.stderr
        assert "Traceback" not in wrong.stderr
