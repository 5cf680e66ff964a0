"""Inputs of the simulation's benchmarks."""

from __future__ import annotations

import math

import scalefield as sf

SEED = 0


def _model(n_modes: int, width: int, gamma: float, batch_size: float) -> sf.Model:
    return sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes), width=width, gamma=gamma, batch_size=batch_size)


# Name: (model, steps in one timed call).
LITERAL = {
    "N=1000 M=4000 B=32": (_model(4000, 1000, 1.0, 32), 20),
    "N=64 M=1797 B=32": (_model(1797, 64, 1.0, 32), 100),
}

# The same on fixed samples, all of them or batches.
LITERAL_OFFLINE = {
    "N=1000 M=4000 P=1000 B=32": (_model(4000, 1000, 1.0, 32).replace(n_samples=1000), 20),
    "N=64 M=1797 P=500 B=inf": (_model(1797, 64, 1.0, math.inf).replace(n_samples=500), 50),
    "N=64 M=500 P=64 B=16": (_model(500, 64, 1.0, 16).replace(n_samples=64), 200),
}

# Name: (model, steps in one timed call, precision, whether NumPy also takes the steps with M features).
REDUCED = {
    "N=1000 M=100000 B=32 gamma=1": (_model(100_000, 1000, 1.0, 32), 10, "float64", True),
    "N=1000 M=2000 B=32 gamma=0 float64": (_model(2000, 1000, 0.0, 32), 200, "float64", False),
    "N=1000 M=2000 B=32 gamma=0 float32": (_model(2000, 1000, 0.0, 32), 200, "float32", False),
    "N=1000 M=2000 B=1 gamma=0 float64": (_model(2000, 1000, 0.0, 1), 1000, "float64", False),
    "N=1000 M=2000 B=1 gamma=0 float32": (_model(2000, 1000, 0.0, 1), 1000, "float32", False),
    "N=64 M=1797 B=32 gamma=1": (_model(1797, 64, 1.0, 32), 100, "float64", True),
    "N=64 M=1797 B=1 gamma=0 float32": (_model(1797, 64, 0.0, 1), 100, "float32", False),
}

# Spectrum and width of what a reduced run makes once.
SETUP = {
    "N=512 M=1000000": (sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), 512),
    "N=64 M=20480": (sf.PowerLawSpectrum(1.5, 0.5, n_modes=20_480), 64),
}

# Deviates in one call: a long row, and one that stays in the first-level cache as in training.
N_DEVIATES = {"1e6 at once": 1_000_000, "1000 at once": 1_000}

# The CUDA path. Literal: model, precision, steps in one timed call. The first is 16 GB of A(0).
CUDA_LITERAL = {
    "N=4096 M=1e6 B=32 gamma=0 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), width=4096, batch_size=32),
        "float32",
        20,
    ),
    "N=4096 M=1e6 B=32 gamma=1 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), width=4096, gamma=1.0, batch_size=32),
        "float32",
        20,
    ),
    "N=4096 M=1e6 B=inf gamma=0 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), width=4096),
        "float32",
        20,
    ),
    "N=4096 M=5e5 B=32 gamma=0 float64": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=500_000), width=4096, batch_size=32),
        "float64",
        20,
    ),
    "N=1000 M=1e6 B=32 gamma=1 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6), width=1000, gamma=1.0, batch_size=32),
        "float32",
        50,
    ),
}
# Reduced: model, precision, steps, runs. The spectrum's modes do not matter.
CUDA_REDUCED = {
    "N=512 B=32 gamma=1 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=1000), width=512, gamma=1.0, batch_size=32),
        "float32",
        200,
        1056,
    ),
    "N=512 B=32 gamma=0 float32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=1000), width=512, batch_size=32),
        "float32",
        200,
        1056,
    ),
    "N=1000 B=32 gamma=1 float64": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=2000), width=1000, gamma=1.0, batch_size=32),
        "float64",
        100,
        396,
    ),
}
# Rows, and groups of four deviates in each.
CUDA_DEVIATES = (2**18, 2**10)
