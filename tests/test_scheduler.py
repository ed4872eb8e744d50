"""Scheduler: whatever comes and goes, each request gets the tokens that it gets alone, and no prefix is computed twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from test_slots import operate

from offgrid_llama.engine.operations import Save
from offgrid_llama.engine.padding import Padding
from offgrid_llama.engine.request import FinishReason, Request
from offgrid_llama.engine.scheduler import Plan, Rows, Scheduler
from offgrid_llama.engine.shelf import Shelf
from offgrid_llama.engine.slots import Slots, Trim

N_CTX_SEQ = 96


def next_token(tokens: list[int]) -> int:
    """Return what a model would say: a number that depends on every token before, and their order."""
    state = 17
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % 23


EOG = 0


def alone(prompt: list[int], max_tokens: int) -> tuple[list[int], FinishReason]:
    """Return what a request gives that has the model for itself."""
    tokens: list[int] = []
    while True:
        token = next_token([*prompt, *tokens])
        if token == EOG:
            return tokens, FinishReason.STOP
        tokens.append(token)
        if len(tokens) == max_tokens or len(prompt) + len(tokens) > N_CTX_SEQ:
            return tokens, FinishReason.LENGTH


class AnyPadding(Padding):
    """Adds any number of rows."""

    def __init__(self, seed: int) -> None:
        super().__init__(N_CTX_SEQ)
        self._rng = random.Random(seed)

    def n_pads(self, n_rows: int) -> int:
        return self._rng.randrange(4)


class Machine:
    """A scheduler with a memory that does what it is told, and counts what is computed."""

    def __init__(
        self,
        n_seq: int,
        n_batch: int = 64,
        budget: Callable[[int, int, int], int] | None = None,
        trim: Trim = Trim.ANY,
        room: int = 0,
        padding: Padding | None = None,
    ) -> None:
        self.trim = trim
        self.store = Shelf(room, 2 * room)
        self.shelf: dict[int, list[int]] = {}
        self.slots = Slots(n_seq, trim=trim, shelf=self.store)
        self.scheduler = Scheduler(
            self.slots, n_batch=n_batch, n_ctx_seq=N_CTX_SEQ, eog=[EOG], prompt_budget=budget, padding=padding
        )
        self.memory: list[list[int]] = [[] for _ in range(n_seq)]
        self.n_batch = n_batch
        self.computed = self.n_pads = 0

    def add(self, prompt: list[int], max_tokens: int = 8, priority: int = 0) -> Request:
        request = Request(prompt, max_tokens, priority)
        self.scheduler.add(request)
        return request

    def operate(self, plan: Plan) -> None:
        for operation in plan.operations:
            operate(self.memory, self.shelf, operation, self.trim)
            if isinstance(operation, Save):
                self.scheduler.operate(self.store.weigh(operation.key, len(self.shelf[operation.key])))
        assert sum(len(rows.tokens) for rows in plan.rows) <= self.n_batch
        assert [rows.seq for rows in plan.rows] == sorted(rows.seq for rows in plan.rows)
        assert {seq for seq, _ in plan.pads}.isdisjoint(run.seq for run in self.scheduler._running.values())
        for seq, pos in plan.pads:
            assert pos == len(self.memory[seq]) < N_CTX_SEQ
            self.n_pads += 1

    def compute(self, rows: Rows) -> None:
        memory = self.memory[rows.seq]
        assert rows.tokens
        assert rows.pos == len(memory)
        memory += rows.tokens
        assert len(memory) <= N_CTX_SEQ
        self.computed += len(rows.tokens)

    def decode(self, plan: Plan, n_steps: int = 1) -> dict[Request, list[int]]:
        """Do what a plan says, as a context would, and more steps with what is sampled; return that."""
        self.operate(plan)
        sampled = {}
        for rows in plan.rows:
            self.compute(rows)
            if rows.sample:
                sampled[rows.request] = [next_token(self.memory[rows.seq])]
        more = n_steps if len(sampled) == plan.n_generating == len(plan.rows) else 1
        for _ in range(more - 1):
            if any(sampled[r.request][-1] == EOG or len(sampled[r.request]) == r.room for r in plan.rows):
                break
            for rows in plan.rows:
                self.memory[rows.seq].append(sampled[rows.request][-1])
                sampled[rows.request].append(next_token(self.memory[rows.seq]))
        return sampled

    def fail(self, plan: Plan, rng: random.Random) -> None:
        """Compute some of a plan and lose the results; a sequence without results may be lost whole."""
        self.operate(plan)
        for rows in plan.rows:
            self.memory[rows.seq] += rows.tokens[: rng.choice([0, 1, len(rows.tokens)])]
            if self.trim is Trim.NOTHING:
                self.memory[rows.seq] = []
        if rng.random() < 0.3:
            self.memory[rng.randrange(len(self.memory))] = []
        self.scheduler.restore([len(memory) for memory in self.memory])

    def apply(self, sampled: dict[Request, list[int]]) -> None:
        before = {request: list(request.tokens) for request in sampled}
        for request, new in self.scheduler.apply(sampled):
            assert request.tokens == [*before.pop(request), *new]
        assert all(request.tokens == tokens for request, tokens in before.items())

    def step(self) -> Plan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.apply(self.decode(plan))
        return plan

    def run(self) -> None:
        for _ in range(10_000):
            if self.step() is None:
                break
        assert (self.scheduler.n_waiting, self.scheduler.n_running, self.slots.n_running) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(200))
def test_any_schedule(seed: int) -> None:
    """Requests that come, share beginnings and are cancelled at any moment: the others give what they give alone."""
    rng = random.Random(seed)
    machine = Machine(
        rng.randint(1, 5), rng.choice([8, 20, 64]), rng.choice([None, lambda n, *_: 5, lambda n, *_: 30 // (n + 1)]),
        rng.choice(list(Trim)), rng.choice([0, 100, 1000]), rng.choice([None, AnyPadding(seed)]),
    )  # fmt: skip

    systems = [[rng.randrange(50) for _ in range(rng.randint(1, 60))] for _ in range(3)]
    requests: list[Request] = []
    prompts: dict[Request, list[int]] = {}
    cancelled: dict[Request, int] = {}  # with how many tokens they had

    def disturb(chance: float) -> None:
        while rng.random() < chance:
            prompt = [*rng.choice(systems), *(rng.randrange(50) for _ in range(rng.randint(0, 20)))]
            if requests and rng.random() < 0.3:  # the next turn of a conversation
                before = rng.choice(requests)
                prompt = [*prompts[before], *before.tokens, *prompt[:3]]
            prompt = prompt[: N_CTX_SEQ - 1]
            requests.append(machine.add(prompt, rng.randint(1, 30), rng.randint(0, 2)))
            prompts[requests[-1]] = prompt
        if requests and rng.random() < chance / 2:
            request = rng.choice(requests)
            if request.finish_reason is None:
                machine.scheduler.finish(request, FinishReason.CANCELLED)
                cancelled[request] = len(request.tokens)

    for _ in range(60):
        disturb(0.4)
        plan = machine.scheduler.plan()
        if plan is not None:
            fails = rng.random() < 0.1
            sampled = {} if fails else machine.decode(plan, rng.choice([1, 1, 5]))
            disturb(0.2)  # while the step is under way
            if fails:
                machine.fail(plan, rng)
            else:
                machine.apply(sampled)
        for seq, memory in enumerate(machine.memory):
            assert machine.slots.n_computed(seq) <= len(memory)  # what a failed step has left goes with the next
    for seq, memory in enumerate(machine.memory):
        assert memory[: len(machine.slots.tokens(seq))] == machine.slots.tokens(seq)[: len(memory)]
    machine.run()
    for request in requests:
        tokens, reason = alone(prompts[request], request.max_tokens)
        if request in cancelled:
            assert request.finish_reason is FinishReason.CANCELLED
            assert request.tokens == tokens[: cancelled[request]]
        else:
            assert (request.tokens, request.finish_reason) == (tokens, reason)


def test_a_prefix_is_computed_once() -> None:
    """Eight requests that arrive together with one system prompt compute it once, and their own ends."""
    machine = Machine(8)
    system = [7] * 64
    requests = [machine.add([*system, 30 + i, 31 + i], max_tokens=1) for i in range(8)]
    machine.run()
    assert machine.computed == len(system) + 8 * 2
    assert [request.n_cached for request in requests] == [0] + [len(system)] * 7


def test_one_long_prompt_holds_nobody_up() -> None:
    """Those that generate get a token in each step while a long prompt is computed in pieces of the budget."""
    machine = Machine(3, n_batch=64, budget=lambda n, *_: 4 if n else 64)
    quick = [machine.add([5 + i, 6], max_tokens=20) for i in range(2)]
    machine.step()
    long = machine.add([9] * 60)
    before = [len(request.tokens) for request in quick]
    for i in range(5):
        plan = machine.step()
        assert plan is not None
        assert [len(rows.tokens) for rows in plan.rows if rows.request is long] == [4]
        for request, n in zip(quick, before, strict=True):
            assert len(request.tokens) == n + i + 1 or request.finish_reason is not None


def test_prompts_share_what_room_there_is() -> None:
    """What a short one leaves goes to the others."""
    machine = Machine(3, n_batch=30)
    for prompt in ([1] * 50, [2] * 4, [3] * 60):
        machine.add(prompt)
    plan = machine.scheduler.plan()
    assert plan is not None
    assert [len(rows.tokens) for rows in plan.rows] == [13, 4, 13]
    assert [rows.sample for rows in plan.rows] == [False, True, False]


def test_priorities() -> None:
    """The larger one first, then the order in which they came."""
    machine = Machine(1)
    order = [machine.add([20 + i], max_tokens=1, priority=priority) for i, priority in enumerate([0, 2, 0, 1, 2])]
    begun: list[Request] = []
    while plan := machine.step():
        begun += [rows.request for rows in plan.rows if rows.request not in begun]
    assert [order.index(request) for request in begun] == [1, 4, 3, 0, 2]


def test_those_who_wait_for_a_prefix_do_not_hold_up_others() -> None:
    """A request that shares nothing begins at once, although one that came before it waits for a prefix."""
    machine = Machine(3, n_batch=16)
    machine.add([1] * 60)
    waits = machine.add([*[1] * 60, 2])
    other = machine.add([3] * 10)
    machine.step()
    assert (waits.seq, other.seq) == (None, 1)
    machine.run()
    assert waits.n_cached == 60


def test_finishing_twice() -> None:
    """The first reason stays; a request that waits is gone when it is finished."""
    machine = Machine(1)
    machine.add([1, 2], max_tokens=4)
    waiting = machine.add([3], max_tokens=4)
    machine.step()
    machine.scheduler.finish(waiting, FinishReason.ERROR)
    machine.scheduler.finish(waiting, FinishReason.CANCELLED)
    assert waiting.finish_reason is FinishReason.ERROR
    assert machine.scheduler.n_waiting == 0
    machine.run()
    assert waiting.tokens == []


def test_who_made_the_step_fail() -> None:
    """After a failure each request is computed alone, once; the one that fails alone ends, and the others go on."""
    machine = Machine(3)
    numbers = [number for number in range(20, 99) if len(alone([number] * 9, 4)[0]) == 4][:3]
    requests = [machine.add([number] * 9, max_tokens=4) for number in numbers]
    blamed = requests[1]
    together: list[int] = []
    while plan := machine.scheduler.plan():
        members = [rows.request for rows in plan.rows]
        together.append(len(members))
        if blamed not in members:
            machine.apply(machine.decode(plan))
            continue
        machine.fail(plan, random.Random(len(together)))
        if len(members) == 1:
            machine.scheduler.finish(blamed, FinishReason.ERROR)
        else:
            machine.scheduler.suspect(members)
    assert (blamed.finish_reason, blamed.tokens) == (FinishReason.ERROR, [])
    for request, number in ((requests[0], numbers[0]), (requests[2], numbers[2])):
        assert (request.tokens, request.finish_reason) == alone([number] * 9, 4)
    assert together[:5] == [3, 1, 1, 1, 2]
