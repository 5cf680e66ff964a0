"""Scaling laws: exponents and phases, compute-optimal training, and fits of power laws."""

from scalefield.scaling.chinchilla import ChinchillaFit, fit_chinchilla
from scalefield.scaling.exponents import (
    ComputeOptimum,
    LossTerm,
    PhaseDiagram,
    bootstrap_exponents,
    compute_optimal,
    crossover_time,
    loss_terms,
    phase_diagram,
    task_difficulty,
    time_exponent,
)
from scalefield.scaling.fitting import (
    BrokenPowerLawFit,
    PowerLawFit,
    fit_broken_power_law,
    fit_power_law,
    local_exponents,
)

__all__ = [
    "BrokenPowerLawFit",
    "ChinchillaFit",
    "ComputeOptimum",
    "LossTerm",
    "PhaseDiagram",
    "PowerLawFit",
    "bootstrap_exponents",
    "compute_optimal",
    "crossover_time",
    "fit_broken_power_law",
    "fit_chinchilla",
    "fit_power_law",
    "local_exponents",
    "loss_terms",
    "phase_diagram",
    "task_difficulty",
    "time_exponent",
]
