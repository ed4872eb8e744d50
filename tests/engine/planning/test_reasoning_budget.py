"""The budget counts from the mark that opens the reasoning to the one that closes it."""

from __future__ import annotations

from offgrid_llama.engine.planning.reasoning_budget import ReasoningBudget


def test_budget() -> None:
    """It counts from the mark that opens the reasoning to the one that closes it, and ends at a whole character."""

    def closes_at(pieces: list[bytes], n: int, inside: bool = True) -> int | None:
        budget = ReasoningBudget(n, b"<think>", b"</think>", inside=inside, closing=[1])
        return next((i for i, piece in enumerate(pieces) if budget.push(piece)), None)

    words = [b"one ", b"two ", b"three ", b"four "]
    assert closes_at(words, 2) == 1
    assert closes_at(words, 9) is None
    assert closes_at([b"a", b"</th", b"ink>", *words], 3) is None
    assert closes_at(words, 1, inside=False) is None  # an answer, no reasoning
    assert closes_at([b"\n", b"<th", b"ink>", *words], 2, inside=False) == 3
    assert closes_at(["Ä".encode()[:1], "Ä".encode()[1:], b"b"], 1) == 1
    assert closes_at([b"\xe2", b"\x82", b"\xac", b"b"], 2) == 2
