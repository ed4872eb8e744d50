"""Scheduler: while others come and go, each request gets the tokens that it gets alone, and no prefix is computed twice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from helpers.cells import operate
from helpers.estimates import MadeUpPace, MadeUpPadding
from offgrid_llama.engine.planning.estimates import Estimates
from offgrid_llama.engine.planning.limits import Limits, Trim
from offgrid_llama.engine.planning.operations import Save
from offgrid_llama.engine.planning.padding import Padding
from offgrid_llama.engine.planning.plan import Plan, Rows
from offgrid_llama.engine.planning.request import Request
from offgrid_llama.engine.planning.scheduler import Scheduler
from offgrid_llama.engine.planning.shelf import Shelf
from offgrid_llama.engine.planning.slots import Slots
from offgrid_llama.finish_reason import FinishReason

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


@dataclass
class Tokens:
    """An outcome: what a step has sampled for one request."""

    tokens: list[int]
    n_forced: int = 0
    n_verified: int = 0


class Machine:
    """A scheduler with a memory that does what it is told, and counts what is computed."""

    def __init__(
        self,
        n_seq: int,
        n_batch: int = 64,
        budget: Callable[[int, float, int], int] | None = None,
        trim: Trim = Trim.ANY,
        room: int = 0,
        padding: Padding | None = None,
    ) -> None:
        self.trim = trim
        self.store = Shelf(room, 2 * room)
        self.shelf: dict[int, list[int]] = {}
        limits = Limits(n_seq, n_batch, N_CTX_SEQ, frozenset([EOG]), trim)
        self.slots = Slots(limits, self.store)
        pace = MadeUpPace(budget or (lambda *_: n_batch))
        self.scheduler: Scheduler[Request] = Scheduler(limits, self.slots, Estimates(pace, padding=padding))
        self.memory: list[list[int]] = [[] for _ in range(n_seq)]
        self.n_batch = n_batch
        self.computed = self.n_pads = 0

    def add(self, prompt: list[int], max_tokens: int = 8, priority: int = 0, tenant: str = "") -> Request:
        request = Request(prompt, max_tokens, priority, tenant)
        self.scheduler.add(request)
        return request

    def operate(self, plan: Plan[Request]) -> None:
        for operation in plan.operations:
            operate(self.memory, self.shelf, operation, self.trim)
            if isinstance(operation, Save):
                self.scheduler.operate(self.store.weigh(operation.key, len(self.shelf[operation.key])))
        assert sum(len(rows.tokens) for rows in plan.rows) <= self.n_batch
        assert [rows.seq for rows in plan.rows] == sorted(rows.seq for rows in plan.rows)
        in_use = {request.seq for request in self.scheduler.unfinished()}
        assert in_use.isdisjoint(seq for seq, _ in plan.pads)
        for seq, pos in plan.pads:
            assert pos == len(self.memory[seq]) < N_CTX_SEQ
            self.n_pads += 1

    def compute(self, rows: Rows[Request]) -> None:
        memory = self.memory[rows.seq]
        assert rows.tokens
        assert rows.pos == len(memory)
        memory += rows.tokens
        assert len(memory) <= N_CTX_SEQ
        self.computed += len(rows.tokens)

    def decode(self, plan: Plan[Request], n_steps: int = 1) -> list[Tokens | None]:
        """Do what a plan says, as a context would, and more steps with what is sampled; return that."""
        self.operate(plan)
        outcomes: list[Tokens | None] = []
        for rows in plan.rows:
            self.compute(rows)
            outcomes.append(Tokens([next_token(self.memory[rows.seq])]) if rows.sample else None)
        if plan.n_generating == len(plan.rows):
            self.go_on(plan, [outcome.tokens for outcome in outcomes if outcome is not None], n_steps - 1)
        return outcomes

    def go_on(self, plan: Plan[Request], sampled: list[list[int]], n_steps: int) -> None:
        """Make more steps with what was sampled, until a text ends or has no room."""
        for _ in range(n_steps):
            if any(
                tokens[-1] == EOG or len(tokens) == rows.room for tokens, rows in zip(sampled, plan.rows, strict=True)
            ):
                break
            for tokens, rows in zip(sampled, plan.rows, strict=True):
                self.memory[rows.seq].append(tokens[-1])
                tokens.append(next_token(self.memory[rows.seq]))

    def fail(self, plan: Plan[Request], rng: random.Random) -> None:
        """Compute some of a plan and lose the results; a sequence without results may be lost whole."""
        self.operate(plan)
        for rows in plan.rows:
            self.memory[rows.seq] += rows.tokens[: rng.choice([0, 1, len(rows.tokens)])]
            if self.trim is Trim.NOTHING:
                self.memory[rows.seq] = []
        if rng.random() < 0.3:
            self.memory[rng.randrange(len(self.memory))] = []
        self.scheduler.restore([len(memory) for memory in self.memory])

    def apply(self, outcomes: list[Tokens | None]) -> None:
        """Let the scheduler take an outcome, and see that it tells all that is new, and nothing else."""
        requests = self.scheduler.unfinished()
        before = {request: list(request.tokens) for request in requests}
        for request, outcome, n in self.scheduler.apply(outcomes):
            assert request.tokens == [*before.pop(request), *outcome.tokens[:n]]
            assert n or request.finish_reason is not None
        assert all(request.tokens == tokens for request, tokens in before.items())

    def step(self) -> Plan[Request] | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.apply(self.decode(plan))
        return plan

    def run(self) -> None:
        for _ in range(10_000):
            if self.step() is None:
                break
        assert (self.scheduler.n_waiting, self.scheduler.n_running, self.slots.n_running) == (0, 0, 0)


class Schedule:
    """Requests at random, which share prefixes, and are cancelled at any moment."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        pads = random.Random(seed)
        self.machine = Machine(
            rng.randint(1, 5), rng.choice([8, 20, 64]), rng.choice([None, lambda n, *_: 5, lambda n, *_: 30 // (n + 1)]),
            rng.choice(list(Trim)), rng.choice([0, 100, 1000]),
            rng.choice([None, MadeUpPadding(N_CTX_SEQ, lambda _: pads.randrange(4))]),
        )  # fmt: skip
        self.systems = [[rng.randrange(50) for _ in range(rng.randint(1, 60))] for _ in range(3)]
        self.prompts: dict[Request, list[int]] = {}
        self.cancelled: dict[Request, int] = {}  # with how many tokens they had

    def disturb(self, chance: float) -> None:
        """Add some requests, and cancel some."""
        rng, prompts = self.rng, self.prompts
        while rng.random() < chance:
            prompt = [*rng.choice(self.systems), *(rng.randrange(50) for _ in range(rng.randint(0, 20)))]
            if prompts and rng.random() < 0.3:  # the next turn of a conversation
                before = rng.choice(list(prompts))
                prompt = [*prompts[before], *before.tokens, *prompt[:3]]
            prompt = prompt[: N_CTX_SEQ - 1]
            request = self.machine.add(prompt, rng.randint(1, 30), rng.randint(0, 2), str(len(prompts) % 3))
            prompts[request] = prompt
        if prompts and rng.random() < chance / 2:
            request = rng.choice(list(prompts))
            if request.finish_reason is None:
                self.machine.scheduler.finish(request, FinishReason.CANCELLED)
                self.cancelled[request] = len(request.tokens)

    def step(self) -> None:
        """Make a step, or let it fail; more may happen while it is under way."""
        machine, rng = self.machine, self.rng
        plan = machine.scheduler.plan()
        if plan is not None:
            fails = rng.random() < 0.1
            sampled = [] if fails else machine.decode(plan, rng.choice([1, 1, 5]))
            self.disturb(0.2)
            if fails:
                machine.fail(plan, rng)
            else:
                machine.apply(sampled)
        for seq, memory in enumerate(machine.memory):
            assert machine.slots.n_computed(seq) <= len(memory)  # what a failed step has left goes with the next

    def check(self) -> None:
        """See that each request has what it gives alone, or the beginning of it."""
        for request, prompt in self.prompts.items():
            tokens, reason = alone(prompt, request.max_tokens)
            if request in self.cancelled:
                assert request.finish_reason is FinishReason.CANCELLED
                assert request.tokens == tokens[: self.cancelled[request]]
            else:
                assert (request.tokens, request.finish_reason) == (tokens, reason)


@pytest.mark.parametrize("seed", range(200))
def test_any_schedule(seed: int) -> None:
    """Requests that come, share beginnings and are cancelled at any moment: the others give what they give alone."""
    schedule = Schedule(seed)
    for _ in range(60):
        schedule.disturb(0.4)
        schedule.step()
    machine = schedule.machine
    for seq, memory in enumerate(machine.memory):
        assert memory[: len(machine.slots.tokens(seq))] == machine.slots.tokens(seq)[: len(memory)]
    machine.run()
    schedule.check()


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
    """The room that a short one leaves goes to the others."""
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


def test_the_last_slot_is_for_a_tenant_that_has_none() -> None:
    """One that comes while another has long texts begins at once; requests without a tenant use all slots."""
    machine = Machine(4)
    much = [machine.add([i + 1, *[5] * 9], max_tokens=80, tenant="a") for i in range(20)]
    machine.step()
    assert [request.seq is not None for request in much[:5]] == [True, True, True, False, False]
    late = machine.add([45, *[6] * 9], tenant="b")
    machine.step()
    assert late.seq is not None
    machine.run()
    machine = Machine(4)
    for i in range(5):
        machine.add([i + 1, *[5] * 9])
    machine.step()
    assert machine.scheduler.n_running == 4


@pytest.mark.parametrize("floods", [1, 3])
def test_tenants_have_turns_by_tokens(floods: int) -> None:
    """A tenant that comes after hundreds of requests of others gets its share of the tokens as soon as a slot is free."""
    machine = Machine(4)
    others = [
        machine.add([i % 40 + 1, tenant, *[5] * 9], max_tokens=6, tenant=f"other {tenant}")
        for i in range(200)
        for tenant in range(floods)
    ]
    for _ in range(30):
        machine.step()
    n_before = sum(request.finish_reason is not None for request in others)
    late = [machine.add([i + 1, 45, *[6] * 9], max_tokens=6, tenant="late") for i in range(12)]
    while not all(request.finish_reason for request in late):
        assert machine.step() is not None
    n_meanwhile = sum(request.finish_reason is not None for request in others) - n_before
    # The four that had a slot end first; after that each of the tenants gets as much as the late one.
    assert n_meanwhile <= 4 + 1.5 * floods * len(late)
    machine.run()


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
