"""Any operation on any object, in any order, from two threads: each does what ``oracle.py`` says, or raises what it says.

The machine holds a few slots of each kind of object. A rule takes an object of a slot, open or closed, or makes one; so
what is closed is used once more, where ClosedError must come. No choice of a rule depends on what threads did before, so
that Hypothesis can go the same way again. ``pytest tests/whole/test_machine.py --machine-steps=100000`` goes on for longer.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from helpers.machine import Machine, World

STEPS = 1000
"""Steps of one test; as many tests are run as ``--machine-steps`` asks for."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The files; and threads that change often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield World(tmp_path_factory.mktemp("machine"))
    sys.setswitchinterval(interval)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", range(-(-metafunc.config.getoption("--machine-steps") // STEPS)))


def test_any_operations_in_any_order(chapter: int, world: World) -> None:
    """After any operations what is open, what is in memory and what is computed are what the oracle says."""
    world.steps = 0
    gc.collect()
    gc.freeze()  # so that a collection looks at the machine's objects only
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for part in range(10):
                run_state_machine_as_test(
                    seed(chapter * 1000 + part)(lambda: Machine(world, caught)),  # type: ignore[arg-type]
                    settings=settings(
                        max_examples=10, stateful_step_count=50, deadline=None, database=None, phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    ),
                )  # fmt: skip
                if world.steps >= STEPS:
                    break
    finally:
        gc.unfreeze()
    assert world.steps >= STEPS
    world.total += world.steps


def test_the_steps_were_run(world: World, request: pytest.FixtureRequest) -> None:
    """The chapters above have really run as many steps as were asked for, 10,000 by default."""
    if not world.total:
        pytest.skip("the chapters were not run")
    assert world.total >= request.config.getoption("--machine-steps")
