"""Spectra: what they hold, what they refuse, and their files."""

import dataclasses
import json
import math
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scalefield as sf
from scalefield import _files
from scalefield.errors import ScalefieldError, SpectrumFileError
from scalefield.spectrum import Task
from strategies import explicit_spectra, mode_lists, power_laws, tasks

# ---------------------------------------------------------------------------------------------- Spectrum


@settings(deadline=None)
@given(mode_lists())
def test_modes_are_sorted_together(modes):
    spectrum = sf.Spectrum(*modes)
    assert spectrum.n_modes == len(spectrum.eigenvalues) == len(spectrum.target_coefficients) == len(modes[0])
    assert (np.diff(spectrum.eigenvalues) <= 0.0).all()
    # Nothing lost or re-paired: the same pairs, each as often as given.
    given_pairs = sorted(zip(*modes, strict=True))
    pairs = sorted(zip(spectrum.eigenvalues.tolist(), spectrum.target_coefficients.tolist(), strict=True))
    assert pairs == given_pairs


@settings(deadline=None)
@given(mode_lists(), st.randoms(use_true_random=False))
def test_the_order_given_does_not_matter(modes, random):
    pairs = list(zip(*modes, strict=True))
    random.shuffle(pairs)
    shuffled = sf.Spectrum(*zip(*pairs, strict=True))
    assert shuffled == sf.Spectrum(*modes)
    assert hash(shuffled) == hash(sf.Spectrum(*modes))


