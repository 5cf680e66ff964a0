"""The counter-based normal deviates against plain references."""

from __future__ import annotations

import numpy as np
import pytest

from reference_simulation import normals, philox_scalar, stream_key
from scalefield._native import rng

KEY_OF_SEED_0 = (3757552657, 2018376492)


def words(*values: int) -> list[np.uint64]:
    return [np.uint64(value) for value in values]


def fill(n: int, *, key=(11, 12), c1=0, c2=0, c3=0, first=0) -> np.ndarray:
    out = np.full(n, np.nan)
    rng.fill_normals(*words(*key, c1, c2, c3, first), out)
    return out


def test_philox_known_answers():
    # Random123's kat_vectors for philox4x32-10.
    top = 0xFFFFFFFF
    assert rng.philox(*words(0, 0, 0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert rng.philox(*words(*[top] * 6)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert rng.philox(
        *words(0xA4093822, 0x299F31D0, 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    ) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_philox_against_python_integers():
    for row in np.random.default_rng(0).integers(0, 2**32, size=(200, 6)).tolist():
        assert rng.philox(*words(*row)) == philox_scalar(tuple(row[:2]), tuple(row[2:]))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 63, 64, 1001])
def test_normals_against_box_muller_with_libm(n):
    """The polynomials are good to about 1e-16, and a deviate is at most 7: 1e-14 leaves a factor 10."""
    key = (0x12345678, 0xFEDCBA98)
    expected = normals(key, n, 7, 8, 9)
    np.testing.assert_allclose(fill(n, key=key, c1=7, c2=8, c3=9), expected, rtol=0, atol=1e-14)


def test_pair_at_extreme_words():
    """The largest radius is sqrt(2 log 2^33); every octant boundary; log near 1 keeps its relative accuracy."""
    top = 2**32 - 1
    angles = [0, 1, top, *(k * 2**29 + d for k in range(1, 8) for d in (-1, 0, 1))]
    for radial in (0, 1, 2**31 - 1, 2**31, 3037000499, 3037000500, top - 1, top):
        radius = np.sqrt(-2.0 * np.log1p(-(2.0**32 - radial - 0.5) / 2.0**32)) if radial > 2**31 else np.sqrt(
            -2.0 * np.log((radial + 0.5) / 2.0**32)
        )
        for angular in angles:
            angle = 2.0 * np.pi * ((angular + 0.5) / 2.0**32)
            pair = rng.normal_pair(*words(radial, angular))
            expected = (radius * np.cos(angle), radius * np.sin(angle))
            # libm sees an angle rounded to 4e-16 (ours is reduced exactly), hence the absolute part.
            np.testing.assert_allclose(pair, expected, rtol=2e-15, atol=2e-15 * radius)
    assert np.hypot(*rng.normal_pair(*words(0, 123))) == pytest.approx(np.sqrt(2.0 * np.log(2.0**33)), rel=1e-15)


def test_blocks_are_addressed():
    """Any part of a stream has the same bits as the whole, whatever loop remainder computes it."""
    whole = fill(4000, c1=3)
    for first, n in [(0, 1), (0, 17), (1, 4), (3, 2), (5, 3000), (250, 3000), (999, 4)]:
        np.testing.assert_array_equal(fill(n, c1=3, first=first), whole[4 * first : 4 * first + n])


def test_counter_words_and_keys_all_matter():
    base = fill(64)
    for change in ({"key": (11, 13)}, {"key": (10, 12)}, {"c1": 1}, {"c2": 1}, {"c3": 1}, {"first": 1}):
        assert not np.intersect1d(base[:4], fill(64, **change)[:4]).size


def test_stream_keys():
    seeds = [0, 1, 2**63 - 1]
    streams = [rng.PROJECTION, rng.FEATURES, rng.LABEL_NOISE]
    keys = {rng.stream_key(seed, stream) for seed in seeds for stream in streams}
    assert len(keys) == 9
    for seed in seeds:
        for stream in streams:
            assert rng.stream_key(seed, stream) == stream_key(seed, stream)
    # Kept for ever: these change only if NumPy's SeedSequence or the numbering does.
    assert rng.stream_key(0, rng.PROJECTION) == KEY_OF_SEED_0
