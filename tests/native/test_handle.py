"""Handle by itself: made-up pointers, and free functions that only note their arguments."""

from __future__ import annotations

import gc
import itertools
import signal
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from offgrid_llama.errors import ClosedError, ForkError
from offgrid_llama.native import handle as handles
from offgrid_llama.native.handle import Handle, Owner

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 20.0  # seconds; no test waits that long unless it fails


class Thing(Owner):
    """A public object as the noun files make them."""

    def __init__(self, handle: Handle) -> None:
        self._own(handle)


class Worker(threading.Thread):
    """A thread that keeps what its function returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Run the function."""
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error

    def done(self) -> Worker:
        """Wait for the end."""
        self.join(DEADLINE)
        assert not self.is_alive(), "the thread is stuck"
        return self


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "this never became true"
        time.sleep(0.001)


class InFlight:
    """A call in flight on another thread: it has entered the handle when this is made, and leaves at ``leave()``."""

    def __init__(self, handle: Handle) -> None:
        self._inside, self._leave = threading.Event(), threading.Event()
        self.worker = Worker(lambda: self._call(handle))
        assert self._inside.wait(DEADLINE)

    def _call(self, handle: Handle) -> object:
        with handle as ptr:
            self._inside.set()
            assert self._leave.wait(DEADLINE)
            return ptr

    def leave(self) -> None:
        """Let the call return."""
        self._leave.set()


@pytest.fixture
def freed() -> list[Any]:
    """The arguments of the free functions of this test, in order."""
    return []


def test_the_pointer_is_given_inside_the_block_only_while_open(freed: list[Any]) -> None:
    """``with handle as ptr`` gives the pointer, and raises ClosedError with the object's name after close()."""
    handle = Handle("Model a.gguf", "ptr", freed.append)
    with handle as ptr:
        assert ptr == "ptr"
    handle.close()
    assert handle.closed
    assert freed == ["ptr"]
    with pytest.raises(ClosedError, match=r"^Model a\.gguf is closed$"), handle:
        pass
    with pytest.raises(ClosedError, match=r"^Model a\.gguf is closed$"):
        handle.check_open()


def test_a_second_close_does_nothing(freed: list[Any]) -> None:
    """An object is freed once, however often close() is called."""
    handle = Handle("x", "ptr", freed.append)
    for _ in range(3):
        handle.close()
    assert freed == ["ptr"]


def test_an_object_without_a_free_function_is_closed_all_the_same() -> None:
    """A pointer that C frees with something else is forgotten, not freed."""
    handle = Handle("x", "ptr", None)
    handle.close()
    assert handle.closed


def test_closing_a_parent_closes_the_children_first_and_the_youngest_first(freed: list[Any]) -> None:
    """Children go before their parent, the youngest first, grandchildren before children."""
    parent = Handle("parent", "parent", freed.append)
    children = [Handle(f"child {i}", f"child {i}", freed.append, parent) for i in range(3)]
    grandchild = Handle("grandchild", "grandchild", freed.append, children[1])
    assert grandchild.parents == (children[1],)
    parent.close()
    assert freed == ["child 2", "grandchild", "child 1", "child 0", "parent"]
    assert all(handle.closed for handle in (parent, *children, grandchild))


def test_a_family_can_be_closed_in_any_order(freed: list[Any]) -> None:
    """All 120 orders of closing free each object once, and none before its children."""
    above = {"context": ["model"], "chain": ["model"], "memory": ["context"], "sampler": ["chain", "model"]}
    for order in itertools.permutations(["model", "context", "chain", "memory", "sampler"]):
        freed.clear()
        family = {"model": Handle("model", "model", freed.append)}
        for name, parents in above.items():
            family[name] = Handle(name, name, freed.append, *(family[parent] for parent in parents))
        for name in order:
            family[name].close()
        assert sorted(freed) == sorted(family)
        for name, parents in above.items():
            assert all(freed.index(name) < freed.index(parent) for parent in parents), freed


def test_a_closed_parent_takes_no_child_and_the_newborn_is_freed(freed: list[Any]) -> None:
    """The C object that was made for a parent that is closed is freed at once, and left in no other parent."""
    first, second = Handle("first", "first", freed.append), Handle("second", "second", freed.append)
    second.close()
    with pytest.raises(ClosedError, match=r"^second is closed$"):
        Handle("child", "child", freed.append, first, second)
    assert freed == ["second", "child"]
    first.close()
    assert freed == ["second", "child", "first"]