def test_ties_and_zeros_are_kept():
    spectrum = sf.Spectrum([0.5, 0.0, 2.0, 0.5, 0.0], [3.0, 1.0, -1.0, -2.0, 0.0])
    np.testing.assert_array_equal(spectrum.eigenvalues, [2.0, 0.5, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(spectrum.target_coefficients, [-1.0, -2.0, 3.0, 0.0, 1.0])
    np.testing.assert_array_equal(spectrum.target_power, [2.0, 2.0, 4.5, 0.0, 0.0])


def test_signs_of_zero_do_not_matter():
    """Equal spectra are equal as dictionary keys, too, although -0.0 and 0.0 differ in their bits."""
    plain = sf.Spectrum([1.0, 0.0, 0.5], [0.0, 1.0, 2.0])
    signed = sf.Spectrum([1.0, -0.0, 0.5], [-0.0, 1.0, 2.0])
    assert plain == signed
    assert hash(plain) == hash(signed)


def test_a_single_mode():
    spectrum = sf.Spectrum([3], [2])
    assert spectrum.n_modes == 1
    assert spectrum.target_power[0] == 12.0


def test_arrays_are_the_spectrums_own_and_read_only():
    eigenvalues, coefficients = np.array([2.0, 1.0]), np.array([1.0, 1.0])
    spectrum = sf.Spectrum(eigenvalues, coefficients)
    eigenvalues[0] = coefficients[0] = 7.0
    assert spectrum.eigenvalues[0] == 2.0
    assert spectrum.target_coefficients[0] == 1.0
    for array in (spectrum.eigenvalues, spectrum.target_coefficients, *spectrum.modes(0, 2)):
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        spectrum.eigenvalues = eigenvalues


def test_equality():
    spectrum = sf.Spectrum([1.0, 0.5], [1.0, 2.0])
    assert spectrum == sf.Spectrum([0.5, 1.0], [2.0, 1.0])
    assert spectrum != sf.Spectrum([1.0, 0.5], [1.0, -2.0])
    assert spectrum != sf.Spectrum([1.0, 0.25], [1.0, 2.0])
    assert spectrum != sf.Spectrum([1.0, 0.5, 0.5], [1.0, 2.0, 2.0])
    assert spectrum != sf.PowerLawSpectrum(1.0, 1.0, 2)
    assert spectrum != "spectrum"
    power_law = sf.PowerLawSpectrum(1.5, 0.5)
    assert power_law == sf.PowerLawSpectrum(1.5, 0.5, None)
    assert hash(power_law) == hash(sf.PowerLawSpectrum(alpha=1.5, beta=0.5))
    assert power_law != sf.PowerLawSpectrum(1.5, 0.5, 100)


def test_representations_are_readable():
    assert repr(sf.Spectrum([0.0, 2.0, 0.5], [1.0, 1.0, 2.0])) == (
        "Spectrum(3 modes, eigenvalues 0 to 2, trace 2.5, target power 4)"
    )
    assert repr(sf.PowerLawSpectrum(1.5, 0.5, 10)) == "PowerLawSpectrum(alpha=1.5, beta=0.5, n_modes=10)"
    # Long spectra, short lines.
    assert len(repr(sf.Spectrum(np.geomspace(1e-300, 1e10, 5000), np.ones(5000)))) < 120


# -------------------------------------------------------------------------------------- PowerLawSpectrum


@settings(deadline=None)
@given(power_laws())
def test_power_law_modes_are_the_formula(spectrum):
    stop = 50 if spectrum.n_modes is None else spectrum.n_modes
    eigenvalues, coefficients = spectrum.modes(0, stop)
    k = np.arange(1, stop + 1)
    # Powers computed another way, through logarithms up to 30: rounding of a few 1e-15 in the exponent.
    np.testing.assert_allclose(eigenvalues, np.exp(-spectrum.alpha * np.log(k)), rtol=1e-13, atol=0)
    power = np.exp(-(spectrum.alpha * spectrum.beta + 1.0) * np.log(k))
    np.testing.assert_allclose(eigenvalues * coefficients**2, power, rtol=1e-13, atol=0)


def test_power_law_settings_become_plain_numbers():
    spectrum = sf.PowerLawSpectrum(np.float32(1.5), 1, 1e6)
    assert spectrum == sf.PowerLawSpectrum(1.5, 1.0, 10**6)
    assert [type(value) for value in (spectrum.alpha, spectrum.beta, spectrum.n_modes)] == [float, float, int]
    assert sf.PowerLawSpectrum(1.5, 0.5).n_modes is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        spectrum.alpha = 2.0


def test_alpha_up_to_one_needs_finitely_many_modes():
    assert sf.PowerLawSpectrum(1.0, 0.5, 5).modes(0, 5)[0][4] == 0.2
    assert sf.PowerLawSpectrum(0.5, 0.5, 4).modes(3, 4)[0][0] == 0.5
    for alpha in (0.5, 1.0):
        with pytest.raises(ValueError, match=rf"^alpha must be greater than 1 for an infinite spectrum .*got {alpha}"):
            sf.PowerLawSpectrum(alpha, 0.5)
    assert sf.PowerLawSpectrum(math.nextafter(1.0, 2.0), 0.5).n_modes is None


# ------------------------------------------------------------------------------------ modes and describe


@settings(deadline=None)
@given(tasks(), st.data())
def test_modes_of_a_range_are_a_part_of_all_modes(task, data):
    last = 100 if task.n_modes is None else task.n_modes
    start = data.draw(st.integers(0, last))
    stop = data.draw(st.integers(start, last))
    whole, part = task.modes(0, last), task.modes(start, stop)
    for all_modes, some in zip(whole, part, strict=True):
        assert some.shape == (stop - start,)
        np.testing.assert_array_equal(some, all_modes[start:stop])


@settings(deadline=None)
@given(tasks())
def test_total_target_power_is_the_sum_over_modes(task):
    total = task.quadrature().total_target_power
    if task.n_modes is not None:
        eigenvalues, coefficients = task.modes(0, task.n_modes)
        # Positive terms: rounding of a few hundred sums; the quadrature promises 1e-10.
        assert math.isclose(total, math.fsum(eigenvalues * coefficients**2), rel_tol=1e-10, abs_tol=0.0)
    assert math.isclose(task.total_target_power, total, rel_tol=1e-10, abs_tol=0.0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4), (4, 4), (-3, -1)])
@pytest.mark.parametrize("spectrum", [sf.Spectrum([3.0, 2.0, 1.0], [1.0, 1.0, 1.0]), sf.PowerLawSpectrum(1.5, 0.5, 3)])
def test_ranges_outside_the_modes_are_refused(spectrum, start, stop):
    expected = rf"^start and stop must satisfy 0 <= start <= stop <= 3, got {start}, {stop}$"
    with pytest.raises(ValueError, match=expected):
        spectrum.modes(start, stop)


