"""Slots: what a request finds computed is what memory has, after any history; and all slots add up."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from helpers.cells import operate
from offgrid_llama.engine.planning.limits import Limits, Trim
from offgrid_llama.engine.planning.operations import Copy, Forget, Keep, Load, Operation, Save, Spill
from offgrid_llama.engine.planning.shelf import Shelf
from offgrid_llama.engine.planning.slot_texts import SHORT_TAIL_TOKENS
from offgrid_llama.engine.planning.slots import MIN_PREFIX_TOKENS, Slots, Taken, Wait

SYSTEM = list(range(100, 100 + 3 * MIN_PREFIX_TOKENS))


def make(n_seq_max: int, shelf: Shelf | None = None, *, trim: Trim = Trim.ANY, n_cells: int | None = None) -> Slots:
    return Slots(Limits(n_seq_max, n_batch=512, n_ctx_seq=4096, trim=trim, n_cells=n_cells), shelf)


def taken(slots: Slots, prompt: list[int]) -> Taken:
    found = slots.take(prompt)
    assert isinstance(found, Taken)
    return found


def computed(slots: Slots, prompt: list[int]) -> Taken:
    """Take a slot, and compute its whole prompt."""
    found = taken(slots, prompt)
    slots.advance(found.seq, len(prompt) - found.n_cached)
    return found


def test_requests_that_arrive_together_share_a_prefix() -> None:
    """The second waits while the first computes what both begin with, and then has a copy of it."""
    slots = make(3)
    first = taken(slots, [*SYSTEM, 1])
    assert first == Taken(0, 0, ())
    assert slots.take([*SYSTEM, 2]) is Wait.PREFIX
    slots.advance(0, len(SYSTEM) - MIN_PREFIX_TOKENS)
    assert slots.take([*SYSTEM, 2]) is Wait.PREFIX
    slots.advance(0, MIN_PREFIX_TOKENS)
    assert taken(slots, [*SYSTEM, 2]) == Taken(1, len(SYSTEM), (Copy(0, 1),))
    slots.advance(0, 1)
    assert taken(slots, [*SYSTEM, 3]) == Taken(2, len(SYSTEM), (Copy(1, 2),))
    assert slots.take([7]) is Wait.SLOT


def test_requests_that_end_soon_take_over_each_others_slots() -> None:
    """Where several idle slots have the prefix, and lose little, each next request takes one of them, and copies nothing."""
    slots = make(4)
    for i in range(4):
        computed(slots, [*SYSTEM, 10 + i])
    for seq in (2, 0, 3, 1):
        slots.release(seq, [])
    found = [taken(slots, [*SYSTEM, 20 + i]) for i in range(4)]
    assert {each.seq for each in found} == {0, 1, 2, 3}
    assert [each.operations for each in found] == [(Keep(each.seq, len(SYSTEM)),) for each in found]


def test_a_conversation_goes_on_where_it_was() -> None:
    """The next turn takes over the idle slot of the one before; nothing is copied or forgotten."""
    slots = make(2)
    turn = computed(slots, [*SYSTEM, 1, 2])
    slots.advance(turn.seq, 1)
    slots.release(turn.seq, [3, 4])  # the last token was chosen, and is not in memory
    assert (slots.n_free, slots.n_idle, slots.n_running) == (1, 1, 0)
    assert taken(slots, [*SYSTEM, 1, 2, 3, 4, 5]) == Taken(turn.seq, len(SYSTEM) + 3, ())


def test_the_same_prompt_again() -> None:
    """The last token is computed again, for its logits."""
    slots = make(1)
    slots.release(computed(slots, SYSTEM).seq)
    assert taken(slots, SYSTEM) == Taken(0, len(SYSTEM) - 1, (Keep(0, len(SYSTEM) - 1),))


def test_a_long_tail_is_kept_for_its_own_conversation() -> None:
    """Of an idle slot with a long tail there is a copy, as long as there is a slot for it; a short tail is given up."""
    slots = make(2)
    slots.release(computed(slots, [*SYSTEM, *range(SHORT_TAIL_TOKENS + 1)]).seq)
    copied = computed(slots, [*SYSTEM, 1])
    assert copied == Taken(1, len(SYSTEM), (Copy(0, 1), Keep(1, len(SYSTEM))))
    slots.release(1)
    assert taken(slots, [*SYSTEM, 2]) == Taken(1, len(SYSTEM), (Keep(1, len(SYSTEM)),))
    assert taken(slots, [*SYSTEM, 3]) == Taken(0, len(SYSTEM), (Keep(0, len(SYSTEM)),))


def test_the_slot_that_was_used_least_recently_goes_first() -> None:
    """A prompt that shares nothing takes the oldest idle slot, once there is no free one."""
    slots = make(3)
    for seq in range(3):
        computed(slots, [seq] * 20)
    for seq in (1, 0, 2):
        slots.release(seq)
    assert taken(slots, [9] * 20) == Taken(1, 0, (Keep(1, 0),))
    assert taken(slots, [8] * 20) == Taken(0, 0, (Keep(0, 0),))


def test_little_is_neither_copied_nor_waited_for() -> None:
    """A few tokens that all prompts begin with, such as BOS, delay no request."""
    slots = make(2)
    common = [1] * (MIN_PREFIX_TOKENS - 1)
    assert taken(slots, [*common, 5]) == Taken(0, 0, ())
    assert taken(slots, [*common, 6]) == Taken(1, 0, ())


def test_a_request_that_ends_early() -> None:
    """Requests stop waiting for its uncomputed prefix; the computed part stays available."""
    slots = make(2)
    first = taken(slots, [*SYSTEM, 1])
    slots.advance(first.seq, 2 * MIN_PREFIX_TOKENS)
    slots.release(first.seq)
    assert taken(slots, [*SYSTEM, 2]) == Taken(0, 2 * MIN_PREFIX_TOKENS, ())
    slots.drop(0)
    assert (slots.n_free, slots.n_idle, slots.n_running) == (2, 0, 0)
    assert slots.tokens(0) == []


def test_slots_in_use_are_neighbours() -> None:
    """llama.cpp computes those sequences together whose ids follow each other: holes are filled, also by a copy."""
    slots = make(6)
    for seq in range(6):
        assert computed(slots, [seq] * 20).seq == seq
    for seq in (0, 1, 3, 5):
        slots.release(seq)
    assert taken(slots, [9] * 20).seq == 3  # between 2 and 4
    slots.release(2)
    assert taken(slots, [0] * 21) == Taken(5, 20, (Keep(5, 0), Copy(0, 5)))  # not 0, where it is
    for seq in (3, 4, 5):
        slots.release(seq)
    assert taken(slots, [1] * 21) == Taken(1, 20, ())  # alone it stays where it is


def test_what_makes_room_comes_back() -> None:
    """An idle slot that another request needs goes to the shelf, and from there to a request that begins with it."""
    slots = make(1, Shelf(10**6))
    slots.release(computed(slots, [*SYSTEM, 1]).seq)
    assert taken(slots, [9] * 20) == Taken(0, 0, (Save(0, 0), Keep(0, 0)))
    slots.advance(0, 20)
    slots.release(0)
    back = taken(slots, [*SYSTEM, 2, 3])
    assert back == Taken(
        0, len(SYSTEM), (Keep(0, 0), Load(0, 0), Keep(0, len(SYSTEM)))
    )  # 20 tokens are not worth a place


def test_those_in_use_stay_together() -> None:
    """Half of those in use leave, as many come, again and again: they are in one row each time, wherever the gap was."""
    rng = random.Random(4)
    slots = make(16, Shelf(10**9))
    running = [computed(slots, [*SYSTEM, i]).seq for i in range(8)]
    for i in range(8, 400, 4):
        begin = rng.randrange(5)  # a row of them, as those have ended together that have begun together
        for _ in range(4):
            slots.release(running.pop(begin))
        running = sorted([*running, *(computed(slots, [*SYSTEM, i + k]).seq for k in range(4))])
        assert running == list(range(running[0], running[0] + 8))


def test_a_cache_for_all() -> None:
    """A request waits until there are as many cells as it may need, beside what it shares; idle ones make room."""
    slots = make(4, Shelf(10**6), n_cells=200)
    first = slots.take([*SYSTEM, 1], 50)
    assert isinstance(first, Taken)
    assert slots.take([9] * 60, 42) is Wait.SLOT  # 99 are taken
    second = slots.take([9] * 60, 41)
    assert isinstance(second, Taken)
    assert slots.take([5], 1) is Wait.SLOT
    slots.advance(first.seq, len(SYSTEM) + 1)
    slots.release(first.seq)  # keeps 49
    shared = slots.take([*SYSTEM, 2, 3], 30)
    assert shared == Taken(0, len(SYSTEM), (Keep(0, len(SYSTEM)),))
    slots.advance(0, 2)
    slots.release(0)
    assert slots.take([6] * 40, 20) == Taken(2, 0, (Save(0, 0), Keep(0, 0)))


def test_a_window_is_loaded_whole_or_not() -> None:
    """A shelved sequence without its past cannot be cut, so only a request that begins with all of it takes it."""
    slots = make(1, Shelf(10**6), trim=Trim.COMPUTED)
    slots.release(computed(slots, [*SYSTEM, 1]).seq)
    assert taken(slots, [9] * 40).n_cached == 0
    slots.advance(0, 40)
    slots.release(0)
    assert taken(slots, [*SYSTEM, 2, 3]).n_cached == 0
    slots.release(0)
    loaded = taken(slots, [*SYSTEM, 1, 2])
    assert (loaded.n_cached, loaded.operations[-1]) == (len(SYSTEM) + 1, Load(0, 0))
    slots.advance(0, 1)
    slots.release(0)
    assert taken(slots, [*SYSTEM, 1, 2, 5, 6]).n_cached == len(SYSTEM) + 2  # goes on in its place
    slots.advance(0, 2)
    slots.release(0)
    assert taken(slots, [*SYSTEM, 3, 4]).n_cached == 0  # what was loaded is not cut, either


def test_a_state_is_kept_where_texts_part() -> None:
    """Of a state without parts: the first stops where the second one's text parts, and what it has there is kept."""
    slots = make(3, Shelf(10**6), trim=Trim.NOTHING)
    first = taken(slots, [*SYSTEM, 1, 1])
    assert slots.stop_at(first.seq) is None
    assert slots.take([*SYSTEM, 2]) is Wait.PREFIX
    assert slots.stop_at(first.seq) == len(SYSTEM)
    slots.advance(first.seq, len(SYSTEM))
    assert taken(slots, [*SYSTEM, 2]) == Taken(1, len(SYSTEM), (Copy(0, 1),))
    assert slots.checkpoints() == [Save(0, 0)]
    assert slots.checkpoints() == []
    slots.advance(first.seq, 2)
    slots.advance(1, 1)
    assert taken(slots, [*SYSTEM, 3]) == Taken(2, len(SYSTEM), (Load(0, 2),))


