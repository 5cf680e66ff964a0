"""Inputs of the simulation's benchmarks."""

from __future__ import annotations

import scalefield as sf

SEED = 0

# Name: (model, steps in one timed call).
MODELS = {
    "N=1000 M=4000 B=32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=4000), width=1000, gamma=1.0, batch_size=32),
        20,
    ),
    "N=64 M=1797 B=32": (
        sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=1797), width=64, gamma=1.0, batch_size=32),
        100,
    ),
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