def test_infinite_spectra_have_modes_without_end():
    spectrum = sf.PowerLawSpectrum(2.0, 0.5)
    assert spectrum.modes(10**15, 10**15 + 1)[0][0] == pytest.approx(1e-30, rel=1e-12)
    with pytest.raises(ValueError, match=r"stop <= inf, got -1, 3$"):
        spectrum.modes(-1, 3)


@settings(deadline=None)
@given(tasks())
def test_describe_round_trip(task):
    description = task.describe()
    before = json.dumps(description)
    assert Task.from_description(description) == task
    assert json.dumps(description) == before  # the argument is not consumed
    again = Task.from_description(json.loads(before))
    assert again == task
    assert type(again) is type(task)
    assert again.describe() == description


def test_unknown_descriptions_are_refused():
    with pytest.raises(ValueError, match=r"^kind of spectrum must be 'power law' or 'explicit', got 'measured'$"):
        Task.from_description({"kind": "measured"})


# -------------------------------------------------------------------------------- bad constructor input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": math.nan}, ValueError, "alpha must be a finite number greater than 0, got nan"),
        ({"alpha": math.inf}, ValueError, "alpha must be a finite number greater than 0, got inf"),
        ({"alpha": -1.5}, ValueError, "alpha must be a finite number greater than 0, got -1.5"),
        ({"alpha": 0}, ValueError, "alpha must be a finite number greater than 0, got 0"),
        ({"alpha": "1.5"}, TypeError, "alpha must be a real number, got '1.5' of type str"),
        ({"alpha": True}, TypeError, "alpha must be a real number, got True of type bool"),
        ({"alpha": None}, TypeError, "alpha must be a real number, got None of type NoneType"),
        ({"alpha": 1.5 + 0j}, TypeError, "alpha must be a real number, got (1.5+0j) of type complex"),
        ({"alpha": [1.5]}, TypeError, "alpha must be a real number, got [1.5] of type list"),
        ({"beta": 0.0}, ValueError, "beta must be a finite number greater than 0, got 0.0"),
        ({"beta": -0.5}, ValueError, "beta must be a finite number greater than 0, got -0.5"),
        ({"beta": math.nan}, ValueError, "beta must be a finite number greater than 0, got nan"),
        ({"beta": math.inf}, ValueError, "beta must be a finite number greater than 0, got inf"),
        ({"beta": "hard"}, TypeError, "beta must be a real number, got 'hard' of type str"),
        ({"n_modes": 0}, ValueError, "n_modes must be an integer of at least 1, got 0"),
        ({"n_modes": -5}, ValueError, "n_modes must be an integer of at least 1, got -5"),
        ({"n_modes": 1.5}, ValueError, "n_modes must be an integer of at least 1, got 1.5"),
        ({"n_modes": math.nan}, ValueError, "n_modes must be an integer of at least 1, got nan"),
        ({"n_modes": True}, TypeError, "n_modes must be an integer, got True of type bool"),
        ({"n_modes": "3"}, TypeError, "n_modes must be an integer, got '3' of type str"),
        ({"n_modes": [3]}, TypeError, "n_modes must be an integer, got [3] of type list"),
    ],
)
def test_power_law_refuses(arguments, error, message):
    with pytest.raises(error) as caught:
        sf.PowerLawSpectrum(**{"alpha": 1.5, "beta": 0.5, "n_modes": 10} | arguments)
    assert str(caught.value) == message
    if "n_modes" not in arguments:
        with pytest.raises(error, match=re.escape(message)):
            sf.PowerLawSpectrum(**{"alpha": 1.5, "beta": 0.5} | arguments)