texts = st.lists(st.sampled_from([SYSTEM, SYSTEM[:20], [1] * 20, [2] * 20, [3], [4, 5]]), min_size=1, max_size=5)


class Machine(RuleBasedStateMachine):
    """Requests of any kind, with a memory that does what it is told."""

    @initialize(
        n=st.integers(1, 5),
        trim=st.sampled_from(Trim),
        room=st.sampled_from([0, 100, 10_000]),
        disk_room=st.sampled_from([0, 300]),
        n_cells=st.sampled_from([None, 345, 400]),
    )
    def begin(self, n: int, trim: Trim, room: int, disk_room: int, n_cells: int | None) -> None:
        self.n = n
        self.trim = trim
        self.room, self.disk_room = room, disk_room
        self.store = Shelf(room, disk_room)
        self.n_cells = n_cells
        self.slots = make(n, self.store, trim=trim, n_cells=n_cells)
        self.shelf: dict[int, list[int]] = {}
        self.cells: list[list[object]] = [[] for _ in range(n)]  # of each token in memory
        self.room_left: dict[int, int] = {}
        self.loaded = [0] * n  # what came from the shelf, and cannot be cut
        self.memory: list[list[int]] = [[] for _ in range(n)]
        self.todo: dict[int, list[int]] = {}
        self.generated: dict[int, list[int]] = {}

    @rule(parts=texts, more=st.integers(1, 100))
    def take(self, parts: list[list[int]], more: int) -> None:
        prompt = [token for part in parts for token in part]
        found = self.slots.take(prompt, more)
        if isinstance(found, Wait):
            self.do(self.slots.checkpoints())  # the plan ends here
            assert self.todo  # a request will end
            assert found is Wait.PREFIX or len(self.todo) == self.n or self.n_cells
            return
        self.do(found.operations)
        assert found.seq not in self.todo
        assert found.n_cached < len(prompt)
        assert self.memory[found.seq] == prompt[: found.n_cached]
        self.todo[found.seq] = prompt[found.n_cached :]
        self.generated[found.seq] = []
        self.room_left[found.seq] = more

    def fill(self) -> None:
        """Let tokens that are new have cells of their own, and see that there are enough."""
        for cells, memory in zip(self.cells, self.memory, strict=True):
            del cells[len(memory) :]
            cells += [object() for _ in memory[len(cells) :]]
        assert self.n_cells is None or len({cell for cells in self.cells for cell in cells}) <= self.n_cells

    def do(self, operations: Sequence[Operation]) -> None:
        for operation in sorted(operations, key=lambda operation: isinstance(operation, (Forget, Spill))):
            if isinstance(operation, Copy):
                self.cells[operation.target] = list(self.cells[operation.source])
            if isinstance(operation, Keep) and self.trim is Trim.COMPUTED:
                assert operation.length == 0 or operation.length >= self.loaded[operation.seq]
            operate(self.memory, self.shelf, operation, self.trim)
            if isinstance(operation, Load):
                self.loaded[operation.seq] = len(self.memory[operation.seq])
            elif isinstance(operation, Copy):
                self.loaded[operation.target] = self.loaded[operation.source]
            elif isinstance(operation, Keep) and operation.length == 0:
                self.loaded[operation.seq] = 0
            self.fill()
        for operation in operations:
            if isinstance(operation, Save) and operation.key in self.shelf:
                for gone in self.store.weigh(operation.key, len(self.shelf[operation.key])):
                    operate(self.memory, self.shelf, gone)
        assert sum(map(len, self.shelf.values())) == self.store.n_bytes + self.store.n_disk_bytes
        assert self.store.n_bytes <= self.room
        assert self.store.n_disk_bytes <= self.disk_room

    @rule()
    def checkpoint(self) -> None:
        self.do(self.slots.checkpoints())

    @rule(which=st.integers(0, 4), n=st.integers(1, 40), token=st.integers(1, 9))
    def compute(self, which: int, n: int, token: int) -> None:
        if not self.todo:
            return
        seq = sorted(self.todo)[which % len(self.todo)]
        todo = self.todo[seq]
        stop = self.slots.stop_at(seq)
        if stop is not None:
            n = min(n, stop - self.slots.n_computed(seq))
        self.memory[seq] += todo[:n]
        self.slots.advance(seq, len(todo[:n]))
        del todo[:n]
        if not todo:
            said = [token] * min(n, self.room_left[seq])
            self.room_left[seq] -= len(said)
            self.memory[seq] += said
            self.generated[seq] += said
            self.slots.advance(seq, len(said))
        self.fill()

    @rule(which=st.integers(0, 4), lost=st.booleans())
    def end(self, which: int, lost: bool) -> None:
        if not self.todo:
            return
        seq = sorted(self.todo)[which % len(self.todo)]
        del self.todo[seq]
        if lost:
            self.memory[seq] = []
            self.loaded[seq] = 0
            self.fill()
            self.slots.drop(seq)
        else:
            self.slots.release(seq, self.generated[seq])

    @invariant()
    def adds_up(self) -> None:
        slots = self.slots
        assert slots.n_free + slots.n_idle + slots.n_running == self.n
        assert slots.n_running == len(self.todo)
        for seq, memory in enumerate(self.memory):
            assert slots.n_computed(seq) == len(memory)
            if seq in self.todo:
                text = memory + self.todo[seq]
                assert slots.tokens(seq) == text[: len(text) - len(self.generated[seq])]
            else:
                assert slots.tokens(seq) == memory


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
