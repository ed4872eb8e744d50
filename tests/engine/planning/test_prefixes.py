"""PrefixIndex against a dict of lists, and how long a look-up takes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from offgrid_llama.engine.planning.prefixes import PrefixIndex, _Node

texts = st.lists(st.integers(0, 2), max_size=12)  # few tokens, so that beginnings are shared
holders = st.integers(0, 6)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Index(RuleBasedStateMachine):
    """Any operations in any order, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.index: PrefixIndex[int] = PrefixIndex()
        self.known: dict[int, list[int]] = {}

    @rule(holder=holders, tokens=texts)
    def extend(self, holder: int, tokens: list[int]) -> None:
        self.index.extend(holder, tokens)
        self.known.setdefault(holder, []).extend(tokens)

    @rule(holder=holders)
    def remove(self, holder: int) -> None:
        if self.known.pop(holder, None) is not None:
            self.index.remove(holder)
        assert holder not in self.index

    @rule(holder=holders, length=st.integers(0, 15))
    def truncate(self, holder: int, length: int) -> None:
        if holder in self.known:
            self.index.truncate(holder, length)
            del self.known[holder][length:]

    @rule(tokens=texts)
    def longest(self, tokens: list[int]) -> None:
        lengths = {holder: shared(text, tokens) for holder, text in self.known.items()}
        best = max(lengths.values(), default=0)
        length, found = self.index.longest(tokens)
        assert length == best
        assert set(found) == ({holder for holder, n in lengths.items() if n == best} if best else set())

    @rule(tokens=texts)
    def begun_by(self, tokens: list[int]) -> None:
        found = {(holder, len(text)) for holder, text in self.known.items() if text and text == tokens[: len(text)]}
        assert set(self.index.begun_by(tokens)) == found

    @invariant()
    def knows_all(self) -> None:
        assert len(self.index) == len(self.known)
        assert all(self.index.tokens(holder) == text for holder, text in self.known.items())

    @invariant()
    def is_as_small_as_can_be(self) -> None:
        """No node is empty, and each is the end of a text or a fork of two."""
        nodes: list[_Node[int]] = list(self.index._root.children.values())
        while nodes:
            node = nodes.pop()
            assert node.edge
            assert node.holders
            ends = set(node.holders) - {holder for child in node.children.values() for holder in child.holders}
            assert ends or len(node.children) > 1
            assert all(child.parent is node for child in node.children.values())
            nodes += node.children.values()


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
