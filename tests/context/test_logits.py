"""Logits: an array that can be read in every way and written in none, and that ends with its step."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.twin import N_VOCAB, TOKENS, decode

Row = Any  # Logits acts as an array by NumPy's protocols, which types do not tell


@pytest.fixture
def context(tiny: og.Model) -> Iterator[og.Context]:
    """A context after a decode of TOKENS, with logits for each."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        yield context


@pytest.fixture
def row(context: og.Context) -> Row:
    """The last row."""
    return context.logits(-1)


def step(context: og.Context) -> None:
    """Overwrite the logits with others."""
    decode(context, [1], context.memory.positions(0).stop)


# Reading --------------------------------------------------------------------------------------------------------------


def test_it_is_an_array_of_float32(row: Row) -> None:
    """Shape, type and size are those of float32[n_vocab]."""
    assert (row.shape, row.dtype, row.ndim, row.size, len(row)) == ((N_VOCAB,), np.float32, 1, N_VOCAB, N_VOCAB)
    assert (row.nbytes, row.itemsize, row.strides) == (4 * N_VOCAB, 4, (4,))
    assert row.row == len(TOKENS) - 1
    assert repr(row) == f"<Logits of row {len(TOKENS) - 1}: float32[{N_VOCAB}]>"
    assert np.isfinite(row).all()


INDICES: list[Any] = [
    3, -1, np.int64(5), slice(None), slice(2, 9), slice(None, None, -2), [4, 1, 1], np.array([0, 60]), ..., None, (),
    np.arange(N_VOCAB) % 2 == 0,
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_indices(index: Any, row: Row) -> None:
    """Every index that an array takes gives what it gives on a copy."""
    np.testing.assert_array_equal(row[index], row.copy()[index])


@pytest.mark.parametrize("index", [N_VOCAB, -N_VOCAB - 1, "a", (0, 0), 1.5])
def test_wrong_indices(index: Any, row: Row) -> None:
    """A wrong index is NumPy's own error."""
    with pytest.raises(IndexError):
        row[index]


UNARY: list[Callable[[Any], Any]] = [
    operator.neg, abs, np.exp, np.positive, np.isnan, np.sort, np.argsort, np.argmax, np.max, np.sum, np.mean, np.std,
    np.cumsum, lambda x: np.split(x, 1),
    np.unique, np.flip, np.ravel, np.atleast_2d, np.squeeze, np.copy, np.transpose, np.isneginf, np.median,
    np.nonzero, np.modf, np.frexp, np.add.reduce, np.maximum.accumulate, list, sorted, tuple, max,
    lambda x: np.partition(x, 5), lambda x: np.argpartition(x, -3), lambda x: np.percentile(x, [5, 95]),
    lambda x: np.clip(x, -1, 1), lambda x: np.where(x > 0, x, 0), lambda x: np.concatenate([x, x[:3]]),
    lambda x: np.stack([x, x]), lambda x: np.take(x, [1, 2]), lambda x: np.broadcast_to(x, (2, N_VOCAB)),
    lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(), np.linalg.norm, lambda x: np.dot(x, x),
    lambda x: x @ x, lambda x: np.outer(x, x), lambda x: np.subtract.outer(x, x), lambda x: np.pad(x, 2),
    lambda x: np.asarray(x, dtype=np.float64), np.array, lambda x: np.array([x, x]), lambda x: x[3] in x,
]  # fmt: skip


@pytest.mark.parametrize("function", UNARY, ids=range(len(UNARY)))
def test_functions(function: Callable[[Any], Any], row: Row) -> None:
    """NumPy's functions and Python's give what they give on a copy."""
    got, expected = function(row), function(row.copy())
    assert type(got) is type(expected)
    np.testing.assert_array_equal(got, expected)


OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.lt, operator.ge,
    operator.eq, operator.ne,
]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATORS)
def test_operators(operation: Callable[[Any, Any], Any], row: Row, context: og.Context) -> None:
    """Operators work with numbers, arrays and other rows, on both sides."""
    other = context.logits(0)
    for value in (2.5, np.float32(3), np.arange(1, N_VOCAB + 1), other, row):
        plain = value.copy() if isinstance(value, og.Logits) else value
        np.testing.assert_array_equal(operation(row, value), operation(row.copy(), plain))
        np.testing.assert_array_equal(operation(value, row), operation(plain, row.copy()))


