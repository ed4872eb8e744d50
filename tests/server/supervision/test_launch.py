"""Workers that are started ahead."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from offgrid_llama.server.supervision.launch import Launcher


def test_a_worker_that_is_started_before_its_model_is_known(coder: Path) -> None:
    """The next launch takes it; without a model it ends with the process that started it.

    It is in a process group of its own, away from Ctrl-C, and in the session of the process that started it.
    """
    launcher = Launcher()
    process, _ = launcher.prepare()
    spec: dict[str, Any] = {"file": str(coder), "engine": {}, "model": {}, "sampling": {}, "template": None}
    launcher.launch_ahead(spec)
    taken, ours = launcher.launch(spec)
    assert taken is process
    other, theirs = launcher.launch(spec)
    assert other is not process
    if sys.version_info >= (3, 11):
        assert {os.getpgid(each.pid) for each in (process, other)} == {process.pid, other.pid}
        assert {os.getsid(each.pid) for each in (process, other)} == {os.getsid(0)}
    idle, end = launcher.prepare()
    for running, closing in ((process, ours), (other, theirs), (idle, end)):
        closing.close()
        assert running.wait(30) == 0