@pytest.mark.parametrize("argument", ["eigenvalues", "target_coefficients"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, math.nan, 2.0], ValueError, r"must be finite.*, got .*nan.* at index 1"),
        ([1.0, 2.0, math.inf], ValueError, r"must be finite.*, got .*inf.* at index 2"),
        ([-math.inf, 2.0, 1.0], ValueError, r"must be finite.*, got .*-inf.* at index 0"),
        ([[1.0, 2.0, 3.0]], ValueError, r"must have one dimension, got shape \(1, 3\)"),
        (np.ones((3, 1)), ValueError, r"must have one dimension, got shape \(3, 1\)"),
        (1.0, ValueError, r"must have one dimension, got shape \(\)"),
        ([], ValueError, r"must have at least one entry, got none"),
        (["1", "2", "3"], TypeError, r"must be an array of real numbers, got dtype <U1"),
        ("123", TypeError, r"must be an array of real numbers, got dtype <U3"),
        ([1.0, 2.0, 3.0 + 0j], TypeError, r"must be an array of real numbers, got dtype complex128"),
        ([1.0, None, 2.0], TypeError, r"must be an array of real numbers, got dtype object"),
        ([True, True, True], TypeError, r"must be an array of real numbers, got dtype bool"),
        ([[1.0], [1.0, 2.0]], TypeError, r"must be an array of real numbers, got list"),
    ],
)
def test_spectrum_refuses(argument, value, error, message):
    arguments = {"eigenvalues": [3.0, 2.0, 1.0], "target_coefficients": [1.0, 1.0, 1.0]} | {argument: value}
    with pytest.raises(error, match=f"^{argument} {message}$"):
        sf.Spectrum(**arguments)


def test_spectrum_refuses_negative_eigenvalues_only():
    with pytest.raises(ValueError, match=r"^eigenvalues must be finite and at least 0, got .*-1e-20.* at index 1$"):
        sf.Spectrum([1.0, -1e-20], [1.0, 1.0])
    assert sf.Spectrum([1.0, 0.5], [-1.0, 1.0]).target_coefficients[0] == -1.0


def test_spectrum_refuses_lengths_that_differ():
    message = r"^eigenvalues and target_coefficients must have the same length, got 2 and 3$"
    with pytest.raises(ValueError, match=message):
        sf.Spectrum([1.0, 2.0], [1.0, 2.0, 3.0])


def test_spectrum_refuses_zeros_only():
    with pytest.raises(ValueError, match=r"^eigenvalues must have at least one positive entry, got zeros only$"):
        sf.Spectrum([0.0, -0.0], [1.0, 2.0])


# --------------------------------------------------------------------------------------- files: the rules


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".NPZ", ".Csv"])
@settings(max_examples=40)
@given(spectrum=explicit_spectra())
def test_files_hold_every_bit(tmp_path_factory, suffix, spectrum):
    path = tmp_path_factory.mktemp("spectra") / f"spectrum{suffix}"
    spectrum.save(path)
    assert os.listdir(path.parent) == [path.name]
    loaded = sf.Spectrum.load(str(path))
    assert loaded.eigenvalues.tobytes() == spectrum.eigenvalues.tobytes()
    assert loaded.target_coefficients.tobytes() == spectrum.target_coefficients.tobytes()
    assert loaded == spectrum


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_files_hold_extreme_numbers(tmp_path, suffix):
    eigenvalues = [1.7976931348623157e308, 1.0, math.nextafter(1.0, 0.0), 0.1, 5e-324, 0.0]
    coefficients = [1e-160, math.pi, -1e-308, 5e-324, -1e154, -123456789.12345679]
    spectrum = sf.Spectrum(eigenvalues, coefficients)
    path = tmp_path / f"spectrum{suffix}"
    spectrum.save(path)
    loaded = sf.Spectrum.load(path)
    assert loaded.eigenvalues.tobytes() == np.array(eigenvalues).tobytes()
    assert loaded.target_coefficients.tobytes() == np.array(coefficients).tobytes()


def test_csv_is_readable_by_others(tmp_path):
    path = tmp_path / "spectrum.csv"
    sf.Spectrum([0.5, 1.0], [2.0, -1.0]).save(path)
    assert path.read_text() == "eigenvalue,target_coefficient\n1.0,-1.0\n0.5,2.0\n"
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(table, [[1.0, -1.0], [0.5, 2.0]])


