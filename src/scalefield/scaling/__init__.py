"""Scaling laws: exponents and phases, compute-optimal training, and fits of power laws."""

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

__all__ = [
    "ComputeOptimum",
    "LossTerm",
    "PhaseDiagram",
    "bootstrap_exponents",
    "compute_optimal",
    "crossover_time",
    "loss_terms",
    "phase_diagram",
    "task_difficulty",
    "time_exponent",
]
