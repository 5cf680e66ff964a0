"""Coercion of arguments: canonical types come out; errors say the name, what was expected and what came."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalefield._validate import as_count, as_flag, as_float, as_seed, as_vector


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float64(2.0), np.float32(2.0), np.int8(2), np.uint64(2), Fraction(2), np.longdouble(2)]
)
def test_as_float_accepts_every_real_number(value):
    result = as_float("x", value)
    assert type(result) is float
    assert result == 2.0


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        "2",
        b"2",
        None,
        [2.0],
        np.array(2.0),
        np.array([2.0]),
        1j,
        np.complex128(1.0),
        np.complex64(1.0 + 2.0j),
        Decimal(2),
    ],
)
def test_as_float_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^weight must be a real number, got .* of type \w+$") as caught:
        as_float("weight", value)
    assert repr(value) in str(caught.value)
    assert type(value).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("value", "settings", "expected"),
    [
        (math.nan, {}, "a finite number"),
        (math.inf, {}, "a finite number"),
        (-math.inf, {}, "a finite number"),
        (np.float32("nan"), {}, "a finite number"),
        (10**400, {}, "a finite number"),
        (math.nan, {"allow_inf": True}, "a number"),
        (-1.0, {"minimum": 0.0}, "a finite number at least 0"),
        (-5e-324, {"minimum": 0.0}, "a finite number at least 0"),
        (0.0, {"minimum": 0.0, "exclusive": True}, "a finite number greater than 0"),
        (-0.0, {"minimum": 0.0, "exclusive": True}, "a finite number greater than 0"),
        (-math.inf, {"minimum": 0.0, "allow_inf": True}, "a number at least 0"),
        (math.inf, {"minimum": 0.0}, "a finite number at least 0"),
        (1e-14, {"minimum": 1e-13}, "a finite number at least 1e-13"),
    ],
)
def test_as_float_refuses_values_out_of_range(value, settings, expected):
    with pytest.raises(ValueError, match=f"^weight must be {expected}, got ") as caught:
        as_float("weight", value, **settings)
    assert str(caught.value).endswith(repr(value))


def test_as_float_bounds_are_as_stated():
    assert as_float("x", 0, minimum=0.0) == 0.0
    assert as_float("x", 5e-324, minimum=0.0, exclusive=True) == 5e-324
    assert as_float("x", math.inf, allow_inf=True) == math.inf
    assert as_float("x", -math.inf, allow_inf=True) == -math.inf


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3.0), np.float64(3.0)])
def test_as_count_accepts_integers_and_integral_floats(value):
    result = as_count("n", value)
    assert type(result) is int
    assert result == 3


def test_as_count_is_exact_for_large_integers():
    assert as_count("n", 2**70 + 1) == 2**70 + 1
    assert as_count("n", 1e15) == 10**15


@pytest.mark.parametrize("value", [True, np.True_, "3", b"3", None, [3], np.array([3]), 3j, Decimal(3), Fraction(3)])
def test_as_count_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^n_modes must be an integer, got .* of type \w+$"):
        as_count("n_modes", value)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, -math.inf, np.float32(0.5), 0.0, -(2**70)])
def test_as_count_refuses_values_out_of_range(value):
    with pytest.raises(ValueError, match=r"^n_modes must be an integer of at least 1, got ") as caught:
        as_count("n_modes", value)
    assert str(caught.value).endswith(repr(value))


def test_as_count_minimum():
    assert as_count("n", 0, minimum=0) == 0
    with pytest.raises(ValueError, match=r"^n must be an integer of at least 5, got 4$"):
        as_count("n", 4, minimum=5)


@given(st.integers(0, 2**63 - 1))
def test_as_seed_returns_a_given_seed(seed):
    assert as_seed("seed", seed) == seed
    assert type(as_seed("seed", seed)) is int


def test_as_seed_draws_a_fresh_one_for_none():
    seeds = [as_seed("seed", None) for _ in range(64)]
    # 64 draws of 63 bits agree somewhere with probability 2e-16.
    assert len(set(seeds)) == 64
    assert all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    # All below 2^62, as if a bit were lost, with probability 2^-64.
    assert max(seeds) >= 2**62


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "seed must be an integer of at least 0, got -1"),
        (2**63, ValueError, f"seed must be an integer below 2**63, got {2**63}"),
        (0.5, ValueError, "seed must be an integer of at least 0, got 0.5"),
        ("0", TypeError, "seed must be an integer, got '0' of type str"),
        (False, TypeError, "seed must be an integer, got False of type bool"),
    ],
)
def test_as_seed_refuses(value, error, message):
    with pytest.raises(error) as caught:
        as_seed("seed", value)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value", [[1, 2], (1.0, 2.0), np.array([1, 2], dtype=np.uint8), np.array([1.0, 2.0], dtype=np.float32), range(1, 3)]
)
def test_as_vector_returns_new_float64_arrays(value):
    result = as_vector("x", value)
    assert result.dtype == np.float64
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, [1.0, 2.0])


def test_as_vector_copies():
    given_array = np.array([1.0, 2.0, 3.0, 4.0])
    result = as_vector("x", given_array[::2])
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, given_array)
    assert not np.shares_memory(as_vector("x", given_array), given_array)


@pytest.mark.parametrize(
    "value",
    [["1", "2"], [1j, 2.0], [None, 1.0], [True, False], [[1.0], [1.0, 2.0]], "12", b"12", None, {1: 2}, [10**30]],
)
def test_as_vector_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^eigenvalues must be an array of real numbers, got "):
        as_vector("eigenvalues", value)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (3.0, {}, r"eigenvalues must have one dimension, got shape \(\)"),
        ([[1.0, 2.0]], {}, r"eigenvalues must have one dimension, got shape \(1, 2\)"),
        ([], {}, "eigenvalues must have at least one entry, got none"),
        ([1.0, math.nan], {}, r"eigenvalues must be finite, got .*nan.* at index 1"),
        ([math.inf, 1.0], {}, r"eigenvalues must be finite, got .*inf.* at index 0"),
        ([1.0, 2.0, -3.5], {"minimum": 0.0}, r"eigenvalues must be finite and at least 0, got .*-3\.5.* at index 2"),
    ],
)
def test_as_vector_refuses_values(value, settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        as_vector("eigenvalues", value, **settings)


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_as_flag_accepts_bools(value):
    result = as_flag("rich", value)
    assert type(result) is bool
    assert result == value


@pytest.mark.parametrize("value", [0, 1, 1.0, "True", None, [True], np.array(True)])
def test_as_flag_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^rich must be True or False, got .* of type \w+$"):
        as_flag("rich", value)
