"""Trained networks, lazy against rich: linear networks, and how kernels evolve and align with a task."""

from scalefield.networks.features import PowerDistribution, cumulative_power, kernel_alignment, kernel_distance
from scalefield.networks.linear import solve_linear_network_flow, train_linear_network
from scalefield.networks.linear_results import LinearNetworkFlow, LinearNetworkRuns

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
