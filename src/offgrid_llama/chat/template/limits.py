"""The limits of one rendering: time, steps and memory, and the size of a value.

Python cannot interrupt an operation from within, so everything rests on one idea: where every value is bounded, every
single operation is short, and it is enough to read the clock between operations. Three things are measured:

- Steps count iterations, calls, elements touched and, 1,024 at a time, characters touched. The clock is read every few
  steps, so the deadline holds to within a few bounded operations.
- Memory counts the bytes of each text that is made; a text gives them back when it dies (``origin.Text``). Lists and the
  like are charged for good, because nothing tells when they die. An operation whose result may become large asks first.
- Weight is a value's size for an operation that goes through all of it (``==``, hash(), sort, str()). A list that holds a
  list twice counts it twice. It is bounded wherever a container is made, so that a few nested ``[x, x]`` do not make a
  value that takes forever to compare. Depth is bounded as well: hash() of a deep tuple overflows the stack.

jinja2 passes no state to most of the places that have to pay, so a context variable holds the budget of the current
rendering.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CHARACTERS_PER_STEP", "CONTAINERS", "VIEWS", "RenderBudget", "charge_comparison", "charge_container",
    "charge_iteration", "current_budget", "walk", "weigh",
]  # fmt: skip

CHARACTERS_PER_STEP = 1024
"""The characters that an operation touches for one step."""
CONTAINERS = (list, tuple, dict)
VIEWS = (KeysView, ItemsView, ValuesView)
_SIZED = (str, range, *CONTAINERS, *VIEWS)

VALUE_MAX_DEPTH = 100
"""Levels of containers in a value."""
VALUE_MAX_WEIGHT = 200_000
"""The weight of a value, beside the weight of the caller's data."""
STEPS_BETWEEN_CLOCK_READS = 16
"""Reading the clock at each step would take longer than the steps."""

current_budget: ContextVar[RenderBudget] = ContextVar("offgrid_llama.chat.template.budget")


class RenderBudget:
    """The steps, the time and the memory of one rendering. Going over a limit raises ``ChatTemplateError``.

    Args:
        max_seconds: processor time of this thread from now on, so that a busy machine refuses no conversation.
        max_steps: the number of steps.
        max_text: the characters that one text may have.
        max_memory: bytes.

    Attributes:
        max_weight: the weight that one value may have.
        depth: the number of calls under way.
        steps, memory: the steps and the bytes taken so far.
        weights: the weight of each container of the caller's data by its id(), so that the data is gone through once
            only.
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
        self.max_weight = VALUE_MAX_WEIGHT
        self.depth = 0
        self.steps = 0
        self.memory = 0
        self.weights: dict[int, int] = {}
        self._deadline = time.thread_time() + max_seconds
        self._look_at = 0

    def tick(self, steps: int = 1) -> None:
        """Take steps, and read the clock now and then."""
        self.steps += steps
        if self.steps >= self._look_at:
            self._look_at = self.steps + STEPS_BETWEEN_CLOCK_READS
            if self.steps > self.max_steps:
                raise ChatTemplateError(f"it takes more than {self.max_steps:,} steps")
            if time.thread_time() >= self._deadline:
                raise ChatTemplateError(f"it takes longer than {self.max_seconds:g} s")

    def check_memory(self, size: int) -> None:
        """Refuse ``size`` more bytes where they are too many, without taking them."""
        if self.memory + size > self.max_memory:
            raise ChatTemplateError(f"it takes more than {self.max_memory:,} bytes of memory")

    def take_memory(self, size: int) -> None:
        """Take ``size`` bytes."""
        self.check_memory(size)
        self.memory += size

    def check_text(self, length: int, *, is_ascii: bool) -> None:
        """Refuse a text of ``length`` characters where it is too long, or takes too much memory."""
        if length > self.max_text:
            raise ChatTemplateError(f"a text of {length:,} characters is longer than the {self.max_text:,} allowed")
        self.check_memory(length if is_ascii else 4 * length)

    def note_weight(self, data: Any) -> int:
        """Note the weight of a container of the caller's data, after those of its elements; return it."""
        children = (*data, *data.values()) if isinstance(data, dict) else data
        weight = 1 + sum(self.weights.get(id(child)) or _leaf_weight(child) for child in children)
        self.weights[id(data)] = weight
        return weight


def _leaf_weight(value: Any) -> int:
    return 1 + len(value) // CHARACTERS_PER_STEP if isinstance(value, str) else 1


def walk(value: Any, *, into_data: bool = True) -> Iterator[tuple[int, Any]]:
    """Yield ``value`` and everything in it with its depth, level by level, as often as it is held.

    Without ``into_data`` the containers of the caller's data come as leaves. Raises ``ChatTemplateError`` for a value
    that is too deep or has too many elements.
    """
    budget = current_budget.get()
    level, depth, seen = [value], 0, 0
    while level:
        if depth > VALUE_MAX_DEPTH:
            raise ChatTemplateError(f"a value is nested more than {VALUE_MAX_DEPTH} deep")
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
    """Return the weight of ``value``. Raises ``ChatTemplateError`` for a value that is too heavy or too deep."""
    if not isinstance(value, (*CONTAINERS, *VIEWS)):
        return _leaf_weight(value)
    budget = current_budget.get()
    weight = 0
    for _, item in walk(value, into_data=False):
        weight += budget.weights.get(id(item), 1) if isinstance(item, CONTAINERS) else _leaf_weight(item)
        if weight > budget.max_weight:
            raise ChatTemplateError(f"a value has more than {budget.max_weight:,} elements")
    return weight


def charge_comparison(value: Any) -> Any:
    """Charge for going through all of ``value``; return it."""
    current_budget.get().tick(weigh(value))
    return value


def charge_container(container: Any) -> Any:
    """Charge for a container that was just made; return it."""
    current_budget.get().take_memory(64 + (192 if isinstance(container, dict) else 64) * len(container))
    weigh(container)
    return container


def charge_iteration(values: Any) -> Any:
    """Charge for going through ``values`` once. A value with a length is charged at once and comes back as it is."""
    if isinstance(values, _SIZED):
        current_budget.get().tick(len(values))
        return values
    # An undefined value, or one that cannot be iterated over, is left to jinja2: to its own behaviour or error.
    return _charged(values) if isinstance(values, Iterator) else values


def _charged(values: Iterable[Any]) -> Iterator[Any]:
    budget = current_budget.get()
    for value in values:
        budget.tick()
        budget.take_memory(16)  # in the list that the elements may be gathered in
        yield value