@pytest.mark.parametrize(
    "text",
    [
        "eigenvalue,target_coefficient\n1,2\n0.5,3\n",
        "target_coefficient,eigenvalue\n2,1\n3,0.5\n",
        "\ufeffeigenvalue,target_coefficient\r\n1,2\r\n0.5,3\r\n",
        "# source: somewhere, some time\n\n eigenvalue , target_coefficient \n# one\n 1 , 2 \n\n0.5,3",
        "index,eigenvalue,note,target_coefficient\n1,1,first,2\n2,0.5,,3\n",
        'index,"eigenvalue","target_coefficient"\n1,"1","2.0"\n2,5e-1,+3.\n',
        "eigenvalue,target_coefficient\n0.5,3\n1,2\n",
        'eigenvalue,target_coefficient\n# a remark, "with quotes\n1,2\n0.5,3\n',
        '# a remark,"with quotes\neigenvalue,target_coefficient\n1,2\n# another,"\n0.5,3\n',
    ],
    ids=["plain", "swapped", "windows", "spaced", "more columns", "quoted", "unsorted", "quotes", "quotes after comma"],
)
def test_csv_variants_that_are_read(tmp_path, text):
    path = tmp_path / "spectrum.csv"
    path.write_bytes(text.encode())
    assert sf.Spectrum.load(path) == sf.Spectrum([1.0, 0.5], [2.0, 3.0])


# ----------------------------------------------------------------------------------- files: malformed ones


def _refused(path):
    """Return the message of the refusal, less the file's name that it must begin with."""
    with pytest.raises(SpectrumFileError) as caught:
        sf.Spectrum.load(path)
    # Callers may catch it as the package's error or as a ValueError.
    assert isinstance(caught.value, ScalefieldError)
    assert isinstance(caught.value, ValueError)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


HEADER = "eigenvalue,target_coefficient\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no modes in the file"),
        ("\n\n", "no modes in the file"),
        ("# a remark\n", "no modes in the file"),
        (HEADER, "no modes in the file"),
        (HEADER + "# 1,1\n\n", "no modes in the file"),
        ("1,2\n3,4\n", "row 1: header must name the columns eigenvalue and target_coefficient, "
         "eigenvalue and target_coefficient not found in '1,2'"),
        ("# x\neigenvalue,coefficient\n1,1\n", "row 2: header must name the columns eigenvalue and "
         "target_coefficient, target_coefficient not found in 'eigenvalue,coefficient'"),
        ("target_coefficient\n1\n", "row 1: header must name the columns eigenvalue and target_coefficient, "
         "eigenvalue not found in 'target_coefficient'"),
        ("Eigenvalue,target_coefficient\n1,1\n", "row 1: header must name the columns eigenvalue and "
         "target_coefficient, eigenvalue not found in 'Eigenvalue,target_coefficient'"),
        (HEADER + "1,1\nx,1\n", "row 3, column eigenvalue: not a number: 'x'"),
        (HEADER + "1,1\n0.5,0x1\n", "row 3, column target_coefficient: not a number: '0x1'"),
        (HEADER + "1;1,2\n", "row 2, column eigenvalue: not a number: '1;1'"),
        (HEADER + "# one\n\n1,1\n\n0.5,1e\n", "row 6, column target_coefficient: not a number: '1e'"),
        (HEADER + "1,1\n,1\n", "row 3, column eigenvalue: no value"),
        (HEADER + "1,1\n1,\n", "row 3, column target_coefficient: no value"),
        (HEADER + "1,1\n1,   \n", "row 3, column target_coefficient: no value"),
        (HEADER + "1,1\n1\n", "row 3, column target_coefficient: no value"),
        ("a,b,eigenvalue,target_coefficient\n1,1,1,1\n1,1\n", "row 3, column eigenvalue: no value"),
        (HEADER + "1,1\n-1e-9,1\n", "row 3, column eigenvalue: expected a finite number of at least 0, got -1e-09"),
        (HEADER + "nan,1\n", "row 2, column eigenvalue: expected a finite number of at least 0, got nan"),
        (HEADER + "inf,1\n", "row 2, column eigenvalue: expected a finite number of at least 0, got inf"),
        (HEADER + "1e999,1\n", "row 2, column eigenvalue: expected a finite number of at least 0, got inf"),
        (HEADER + "1,1\n1,-inf\n", "row 3, column target_coefficient: expected a finite number, got -inf"),
        (HEADER + "1,NaN\n", "row 2, column target_coefficient: expected a finite number, got nan"),
        (HEADER + "0,1\n0,2\n", "eigenvalues must have at least one positive entry, got zeros only"),
    ],
)  # fmt: skip
def test_malformed_csv_names_row_and_column(tmp_path, text, message):
    path = tmp_path / "spectrum.csv"
    path.write_text(text)
    assert _refused(path) == message


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 10,
        b"\xff\xfe" + HEADER.encode("utf-16-le"),
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"PK\x03\x04\x14\x00",
    ],
    ids=["all bytes", "utf-16", "png", "zip"],
)
def test_binary_csv_is_refused(tmp_path, content):
    path = tmp_path / "spectrum.csv"
    path.write_bytes(content)
    _refused(path)


