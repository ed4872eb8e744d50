"""What one rendering may cost: time, steps and memory; and how large a value may be.

Python cannot interrupt an operation from within, so everything rests on one idea: where every value is bounded, every
single operation is short, and it is enough to look at the clock between operations. Three meters:

- Steps count iterations, calls, elements touched and, 1,024 at a time, characters touched. The clock is read every
  few steps, so the deadline holds to within a few bounded operations.
- Memory counts the bytes of each text that is made; the text gives them back when it dies (``_spans.Text``). Lists
  and the like are charged for good, as nothing tells when they die. What may become large asks for room first.
- Weight is a value's size for an operation that goes through all of it (``==``, hash(), sort, str()). A list that
  holds a list twice counts it twice. It is bounded wherever a container is made, so that a few nested ``[x, x]`` do
  not make a value that takes forever to compare. Depth is bounded as well: hash() of a deep tuple overflows the stack.

jinja2 passes no state to most of the places that have to pay, so a context variable has the current rendering's budget.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CHARS_PER_STEP", "CONTAINERS", "VIEWS", "Budget", "compared", "current", "each", "made", "walk", "weigh"]

CHARS_PER_STEP = 1024
CONTAINERS = (list, tuple, dict)
VIEWS = (KeysView, ItemsView, ValuesView)
_SIZED = (str, range, *CONTAINERS, *VIEWS)
_MAX_DEPTH = 100
_MAX_WEIGHT = 200_000
_STEPS_BETWEEN_LOOKS = 16

current: ContextVar[Budget] = ContextVar("offgrid_llama.chat.budget")


class Budget:
    """The meters of one rendering. Going over a limit raises ``ChatTemplateError``.

    ``max_seconds`` is wall-clock time from now on, ``max_steps`` a number, ``max_text`` the length in characters that
    one text may have, ``max_memory`` a number of bytes. ``weights`` has the weight of each container of the caller's
    data by its id(), so that the data need not be gone through again and again; ``depth`` counts calls under way.
    """

    __slots__ = (
        "_deadline",
        "_look_at",
        "depth",
        "max_memory",
        "max_seconds",
        "max_steps",
        "max_text",
        "max_weight",
        "memory",
        "steps",
        "weights",
    )

    def __init__(self, *, max_seconds: float, max_steps: int, max_text: int, max_memory: int) -> None:
        self.max_seconds = max_seconds
        self.max_steps = max_steps
        self.max_text = max_text
        self.max_memory = max_memory
        self.max_weight = _MAX_WEIGHT
        self.depth = 0
        self.steps = 0
        self.memory = 0
        self.weights: dict[int, int] = {}
        self._deadline = time.monotonic() + max_seconds
        self._look_at = 0

    def tick(self, steps: int = 1) -> None:
        """Take steps, and look at the clock now and then."""
        self.steps += steps
        if self.steps >= self._look_at:
            self._look_at = self.steps + _STEPS_BETWEEN_LOOKS
            if self.steps > self.max_steps:
                raise ChatTemplateError(f"it takes more than {self.max_steps:,} steps")
            if time.monotonic() > self._deadline:
                raise ChatTemplateError(f"it takes longer than {self.max_seconds:g} s")

    def room(self, size: int) -> None:
        """Ask whether ``size`` more bytes may be used, without taking them."""
        if self.memory + size > self.max_memory:
            raise ChatTemplateError(f"it takes more than {self.max_memory:,} bytes of memory")

    def hold(self, size: int) -> None:
        """Take ``size`` bytes."""
        self.room(size)
        self.memory += size

    def room_for_text(self, length: int, *, is_ascii: bool) -> None:
        """Ask whether a text of ``length`` characters may be made."""
        if length > self.max_text:
            raise ChatTemplateError(f"a text of {length:,} characters is longer than the {self.max_text:,} allowed")
        self.room(length if is_ascii else 4 * length)

    def enter(self, data: Any) -> int:
        """Note the weight of a container of the caller's data, whose elements were entered before; return it."""
        children = (*data, *data.values()) if isinstance(data, dict) else data
        weight = 1 + sum(self.weights.get(id(child)) or _leaf(child) for child in children)
        self.weights[id(data)] = weight
        return weight


def _leaf(value: Any) -> int:
    return 1 + len(value) // CHARS_PER_STEP if isinstance(value, str) else 1


def walk(value: Any, *, into_data: bool = True) -> Iterator[tuple[int, Any]]:
    """Go through ``value`` and all that it holds, as often as it holds it, level by level: pairs of depth and value.

    Without ``into_data`` the containers of the caller's data come as leaves. Raises ``ChatTemplateError`` for a value
    that is too deep or has too many elements.
    """
    budget = current.get()
    level, depth, seen = [value], 0, 0
    while level:
        if depth > _MAX_DEPTH:
            raise ChatTemplateError(f"a value is nested more than {_MAX_DEPTH} deep")
        deeper: list[Any] = []
        for item in level:
            yield depth, item
            if isinstance(item, (*CONTAINERS, *VIEWS)) and (into_data or id(item) not in budget.weights):
                seen += len(item)
                if seen > budget.max_weight:
                    raise ChatTemplateError(f"a value has more than {budget.max_weight:,} elements")
                deeper.extend(item)
                if isinstance(item, dict):
                    deeper.extend(item.values())
        budget.tick(len(level))
        level, depth = deeper, depth + 1


def weigh(value: Any) -> int:
    """Return the weight of ``value``. Raises ``ChatTemplateError`` for one that is too heavy or too deep."""
    if not isinstance(value, (*CONTAINERS, *VIEWS)):
        return _leaf(value)
    budget = current.get()
    weight = 0
    for _, item in walk(value, into_data=False):
        weight += budget.weights.get(id(item), 1) if isinstance(item, CONTAINERS) else _leaf(item)
        if weight > budget.max_weight:
            raise ChatTemplateError(f"a value has more than {budget.max_weight:,} elements")
    return weight


def compared(value: Any) -> Any:
    """Charge for going through all of ``value``; return it."""
    current.get().tick(weigh(value))
    return value


def made(container: Any) -> Any:
    """Charge for a container that was just made; return it."""
    current.get().hold(64 + (192 if isinstance(container, dict) else 64) * len(container))
    weigh(container)
    return container


def each(values: Any) -> Any:
    """Charge for going through ``values`` once. What has a length is charged at once and comes back as it is."""
    if isinstance(values, _SIZED):
        current.get().tick(len(values))
        return values
    # Something undefined, or no iterable at all, is left to jinja2: to its own behaviour or error.
    return _counted(values) if isinstance(values, Iterator) else values


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    budget = current.get()
    for value in values:
        budget.tick()
        budget.hold(16)  # in the list that the elements may be gathered in
        yield value
