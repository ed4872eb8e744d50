"""Any operation on any object, in any order, as the rules of a state machine; whole/test_machine.py runs them."""

from helpers.machine.decoding import Decoding
from helpers.machine.memory import Memory
from helpers.machine.sampling import Sampling
from helpers.machine.things import World
from helpers.machine.threads import Threads

__all__ = ["Machine", "World"]


class Machine(Threads, Decoding, Memory, Sampling):
    """A few models, contexts, chains, samplers, adapters and states, and all that can be done with them."""
