"""Celery: tasks that a model answers, on one engine for each process of a worker.

    pip install 'offgrid-llama[chat]' celery
    celery --app celery_tasks worker --pool threads --concurrency 8     # in the folder of this file
    python celery_tasks.py                                              # starts such a worker, asks it, and ends it

With threads all tasks of a worker share the steps of one engine, so that eight at once take little longer than one. With
Celery's default pool of processes each process loads the model when its first task comes. Never make an engine at the
module's level: processes that are forked later cannot use it, and say so (ForkError).

Here messages and results lie in a folder, CELERY_FOLDER; take the address of your Redis or RabbitMQ in its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

from celery import Celery, group

import offgrid_llama as og

FOLDER = Path(os.environ.get("CELERY_FOLDER") or Path(tempfile.gettempdir()) / "offgrid-llama-celery")
for name in ("messages", "results"):
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
app = Celery("celery_tasks", broker="filesystem://", backend=f"file://{FOLDER / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "messages"), "data_folder_out": str(FOLDER / "messages"),
    "control_folder": str(FOLDER / "messages"),
}  # fmt: skip
lock = threading.Lock()


@cache
def _engine(pid: int) -> og.Engine:
    del pid
    return og.Engine("smollm2-135m-instruct")


def engine() -> og.Engine:
    """Return this process's engine; the first task makes it."""
    with lock:
        return _engine(os.getpid())


@app.task(bind=True, max_retries=3)  # type: ignore[untyped-decorator]
def answer(self: object, question: str, max_tokens: int = 100) -> str:
    """Return the model's answer. A queue that is full is tried again later; a question that is too long is an error."""
    try:
        reply = engine().chat([{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0)
        return reply.result().content
    except og.QueueFullError as error:
        raise self.retry(exc=error, countdown=1) from error  # type: ignore[attr-defined]


def main() -> None:
    """Start a worker, ask it eight questions at once, and end it."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        "celery_tasks",
        "worker",
        "--pool",
        "threads",
        "--concurrency",
        "8",
    ]
    environment = {**os.environ, "CELERY_FOLDER": str(FOLDER)}
    worker = subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stderr=subprocess.DEVNULL)
    try:
        asked = group(answer.s(f"What is {n}+{n}?", 20) for n in range(8)).apply_async()
        for n, text in enumerate(asked.get(timeout=120)):
            print(f"{n}+{n}: {text}")
    finally:
        worker.terminate()
        worker.wait(60)


if __name__ == "__main__":
    main()