def test_a_consumed_object_is_closed_and_never_freed(freed: list[Any]) -> None:
    """consume() gives the pointer once; after it the object says where it went, and its parents forget it."""
    parent = Handle("parent", "parent", freed.append)
    handle = Handle("sampler top-k", "ptr", freed.append, parent)
    assert handle.consume("was given to a chain") == "ptr"
    assert handle.closed
    for use in (handle.check_open, handle.__enter__, lambda: handle.consume("again")):
        with pytest.raises(ClosedError, match=r"^sampler top-k was given to a chain$"):
            use()
    handle.close()
    parent.close()
    assert freed == ["parent"]


def test_consume_waits_for_calls_in_flight(freed: list[Any]) -> None:
    """A pointer that another thread is using changes hands when that call has returned."""
    handle = Handle("x", "ptr", freed.append)
    call = InFlight(handle)
    consumer = Worker(lambda: handle.consume("is gone"))
    until(lambda: handle.n_waiting)
    assert consumer.is_alive()
    call.leave()
    assert consumer.done().result == "ptr"
    assert not freed


def test_close_waits_for_a_call_in_flight_and_refuses_new_ones(freed: list[Any]) -> None:
    """close() returns after the calls on other threads have; meanwhile the object is closed for other threads."""
    handle = Handle("x", "ptr", freed.append)
    call = InFlight(handle)
    closer = Worker(handle.close)
    until(lambda: handle.n_waiting)
    assert handle.closed
    assert not freed
    with pytest.raises(ClosedError, match=r"^x is closed$"), handle:
        pass
    call.leave()
    closer.done()
    assert (freed, call.worker.done().result) == (["ptr"], "ptr")


def test_closing_a_parent_waits_for_the_calls_of_its_children(freed: list[Any]) -> None:
    """A call in flight in a child keeps the child and its parent alive until it returns."""
    parent = Handle("parent", "parent", freed.append)
    child = Handle("child", "child", freed.append, parent)
    call = InFlight(child)
    closer = Worker(parent.close)
    until(lambda: child.n_waiting)
    with pytest.raises(ClosedError, match=r"^parent is closed$"):
        Handle("late", "late", None, parent)
    assert not freed
    call.leave()
    closer.done()
    assert freed == ["child", "parent"]


def test_close_asks_the_calls_in_flight_to_stop(freed: list[Any]) -> None:
    """``cancel`` is called once by close() while a call is in flight, and not without one."""
    asked: list[str] = []
    handle = Handle("x", "ptr", freed.append, cancel=lambda: asked.append("stop"))
    call = InFlight(handle)
    closer = Worker(handle.close)
    until(lambda: asked)
    assert not freed
    call.leave()
    closer.done()
    assert (asked, freed) == (["stop"], ["ptr"])

    idle = Handle("idle", "idle", freed.append, cancel=lambda: asked.append("stop"))
    idle.close()
    assert asked == ["stop"]


def test_close_from_many_threads_at_once_frees_once(freed: list[Any]) -> None:
    """Every thread's close() returns when the object is freed, by whichever thread."""
    for _ in range(50):
        freed.clear()
        barrier = threading.Barrier(4)
        parent = Handle("parent", "parent", freed.append)
        child = Handle("child", "child", freed.append, parent)

        def close(handle: Handle, barrier: threading.Barrier = barrier) -> list[Any]:
            barrier.wait(DEADLINE)
            handle.close()
            return list(freed)

        workers = [Worker(lambda handle=handle: close(handle)) for handle in (parent, child, parent, child)]  # type: ignore[misc]
        seen = [worker.done().result for worker in workers]
        assert freed == ["child", "parent"]
        assert all("child" in after for after in seen if isinstance(after, list))
        assert [after for after in seen[::2] if after != freed] == []


