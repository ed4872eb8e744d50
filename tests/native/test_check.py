"""Arguments that are out of range, told as a caller reads them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from offgrid_llama.native.check import INT32_MAX, number, real, refuse_unknown

LARGEST = 3.4028234663852886e38


@pytest.mark.parametrize(
    ("check", "value", "low", "high", "says"),
    [
        (real, -1, 0, LARGEST, "x must be 0 or more, not -1"), (real, 1.5, 0, 1, "x must be from 0 to 1, not 1.5"),
        (real, 5, -LARGEST, 1.5, "x must be 1.5 or less, not 5"),
        (real, 1e39, 0, LARGEST, "x must be from 0 to 3.40282e\\+38"),
        (real, math.nan, 0, LARGEST, "x must be a finite number, 0 or more, not nan"),
        (real, math.inf, 0, 1, "x must be a finite number, from 0 to 1, not inf"),
        (real, math.inf, -math.inf, math.inf, "x must be a finite number, not inf"),
        (number, 0, 1, INT32_MAX, "x must be 1 or more, not 0"), (number, 0, 1, 2**63, "x must be 1 or more, not 0"),
        (number, 2**31, 1, INT32_MAX, "x must be from 1 to 2147483647, not 2147483648"),
        (number, 9, 1, 8, "x must be from 1 to 8, not 9"), (number, -(2**31) - 1, -(2**31), INT32_MAX, "from -2147483648"),
    ],
)  # fmt: skip
def test_ranges(check: Any, value: float, low: float, high: float, says: str) -> None:
    """A range is told without an end that is but the largest number of its C type."""
    with pytest.raises(ValueError, match=f"{says}"):
        check("x", value, low, high)


def test_an_unknown_argument() -> None:
    """It is told with the function, and with the name that may be meant, where one is near."""
    refuse_unknown("f", ["a"], ["a", "b"])
    with pytest.raises(TypeError, match=r"^f\(\) takes no argument 'nane'; did you mean 'name'\?$"):
        refuse_unknown("f", ["name", "nane"], ["name"])
    with pytest.raises(TypeError, match=r"^f\(\) takes no argument 'zebra'$"):
        refuse_unknown("f", ["zebra"], ["name"])
