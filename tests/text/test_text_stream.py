"""The text of a TextStream depends on the bytes, never on how they were cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from offgrid_llama.text.text_stream import TextStream

EMOJI = "\U0001f999"  # four bytes in UTF-8

# Few letters make collisions likely; the accented ones make stop strings and characters begin with the same bytes.
letters = st.text(alphabet="abé\u00e8\n\U0001f999", max_size=24)
stop_strings = st.lists(st.text(alphabet="abé\u00e8\n\U0001f999", min_size=1, max_size=5), max_size=5)
# Texts made of beginnings of the stop strings, so that the automaton is nearly always deep inside some of them.
dense_stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=5)
dense = dense_stops.flatmap(
    lambda stop: st.tuples(
        st.lists(st.sampled_from([s[:n] for s in stop for n in range(1, len(s) + 1)]), max_size=6).map("".join),
        st.just(stop),
    )
)
# Bytes that are often nearly UTF-8: whole characters, cut ones, lone continuation bytes, overlong forms, surrogates.
whole = [b"a", b"b", b"\xc3\xa9", b"\xf0\x9f\xa6\x99", b"\xef\xbf\xbd"]
cut = [b"\xc3", b"\xa9", b"\xf0\x9f", b"\xe2\x82"]
never = [b"\xff", b"\xf5", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
scraps = st.sampled_from(whole + cut + never)
raw = st.one_of(st.binary(max_size=24), st.lists(scraps, max_size=12).map(b"".join))


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


cut_places = st.lists(st.integers(0, 1000), max_size=12)


def run(pieces: list[bytes], stop: list[str], include_stop: bool = False) -> tuple[str, str | None]:
    stream = TextStream(stop, include_stop=include_stop)
    text = "".join([stream.push(piece) for piece in pieces])
    return text + stream.finish(), stream.stopped


def expected(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Apply the rule itself to the whole text: the earliest beginning, then the shortest."""
    found = [(text.find(s), len(s), s) for s in stop if s in text]
    if not found:
        return text, None
    at, _, hit = min(found)
    return text[:at], hit


@given(raw, cut_places)
@example(b"\xf0\x90a", [1, 2])
@example(b"\xed\xa0\x80", [1, 2])
def test_any_bytes_decode_as_they_do_at_once(data: bytes, cuts: list[int]) -> None:
    """Pieces give what bytes.decode(errors="replace") gives for the whole, for any bytes and any cuts."""
    assert run(pieces_of(data, cuts), []) == (data.decode("utf-8", "replace"), None)


@given(letters, stop_strings, cut_places, st.booleans())
@example("abcd", ["abcd", "bc"], [3], False)
@example("abcx", ["abcd", "bc"], [3], False)
@example("aab", ["ab", "abé"], [1], False)
@example("abéa", ["béb", "é"], [], True)
def test_the_text_ends_at_the_earliest_stop_string(
    text: str, stop: list[str], cuts: list[int], include_stop: bool
) -> None:
    """The output is the text up to the earliest beginning of a stop string, the shortest of those, for any cuts."""
    before, hit = expected(text, stop)
    after = hit if include_stop and hit else ""
    assert run(pieces_of(text.encode(), cuts), stop, include_stop) == (before + after, hit)


@given(dense, cut_places)
@example(("abcz", ["abcd", "b", "c"]), [])
@example(("xyabz", ["xyabq", "yabr", "b"]), [2])
@example(("xabc", ["xabd", "ab", "abc"]), [3])
def test_the_earliest_of_many_that_nearly_match(case: tuple[str, list[str]], cuts: list[int]) -> None:
    """The same rule where several stop strings are under way at once, each inside or over the next."""
    text, stop = case
    assert run(pieces_of(text.encode(), cuts), stop) == expected(text, stop)


@given(raw, stop_strings.map(lambda stop: [*stop, "\ufffd\ufffd"]), cut_places)
def test_stop_strings_are_looked_for_in_the_decoded_text(data: bytes, stop: list[str], cuts: list[int]) -> None:
    """Broken bytes and stop strings together obey the same rule over the decoded text."""
    assert run(pieces_of(data, cuts), stop) == expected(data.decode("utf-8", "replace"), stop)


@given(letters, stop_strings, cut_places)
def test_no_text_is_held_back_without_need(text: str, stop: list[str], cuts: list[int]) -> None:
    """After each piece everything is out that cannot be part of a stop string any more."""
    stream = TextStream(stop)
    out, seen = "", b""
    for piece in pieces_of(text.encode(), cuts):
        out += stream.push(piece)
        seen += piece
        known = seen.decode("utf-8", "ignore")  # the cut may go through a character
        if stream.stopped is None:
            # The longest end of the text that begins a stop string may become one; nothing else may be held back.
            held = max((n for s in stop for n in range(1, len(s) + 1) if known.endswith(s[:n])), default=0)
            assert out == known[: len(known) - held]


