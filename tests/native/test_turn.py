"""Turn: what one caller does at a time."""

from __future__ import annotations

import threading

import pytest

from offgrid_llama.native.turn import Turn


def test_turn() -> None:
    """Another thread waits, and the same one gets an error; another one may end it."""
    turn = Turn("it is your own")
    done: list[int] = []

    def take() -> None:
        with turn:
            done.append(1)

    thread = threading.Thread(target=take)
    with turn:
        thread.start()
        with pytest.raises(RuntimeError, match="it is your own"), turn:
            pass
        thread.join(0.05)
        assert not done
    thread.join()
    assert done == [1]
    turn.__enter__()
    ending = threading.Thread(target=turn.__exit__)
    ending.start()
    ending.join()
    with turn:
        pass