@pytest.mark.parametrize("quote", ["", '"'])
def test_endless_csv_fields_are_refused(tmp_path, quote):
    """Longer than csv's own limit of 131,072 characters, such as behind a quote that is never closed."""
    path = tmp_path / "spectrum.csv"
    path.write_text(HEADER + "1,1\n1," + quote + "1" * 140_000 + "\n")
    assert "row 3" in _refused(path)


@settings(max_examples=200)
@given(content=st.binary(max_size=200) | st.text(alphabet='#",\n\r 1.e-xeigenvalue', max_size=80).map(str.encode))
def test_no_content_of_a_csv_gives_another_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("spectra") / "spectrum.csv"
    for start in (b"", HEADER.encode(), HEADER.encode() + b"1,1\n"):
        path.write_bytes(start + content)
        try:
            spectrum = sf.Spectrum.load(path)
        except SpectrumFileError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017 (both outcomes are right)
        else:
            assert np.isfinite(spectrum.eigenvalues).all()


def _save_npz(path, **arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


ONES = np.ones(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"eigenvalues": ONES}, "no array named target_coefficients"),
        ({"target_coefficients": ONES}, "no array named eigenvalues"),
        ({"loss": ONES}, "no array named eigenvalues or target_coefficients"),
        ({}, "no array named eigenvalues or target_coefficients"),
        ({"eigenvalues": ONES, "target_coefficients": np.ones(2)}, "eigenvalues and target_coefficients must have the "
         "same length, got 3 and 2"),
        ({"eigenvalues": np.ones((3, 1)), "target_coefficients": ONES}, "eigenvalues must have one dimension, "
         "got shape (3, 1)"),
        ({"eigenvalues": ONES, "target_coefficients": np.array(1.0)}, "target_coefficients must have one dimension, "
         "got shape ()"),
        ({"eigenvalues": np.zeros(0), "target_coefficients": np.zeros(0)}, "eigenvalues must have at least one entry, "
         "got none"),
        ({"eigenvalues": np.zeros(3), "target_coefficients": ONES}, "eigenvalues must have at least one positive "
         "entry, got zeros only"),
        ({"eigenvalues": np.array(["1", "2", "3"]), "target_coefficients": ONES}, "eigenvalues must be an array of "
         "real numbers, got dtype <U1"),
        ({"eigenvalues": ONES, "target_coefficients": 1j * ONES}, "target_coefficients must be an array of real "
         "numbers, got dtype complex128"),
    ],
)  # fmt: skip
def test_npz_with_wrong_arrays_is_refused(tmp_path, arrays, message):
    path = tmp_path / "spectrum.npz"
    _save_npz(path, **arrays)
    assert _refused(path) == message


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_npz_with_wrong_numbers_names_the_entry(tmp_path, bad):
    path = tmp_path / "spectrum.npz"
    _save_npz(path, eigenvalues=np.array([1.0, 2.0, bad]), target_coefficients=ONES)
    message = _refused(path)
    assert re.fullmatch(rf"eigenvalues must be finite and at least 0, got .*{bad}.* at index 2", message)