def test_an_emoji_of_four_bytes_comes_whole() -> None:
    """A character comes with its last byte, and nothing comes before."""
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in EMOJI.encode()] == ["", "", "", EMOJI]
    assert stream.finish() == ""


def test_a_stop_string_across_pieces() -> None:
    """A stop string is found over the pieces' borders, and text behind it is dropped."""
    stream = TextStream(stop=("</s>", "\n\n"))
    assert [stream.push(p) for p in (b"a<", b"/s", b"> b")] == ["a", "", ""]
    assert stream.stopped == "</s>"
    assert (stream.push(b"more"), stream.finish()) == ("", "")


def test_a_stop_string_cut_inside_a_character() -> None:
    """A border between the bytes of one of its characters does not hide a stop string."""
    data = f"x{EMOJI}{EMOJI}y".encode()
    for cut in range(len(data)):
        assert run([data[:cut], data[cut:]], [EMOJI + EMOJI]) == ("x", EMOJI + EMOJI)


def test_the_beginning_of_a_stop_string_that_is_none() -> None:
    """Held-back text comes out as soon as it is no stop string, and its end may begin a new one."""
    stream = TextStream(stop="aab")
    assert [stream.push(b"a") for _ in range(4)] == ["", "", "a", "a"]
    assert stream.push(b"c") == "aac"
    assert stream.stopped is None


def test_an_earlier_stop_string_may_still_come() -> None:
    """With "abcd" and "bc", "abc" decides nothing; "d", another character or the end does."""
    for rest, out, hit in ((b"d", "", "abcd"), (b"x", "a", "bc"), (b"", "a", "bc")):
        stream = TextStream(stop=("abcd", "bc"))
        assert (stream.push(b"abc"), stream.stopped) == ("", None)
        assert stream.push(rest) + stream.finish() == out
        assert stream.stopped == hit


def test_the_shorter_of_two_that_begin_together() -> None:
    """Of two stop strings that begin at the same place the shorter is hit, at once."""
    stream = TextStream(stop=("stopped", "stop"), include_stop=True)
    assert stream.push(b"a stop") == "a stop"
    assert stream.stopped == "stop"


def test_finish_gives_the_rest_once() -> None:
    """finish() gives held-back text and U+FFFD for incomplete bytes; then "", and push() is refused."""
    stream = TextStream(stop="<|end|>")
    assert stream.push(b"a<|en\xf0\x9f") == "a"
    assert stream.finish() == "<|en\ufffd"
    assert stream.finish() == ""
    with pytest.raises(ValueError, match="after finish"):
        stream.push(b"a")


def test_finish_may_complete_a_stop_string() -> None:
    """The U+FFFD of incomplete bytes counts as text."""
    stream = TextStream(stop="a\ufffd")
    assert stream.push(b"ba\xc3") == "b"
    assert (stream.finish(), stream.stopped) == ("", "a\ufffd")


@pytest.mark.parametrize(
    "data",
    [b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\x80", b"a\xbf\xbfb", b"\xf4\x90\x80\x80", b"\xed\xbf"],
)
def test_broken_bytes_one_at_a_time(data: bytes) -> None:
    """Overlong forms, lone continuation bytes, surrogates and too large numbers, byte by byte."""
    assert run([bytes([byte]) for byte in data], []) == (data.decode("utf-8", "replace"), None)


@pytest.mark.parametrize("stop", ["", ["a", ""], "\ud800"])
def test_a_stop_string_that_can_never_be_hit_is_refused(stop: str | list[str]) -> None:
    """An empty stop string or one with a lone surrogate is a ValueError that names the argument."""
    with pytest.raises(ValueError, match="stop: "):
        TextStream(stop)


def test_wrong_types_are_refused() -> None:
    """Stop strings are str, pieces are bytes."""
    with pytest.raises(TypeError, match=r"stop: .*bytes"):
        TextStream([b"a"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        TextStream().push("a")  # type: ignore[arg-type]


def test_work_is_linear_in_the_text() -> None:
    """100,000 pieces against four stop strings of 1,000 characters that always nearly match: two moves a character."""
    stop = ["a" * 999 + "b", "a" * 500 + "c" * 500, "ba" * 499 + "cc", "c" + "a" * 998 + "d"]
    stream = TextStream(stop)
    out = 0
    for i in range(100_000):
        out += len(stream.push(b"a" if i % 1997 else b"x"))
    out += len(stream.finish())
    assert (out, stream.stopped) == (100_000, None)
    # The held-back text is at most 998 characters longer than what fell off, so two moves a character are the most.
    assert 100_000 <= stream.steps <= 200_000


def test_without_a_candidate_the_automaton_rests() -> None:
    """Text that holds no first character of a stop string costs no moves at all."""
    stream = TextStream(stop=("</s>", "\n\n"))
    assert stream.push(b"plain text " * 1000) == "plain text " * 1000
    assert stream.steps == 0
