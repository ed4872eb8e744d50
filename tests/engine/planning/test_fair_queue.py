"""FairQueue: turns by tokens."""

from __future__ import annotations

from offgrid_llama.engine.planning.fair_queue import MAX_TENANTS, FairQueue


def pop(queue: FairQueue[str]) -> str:
    entry = queue.pop()
    assert entry is not None
    return entry.item


def popped(queue: FairQueue[str], n: int) -> str:
    return "".join(pop(queue) for _ in range(n))


def test_one_tenant() -> None:
    """The larger priority comes first, then the order of arrival; an item that is put back keeps its place."""
    queue: FairQueue[str] = FairQueue()
    for item, priority in (("c", 0), ("a", 1), ("d", 0), ("b", 1)):
        queue.push(item, 5, priority=priority)
    assert (len(queue), sorted(queue)) == (4, list("abcd"))
    first = queue.pop()
    assert first is not None
    queue.put_back(first)
    assert popped(queue, 4) == "abcd"
    assert not queue


def test_a_tenant_does_not_wait_for_all_of_another() -> None:
    """One that comes after a hundred items of another has every second turn, and twice as many where its items are half."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("a", 10, "a")
    assert popped(queue, 8) == "a" * 8
    for _ in range(8):
        queue.push("b", 10, "b")
    assert popped(queue, 8).count("b") == 4
    queue = FairQueue()
    for tenant, n_tokens in (("a", 10), ("b", 5)):
        for _ in range(100):
            queue.push(tenant, n_tokens, tenant)
    assert 19 <= popped(queue, 30).count("b") <= 21


def test_tokens_that_come_later_count() -> None:
    """A tenant whose items take more than they were queued with waits longer; one whose items take less, less long."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        queue.push("a", 1, "a")
        queue.push("b", 1, "b")
    assert popped(queue, 2) == "ab"
    queue.count("a", 4)
    assert popped(queue, 4) == "bbbb"


def test_tenants_that_are_passed_over() -> None:
    """The next item is that of another tenant; where there is none, nothing is taken."""
    queue: FairQueue[str] = FairQueue()
    for tenant in "abc":
        queue.push(tenant, 1, tenant)
    entry = queue.pop({"a", "b"})
    assert entry is not None
    assert entry.item == "c"
    assert queue.pop({"a", "b"}) is None
    assert popped(queue, 2) == "ab"
    assert queue.pop() is None


def test_being_away_earns_nothing() -> None:
    """A tenant that was away for a thousand turns of another shares from then on, and does not catch up."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(1020):
        queue.push("a", 10, "a")
    queue.push("b", 10, "b")
    popped(queue, 1000)
    for _ in range(10):
        queue.push("b", 10, "b")
    assert 4 <= popped(queue, 10).count("b") <= 6


def test_where_nothing_waits_all_are_equal() -> None:
    """The work that a tenant was given while no other waited is not held against it."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("a", 10, "a")
        queue.pop()
    queue.count("a", 1000)
    for _ in range(4):
        queue.push("b", 10, "b")
        queue.push("a", 10, "a")
    assert popped(queue, 4).count("a") == 2


def test_tenants_that_go_are_forgotten() -> None:
    """Thousands of names cost no memory, and a tenant that has had more than others is not forgotten."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(20 * MAX_TENANTS):
        queue.push("a", 10, "a")
    queue.count("heavy", 10**6)
    for i in range(10 * MAX_TENANTS):
        queue.push("x", 1, str(i))
        popped(queue, 2)
    assert queue.n_tenants <= MAX_TENANTS + 1
    queue.push("heavy", 1, "heavy")
    queue.push("light", 1, "light")
    assert "heavy" not in [pop(queue) for _ in range(100)]