class Bomb:
    """Makes the file it is given when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_npz_with_objects_is_refused_and_not_run(tmp_path):
    path, sign = tmp_path / "spectrum.npz", tmp_path / "exploded"
    _save_npz(path, eigenvalues=np.array([Bomb(str(sign))], dtype=object), target_coefficients=np.ones(1))
    assert _refused(path).startswith("not a readable .npz archive")
    assert not sign.exists()
    # The bomb is live: numpy told to trust the file sets it off.
    with np.load(path, allow_pickle=True) as archive:
        archive["eigenvalues"].item(0).close()
    assert sign.exists()


def test_truncated_npz_is_refused(tmp_path):
    path = tmp_path / "spectrum.npz"
    sf.Spectrum(np.arange(1.0, 20.0), np.ones(19)).save(path)
    whole = path.read_bytes()
    for length in [0, 1, 4, 6, 30, len(whole) // 4, len(whole) // 2, len(whole) - 22, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert _refused(path).startswith("not a readable .npz archive")


def test_other_files_named_npz_are_refused(tmp_path):
    path = tmp_path / "spectrum.npz"
    for content in (b"", HEADER.encode() + b"1,1\n", bytes(range(256))):
        path.write_bytes(content)
        assert _refused(path).startswith("not a readable .npz archive")
    with path.open("wb") as stream:
        np.save(stream, ONES)
    assert _refused(path).startswith("not a readable .npz archive")


@settings(max_examples=100)
@given(data=st.data())
def test_damaged_npz_is_refused_or_reads_the_same(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("spectra") / "spectrum.npz"
    spectrum = sf.Spectrum(np.arange(1.0, 20.0), np.ones(19))
    spectrum.save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = sf.Spectrum.load(path)
    except SpectrumFileError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 (both outcomes are right)
    else:
        assert loaded == spectrum


@pytest.mark.parametrize("name", ["spectrum.txt", "spectrum", "spectrum.npy", "spectrum.csv.gz", ".csv"])
def test_other_suffixes_are_refused(tmp_path, name):
    path = tmp_path / name
    message = rf"^path of a spectrum must end in \.npz or \.csv, got '{re.escape(str(path))}'$"
    with pytest.raises(ValueError, match=message):
        sf.Spectrum([1.0], [1.0]).save(path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match=message):
        sf.Spectrum.load(path)


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_missing_files_and_folders(tmp_path, suffix):
    path = tmp_path / f"nowhere{suffix}"
    with pytest.raises(FileNotFoundError, match=f"nowhere{suffix}"):
        sf.Spectrum.load(path)
    path.mkdir()
    with pytest.raises((OSError, SpectrumFileError), match=f"nowhere{suffix}"):
        sf.Spectrum.load(path)
    with pytest.raises(OSError):  # noqa: PT011 (class differs by system)
        sf.Spectrum([1.0], [1.0]).save(path)
    assert os.listdir(tmp_path) == [path.name]


# ------------------------------------------------------------------------------ files: whole or not at all


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "new file"])
@pytest.mark.parametrize("moment", ["writing", "flushing", "replacing"])
def test_a_failed_save_leaves_no_trace(tmp_path, monkeypatch, suffix, old, moment):
    path = tmp_path / f"spectrum{suffix}"
    if old:
        sf.Spectrum([9.0], [9.0]).save(path)
    before = path.read_bytes() if old else None

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    if moment == "writing":
        fdopen = os.fdopen

        def open_small(*args, **kwargs):
            stream = fdopen(*args, **kwargs)
            return _FullAfter(stream, 40)

        monkeypatch.setattr(_files.os, "fdopen", open_small)
    else:
        monkeypatch.setattr(_files.os, {"flushing": "fsync", "replacing": "replace"}[moment], fail)
    with pytest.raises(OSError, match="No space left"):
        sf.Spectrum(np.arange(1.0, 50.0), np.ones(49)).save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ([path.name] if old else [])
    if old:
        assert path.read_bytes() == before
        assert sf.Spectrum.load(path) == sf.Spectrum([9.0], [9.0])


class _FullAfter:
    """A binary stream on a disk that is full after so many bytes."""

    def __init__(self, stream, room):
        self._stream, self._room = stream, room

    def write(self, data):
        data = bytes(data)
        self._stream.write(data[: self._room])
        if len(data) > self._room:
            raise OSError(28, "No space left on device")
        self._room -= len(data)
        return len(data)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stream.close()

    def __getattr__(self, name):
        return getattr(self._stream, name)
