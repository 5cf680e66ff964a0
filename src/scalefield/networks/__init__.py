"""Trained networks, lazy against rich: linear, on the circle, deep; how kernels evolve and align with a task."""

from scalefield.networks._torch_results import DeepNetworkRuns
from scalefield.networks.circle import train_multilayer
from scalefield.networks.circle_results import LossSpike, MultilayerTraining
from scalefield.networks.circle_task import CircleTask
from scalefield.networks.features import PowerDistribution, cumulative_power, kernel_alignment, kernel_distance
from scalefield.networks.language import train_language_model
from scalefield.networks.linear import solve_linear_network_flow, train_linear_network
from scalefield.networks.linear_results import LinearNetworkFlow, LinearNetworkRuns
from scalefield.networks.vision import train_vision_network, vision_kernel

__all__ = [
    "CircleTask",
    "DeepNetworkRuns",
    "LinearNetworkFlow",
    "LinearNetworkRuns",
    "LossSpike",
    "MultilayerTraining",
    "PowerDistribution",
    "cumulative_power",
    "kernel_alignment",
    "kernel_distance",
    "solve_linear_network_flow",
    "train_language_model",
    "train_linear_network",
    "train_multilayer",
    "train_vision_network",
    "vision_kernel",
]
