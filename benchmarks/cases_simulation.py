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
