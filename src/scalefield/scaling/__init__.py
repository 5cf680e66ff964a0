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
from scalefield.scaling.frontier import Frontier, FrontierExponent, compute_frontier

__all__ = [
    "ComputeOptimum",
    "Frontier",
    "FrontierExponent",
    "LossTerm",
    "PhaseDiagram",
    "bootstrap_exponents",
    "compute_frontier",
    "compute_optimal",
    "crossover_time",
    "loss_terms",
    "phase_diagram",
    "task_difficulty",
    "time_exponent",
]
