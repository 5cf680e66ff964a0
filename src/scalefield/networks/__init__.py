"""Trained networks, lazy against rich: linear networks, and how kernels evolve and align with a task."""

from scalefield.networks.features import PowerDistribution, cumulative_power, kernel_alignment, kernel_distance
from scalefield.networks.linear import (
    LinearNetworkFlow,
    LinearNetworkRuns,
    solve_linear_network_flow,
    train_linear_network,
)

__all__ = [
    "LinearNetworkFlow",
    "LinearNetworkRuns",
    "PowerDistribution",
    "cumulative_power",
    "kernel_alignment",
    "kernel_distance",
    "solve_linear_network_flow",
    "train_linear_network",
]