def test_children_that_go_away_while_their_parent_closes(freed: list[Any]) -> None:
    """A parent's close() copes with children that close themselves, on other threads, in the middle of it."""
    for _ in range(30):
        freed.clear()
        parent = Handle("parent", "parent", freed.append)
        children = [Handle(str(i), i, freed.append, parent) for i in range(100)]
        barrier = threading.Barrier(2)

        def close_all(children: list[Handle] = children, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(DEADLINE)
            for child in children:
                child.close()

        worker = Worker(close_all)
        barrier.wait(DEADLINE)
        parent.close()
        assert worker.done().error is None
        assert freed[-1] == "parent"
        assert sorted(freed[:-1]) == list(range(100))


def test_one_caller_at_a_time_where_the_object_is_exclusive() -> None:
    """The second thread's block begins when the first one's has ended."""
    handle = Handle("context", "ptr", None, exclusive=True)
    call = InFlight(handle)
    second = Worker(lambda: InFlight(handle).leave())
    until(lambda: handle.n_waiting)
    assert second.is_alive()
    call.leave()
    assert second.done().error is None


def test_several_callers_at_once_where_it_is_not() -> None:
    """Two threads, and one thread twice, may be inside together."""
    handle = Handle("model", "ptr", None)
    first, second = InFlight(handle), InFlight(handle)
    with handle, handle:
        pass
    first.leave()
    second.leave()
    assert second.worker.done().result == "ptr"
    handle.close()


def test_an_exclusive_object_refuses_its_own_callback() -> None:
    """A thread that would wait for itself gets a RuntimeError instead."""
    handle = Handle("context", "ptr", None, exclusive=True)
    with handle, pytest.raises(RuntimeError, match="context was used from a callback of its own call"), handle:
        pass
    with handle:  # still usable
        pass


def test_waiting_for_an_exclusive_object_ends_when_it_is_closed(freed: list[Any]) -> None:
    """A thread that waits for its turn gets ClosedError as soon as another one closes the object."""
    handle = Handle("context", "ptr", freed.append, exclusive=True)
    call = InFlight(handle)
    waiting = Worker(handle.__enter__)
    until(lambda: handle.n_waiting)
    closer = Worker(handle.close)
    until(lambda: handle.closed)
    call.leave()
    closer.done()
    assert isinstance(waiting.done().error, ClosedError)
    assert freed == ["ptr"]


@pytest.mark.parametrize("closed", ["parent", "child"])
def test_close_in_a_callback_of_the_own_call_is_refused(closed: str, freed: list[Any]) -> None:
    """A thread inside an object's block can close neither the object nor its parent; both stay open."""
    family = {"parent": Handle("parent", "parent", freed.append)}
    family["child"] = Handle("child", "child", freed.append, family["parent"])
    with family["child"], pytest.raises(RuntimeError, match="child cannot be closed from a callback of its own call"):
        family[closed].close()
    assert not any(handle.closed for handle in family.values())
    family["parent"].close()
    assert freed == ["child", "parent"]


def test_close_inside_a_close_of_the_same_thread(freed: list[Any]) -> None:
    """A signal handler that closes a parent while its thread waits in the child's close() is refused; it does not hang."""
    parent = Handle("parent", "parent", freed.append)
    errors: list[BaseException] = []

    def close_parent() -> None:
        try:
            parent.close()
        except RuntimeError as error:
            errors.append(error)

    def signal_handler() -> None:
        close_parent()
        call.leave()

    child = Handle("child", "child", freed.append, parent, cancel=signal_handler)
    call = InFlight(child)
    Worker(child.close).done()
    assert [str(error) for error in errors] == ["child cannot be closed from a callback of its own call"]
    assert freed == ["child"]
    assert not parent.closed


def test_ctrl_c_while_close_waits_leaves_the_object_open(freed: list[Any]) -> None:
    """An interrupted close() is as if it had not been called: the object works, and can be closed later."""
    handle = Handle("x", "ptr", freed.append)
    call = InFlight(handle)

    def interrupt() -> None:
        until(lambda: handle.n_waiting)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = Worker(interrupt)
        with pytest.raises(KeyboardInterrupt):
            handle.close()
        interrupter.done()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not handle.closed
    assert not freed
    with handle as ptr:
        assert ptr == "ptr"
    call.leave()
    handle.close()
    assert freed == ["ptr"]


def test_a_second_closer_takes_over_from_one_that_gave_up(freed: list[Any]) -> None:
    """If the first of two closing threads is interrupted, the second one closes the object and does not wait forever."""
    handle = Handle("x", "ptr", freed.append, cancel=lambda: give_up())  # noqa: PLW0108 - below
    first = threading.Event()

    def give_up() -> None:
        if not first.is_set():
            first.set()
            second.append(Worker(handle.close))
            while handle.n_waiting < 1:  # we hold the mutex: let the second one begin to wait
                handle._changed.wait(0.01)
            raise KeyboardInterrupt

    second: list[Worker] = []
    call = InFlight(handle)
    with pytest.raises(KeyboardInterrupt):
        handle.close()
    call.leave()
    assert second[0].done().error is None
    assert freed == ["ptr"]


def test_an_exception_that_follows_free_does_not_free_twice(freed: list[Any]) -> None:
    """Ctrl-C that arrives with the end of the C call leaves a closed object, and a parent that can be closed."""

    def free(ptr: str) -> None:
        freed.append(ptr)
        raise KeyboardInterrupt

    parent = Handle("parent", "parent", freed.append)
    child = Handle("child", "child", free, parent)
    with pytest.raises(KeyboardInterrupt):
        child.close()
    assert child.closed
    child.close()
    Worker(parent.close).done()
    assert freed == ["child", "parent"]


def test_a_failing_child_leaves_the_parent_open(freed: list[Any]) -> None:
    """If closing a child raises, the parent is not freed, and its next close() finishes."""

    def free(ptr: str) -> None:
        freed.append(ptr)
        raise KeyboardInterrupt

    parent = Handle("parent", "parent", freed.append)
    Handle("child", "child", free, parent)
    with pytest.raises(KeyboardInterrupt):
        parent.close()
    assert not parent.closed
    parent.close()
    assert freed == ["child", "parent"]


def test_with_closes_and_nests(freed: list[Any]) -> None:
    """``with`` closes at its end, also when the block raises, and an object that is closed early is no error."""
    with Thing(Handle("outer", "outer", freed.append)) as outer:
        with Thing(Handle("inner", "inner", freed.append, outer.handle)) as inner, inner:
            pass
        assert freed == ["inner"]
    assert freed == ["inner", "outer"]
    freed.clear()
    with pytest.raises(ZeroDivisionError), Thing(Handle("failing", "failing", freed.append)):
        raise ZeroDivisionError
    assert freed == ["failing"]
    freed.clear()
    with Thing(Handle("early", "early", freed.append)) as early:
        early.close()
    assert freed == ["early"]
    with pytest.raises(ClosedError, match=r"^early is closed$"), early:
        pass


def test_the_representation_says_what_became_of_it(freed: list[Any]) -> None:
    """repr() has the object's name, and the reason why it is not open."""
    thing = Thing(Handle("Model a.gguf", "ptr", freed.append))
    assert repr(thing) == "<Model a.gguf>"
    thing.close()
    assert repr(thing) == "<Model a.gguf (is closed)>"
    given = Thing(Handle("sampler", "ptr", freed.append))
    given.handle.consume("was given to a chain")
    assert repr(given) == "<sampler (was given to a chain)>"


def test_a_forgotten_object_is_freed_with_a_warning_that_names_it(freed: list[Any]) -> None:
    """The finalizer frees the object at once and gives a ResourceWarning; a closed object gives none."""
    with pytest.warns(ResourceWarning, match=r"^unclosed Model a\.gguf: use `with`, or call close\(\)$"):
        Thing(Handle("Model a.gguf", "ptr", freed.append))
    assert freed == ["ptr"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Thing(Handle("x", "x", freed.append)).close()
        given = Thing(Handle("y", "y", freed.append))
        given.handle.consume("is gone")
        del given
    assert freed == ["ptr", "x"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_object_is_freed_where_warnings_are_errors(freed: list[Any]) -> None:
    """With -W error the warning is printed as an exception, and the object is freed all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        Thing(Handle("x", "ptr", freed.append))
    assert freed == ["ptr"]


def test_a_forgotten_parent_that_a_child_still_needs(freed: list[Any]) -> None:
    """A child's Python object holds nothing but handles, and still the parent's finalizer closes the child first."""
    parent = Thing(Handle("parent", "parent", freed.append))
    child = Thing(Handle("child", "child", freed.append, parent.handle))
    with pytest.warns(ResourceWarning, match=r"^unclosed parent:"):
        del parent
    assert freed == ["child", "parent"]
    assert child.closed


def test_a_garbage_cycle_is_freed_in_order(freed: list[Any]) -> None:
    """Objects in a reference cycle are freed by the collector, the child before its parent."""

    class Node(Thing):
        other: Node

    parent = Node(Handle("parent", "parent", freed.append))
    child = Node(Handle("child", "child", freed.append, parent.handle))
    parent.other, child.other = child, parent
    gone = weakref.ref(parent)
    del parent, child
    with pytest.warns(ResourceWarning, match=r"^unclosed (parent|child):"):
        gc.collect()
    assert gone() is None
    assert freed == ["child", "parent"]


def test_finalizers_hold_the_handle_and_not_the_object() -> None:
    """An object without references goes away without the garbage collector."""
    gc.disable()
    try:
        thing = Thing(Handle("x", "ptr", None))
        gone = weakref.ref(thing)
        thing.close()
        del thing
        assert gone() is None
    finally:
        gc.enable()


def test_after_a_fork_nothing_is_entered_freed_or_waited_for(monkeypatch: pytest.MonkeyPatch, freed: list[Any]) -> None:
    """In a forked child every use raises ForkError, and close() returns at once: the threads in flight are not there."""
    parent = Handle("parent", "parent", freed.append)
    child = Handle("child", "child", freed.append, parent, exclusive=True)
    call = InFlight(child)
    monkeypatch.setattr(handles, "_forked", True)
    with pytest.raises(ForkError, match="spawn"), child:
        pass
    Worker(parent.close).done()
    assert (parent.closed, child.closed, freed) == (True, True, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Thing(Handle("forgotten", "ptr", freed.append))
    assert not freed
    call.leave()
    call.worker.done()
