"""Trained networks, lazy against rich: linear ones, perceptrons on the circle, how kernels evolve and align."""

from scalefield.networks.circle import train_multilayer
from scalefield.networks.circle_results import LossSpike, MultilayerTraining
from scalefield.networks.circle_task import CircleTask
from scalefield.networks.features import PowerDistribution, cumulative_power, kernel_alignment, kernel_distance
from scalefield.networks.linear import solve_linear_network_flow, train_linear_network
from scalefield.networks.linear_results import LinearNetworkFlow, LinearNetworkRuns

__all__ = [
    "CircleTask",
    "LinearNetworkFlow",
    "LinearNetworkRuns",
    "LossSpike",
    "MultilayerTraining",
    "PowerDistribution",
    "cumulative_power",
    "kernel_alignment",
    "kernel_distance",
    "solve_linear_network_flow",
    "train_linear_network",
    "train_multilayer",
]