METHODS: list[tuple[str, tuple[Any, ...]]] = [
    ("argmax", ()), ("argmin", ()), ("max", ()), ("min", ()), ("sum", ()), ("mean", ()), ("std", ()), ("argsort", ()),
    ("argpartition", (5,)), ("tolist", ()), ("item", (7,)), ("astype", (np.float64,)), ("astype", (np.float32,)),
    ("reshape", (1, -1)), ("ravel", ()), ("flatten", ()), ("view", ()), ("view", (np.uint32,)), ("squeeze", ()),
    ("swapaxes", (0, 0)), ("transpose", ()), ("repeat", (2,)), ("take", ([1, 2],)), ("clip", (-1, 1)), ("round", (2,)),
    ("searchsorted", (0.5,)), ("tobytes", ()), ("nonzero", ()), ("dot", (np.ones(N_VOCAB),)), ("cumsum", ()), ("any", ()),
    ("compress", ([True, False, True],)), ("diagonal", ()), ("copy", ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), METHODS, ids=lambda value: value if isinstance(value, str) else "")
def test_methods(name: str, arguments: tuple[Any, ...], row: Row) -> None:
    """The methods of ndarray give what they give on a copy."""
    if name == "diagonal":  # for two dimensions
        with pytest.raises(ValueError, match="two dim"):
            row.diagonal()
        return
    np.testing.assert_array_equal(getattr(row, name)(*arguments), getattr(row.copy(), name)(*arguments))


def test_what_no_array_has(row: Row) -> None:
    """Other names are AttributeErrors, as for an array."""
    with pytest.raises(AttributeError):
        _ = row.nonsense
    with pytest.raises(TypeError):
        hash(row)


# Nothing gets out -----------------------------------------------------------------------------------------------------


def outputs(row: Row) -> Iterator[Any]:
    """Everything that the tests above get from a row."""
    for index in INDICES:
        yield row[index]
    for function in UNARY:
        yield function(row)
    for name, arguments in METHODS:
        if name != "diagonal":
            yield getattr(row, name)(*arguments)
    yield from (
        row.T,
        row.real,
        row.imag,
        np.asarray(row),
        np.asarray(row, dtype=np.float32),
        np.ascontiguousarray(row),
    )
    yield from (
        np.require(row, requirements="W"),
        np.asanyarray(row),
        np.real(row),
        np.shape(row),
        np.lib.stride_tricks,
    )
    yield from (
        np.broadcast_arrays(row, row),
        np.meshgrid(row, copy=False),
        np.array_split(row, 3),
        np.nditer(row.copy()),
    )
    yield from (np.lib.stride_tricks.sliding_window_view(row, 3), np.lib.stride_tricks.as_strided(row, (3,), (4,)))
    yield from (row.copy(), iter(row), reversed(row), row.flags, row.argmax)


def arrays(value: Any) -> Iterator[npt.NDArray[Any]]:
    """Return the arrays in a value."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays(item)


def test_no_output_shares_the_memory(context: og.Context, row: Row) -> None:
    """Every result of a row keeps its numbers when the next decode overwrites llama.cpp's."""
    kept = [array for value in outputs(row) for array in arrays(value)]
    assert len(kept) > 80
    before = [array.copy() for array in kept]
    step(context)
    with pytest.raises(og.StaleLogitsError):
        row.copy()
    for array, numbers in zip(kept, before, strict=True):
        np.testing.assert_array_equal(array, numbers)


def test_outputs_can_be_written(row: Row) -> None:
    """A result is the caller's own: writing to a slice, a copy or an array of a row does not reach the row."""
    before = row.copy()
    for array in (
        row[:],
        row[2:5],
        row.T,
        row.reshape(1, -1),
        row.astype(np.float32, copy=False),
        np.asarray(row),
        row.view(),
    ):
        array[...] = 7
    np.testing.assert_array_equal(row, before)


@pytest.mark.parametrize(
    "take",
    [
        memoryview,
        bytes,
        lambda row: np.frombuffer(row, np.float32),
        lambda row: np.asarray(row, copy=False),
        lambda row: row.__array__(copy=False),
        lambda row: row.data,
        lambda row: row.base,
        lambda row: row.ctypes,
        lambda row: row.flat,
        lambda row: row.__array_interface__,
        lambda row: row.__array_struct__,
        lambda row: row.__dlpack__(),
        lambda row: row.__buffer__(0),
        np.from_dlpack,
        np.ndarray.view,
        lambda row: np.ndarray.__getitem__(row, slice(None)),
        pickle.dumps,
        copy.deepcopy,
    ],
)
def test_the_memory_is_not_given_out(take: Callable[[Row], Any], row: Row) -> None:
    """Every way to an array's memory is closed."""
    with pytest.raises((TypeError, AttributeError, ValueError)):
        take(row)


class Curious(np.ndarray[Any, Any]):
    """A subclass that keeps what it is made from."""

    seen: list[Any]

    def __array_finalize__(self, source: Any) -> None:
        """Keep what NumPy shows."""
        Curious.seen.append(source)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Keep what NumPy shows."""
        Curious.seen.append(context)
        return super().__array_wrap__(array, context, return_scalar)


class Protocol:
    """An operand that has its own ufuncs, as arrays of other libraries do."""

    seen: list[Any]

    def __array_ufunc__(self, _ufunc: Any, _method: str, *inputs: Any, **_: Any) -> int:
        """Keep what NumPy shows."""
        Protocol.seen.append(inputs)
        return 0


@pytest.mark.parametrize(
    "use",
    [
        lambda row: row.view(Curious),
        lambda row: row + np.zeros(N_VOCAB).view(Curious),
        lambda row: np.add(row, 1, out=np.zeros(N_VOCAB).view(Curious)),
        lambda row: row.sum(out=np.zeros(()).view(Curious)),
        lambda row: np.add.reduce(row, out=np.zeros(()).view(Curious)),
        lambda row: row + Protocol(),
        lambda row: Protocol() * row,
        lambda row: row.clip(Protocol(), None),
        lambda row: np.multiply(row, 2, out=np.zeros(N_VOCAB), where=np.ones(N_VOCAB, bool)),
    ],
)
def test_other_libraries_do_not_see_the_memory(use: Callable[[Row], Any], context: og.Context, row: Row) -> None:
    """Subclasses of ndarray and operands with their own protocol get copies, which they may keep."""
    Curious.seen, Protocol.seen = [], []
    use(row)

    def all_arrays(value: Any) -> Iterator[npt.NDArray[Any]]:
        if isinstance(value, np.ndarray):
            base = value
            while isinstance(base.base, np.ndarray):
                base = base.base
            yield base
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from all_arrays(item)

    for array in [*all_arrays(Curious.seen), *all_arrays(Protocol.seen)]:
        assert array.base is None, "a view of memory that is not NumPy's"
    Curious.seen, Protocol.seen = [], []


# Read-only ------------------------------------------------------------------------------------------------------------


def in_place(operation: str) -> Callable[[Row], object]:
    return lambda row: getattr(operator, operation)(row, 2)


WRITES: list[Callable[[Row], object]] = [
    lambda row: operator.setitem(row, 0, 1),
    lambda row: operator.delitem(row, 0),
    in_place("iadd"), in_place("isub"), in_place("imul"), in_place("itruediv"), in_place("ipow"),
    lambda row: np.exp(row, out=row),
    lambda row: np.add(1, 2, out=(row,)),
    lambda row: np.add.at(row, [0], 1),
    lambda row: np.maximum.accumulate(row, out=row),
    lambda row: np.add.reduceat(row, [0], out=row),
    lambda row: np.copyto(row, 0),
    lambda row: np.put(row, [0], [1]),
    lambda row: np.place(row, np.ones(N_VOCAB, bool), [1]),
    lambda row: np.putmask(row, np.ones(N_VOCAB, bool), [1]),
    lambda row: np.clip(np.zeros(N_VOCAB), 0, 1, out=row),
    lambda row: np.sum(np.zeros((2, N_VOCAB), np.float32), axis=0, out=row),
    lambda row: np.dot(np.zeros(3), np.zeros((3, N_VOCAB)), out=row),
    lambda row: np.concatenate([np.zeros(N_VOCAB, np.float32)], out=row),
    lambda row: np.put_along_axis(row, np.array([0]), 1, 0),
    lambda row: np.nan_to_num(row, copy=False, nan=1.0),
    lambda row: np.random.default_rng(0).standard_normal(N_VOCAB, np.float32, out=row),
    lambda row: row.fill(0),
    lambda row: row.sort(),
    lambda row: row.partition(3),
    lambda row: row.put([0], [1]),
    lambda row: row.byteswap(inplace=True),
    lambda row: row.resize(3),
    lambda row: row.setfield(1, np.float32),
    lambda row: row.cumsum(out=row),
    lambda row: row.clip(0, 1, out=row),
    lambda row: setattr(row, "shape", (1, N_VOCAB)),
    lambda row: setattr(row, "dtype", np.int32),
]  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=range(len(WRITES)))
def test_writes_are_refused(write: Callable[[Row], object], row: Row) -> None:
    """Nothing that would write to an array reaches llama.cpp's, and each says so."""
    before = row.copy()
    with pytest.raises((TypeError, ValueError, AttributeError)):
        write(row)
    np.testing.assert_array_equal(row, before)


# One step only --------------------------------------------------------------------------------------------------------

USES: list[Callable[[Row], object]] = [
    lambda row: row.copy(),
    lambda row: row[0],
    lambda row: row.max(),
    lambda row: row.argmax(),
    lambda row: row + 1,
    lambda row: 1 + row,
    lambda row: row == 1,
    np.asarray,
    np.exp,
    np.argmax,
    lambda row: np.stack([row, row]),
    list,
    lambda row: row.T,
    lambda row: row.tolist(),
    lambda row: 1.0 in row,
]


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
def test_after_the_next_decode(use: Callable[[Row], object], context: og.Context, row: Row) -> None:
    """After a later decode every use raises StaleLogitsError, also through a method taken before."""
    maximum = row.max
    step(context)
    with pytest.raises(og.StaleLogitsError, match=r"copy\(\)"):
        use(row)
    with pytest.raises(og.StaleLogitsError):
        maximum()
    assert "stale" in repr(row)


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
def test_after_close(use: Callable[[Row], object], context: og.Context, row: Row) -> None:
    """After the context is closed every use raises ClosedError."""
    context.close()
    with pytest.raises(og.ClosedError, match="Context"):
        use(row)
    assert "stale" in repr(row)


def test_a_failed_decode_makes_it_stale(context: og.Context, row: Row) -> None:
    """Also a decode that fails may have overwritten the logits."""
    with pytest.raises(og.InvalidBatch):
        decode(context, TOKENS, 200)
    with pytest.raises(og.StaleLogitsError):
        row.copy()


def test_memory_operations_leave_it_alone(context: og.Context, row: Row) -> None:
    """Changes of the memory do not touch the logits."""
    before = row.copy()
    context.memory.remove(0, 3, 5)
    context.memory.shift(0, 5, -1, -2)
    context.memory.clear()
    context.set_n_threads(2)
    np.testing.assert_array_equal(row, before)


def test_rows_of_one_step_mix(context: og.Context) -> None:
    """Several rows of a step work together, rows of two contexts, too."""
    rows = [context.logits(i) for i in range(3)]
    np.testing.assert_array_equal(np.stack(rows), np.stack([row.copy() for row in rows]))
    np.testing.assert_array_equal(rows[0] + rows[1] - rows[2], rows[0].copy() + rows[1].copy() - rows[2].copy())
    with og.Context(context.model, n_ctx=256, n_threads=1) as other:
        decode(other, TOKENS)
        np.testing.assert_array_equal(other.logits(1) - rows[1], np.zeros(N_VOCAB))


def test_rows_of_two_contexts_in_two_threads(tiny: og.Model) -> None:
    """Two threads that add the rows of two contexts, each in the other order, do not wait for each other forever."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as one, og.Context(tiny, n_ctx=256, n_threads=1) as two:
        decode(one, TOKENS)
        decode(two, TOKENS)
        a, b = one.logits(-1), two.logits(-1)
        barrier = threading.Barrier(2)

        def work(left: Row, right: Row) -> None:
            barrier.wait()
            for _ in range(300):
                np.add(left, right)
                left.dot(right)
                left[:1] @ right[:1]

        threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in ((a, b), (b, a))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


def test_it_keeps_no_context_alive_in_secret(tiny: og.Model) -> None:
    """A row holds its context, as a view holds its array; when both are dropped, nothing stays."""
    context = og.Context(tiny, n_ctx=256, n_threads=1)
    decode(context, TOKENS)
    row = context.logits(-1)
    context.close()
    del context
    gc.collect()
    with pytest.raises(og.ClosedError):
        row.copy()
