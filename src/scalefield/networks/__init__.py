"""Trained networks, lazy against rich: linear networks and what their kernels learn."""

from scalefield.networks.circle import CircleTask, LossSpike, MultilayerTraining, train_multilayer

__all__ = ["CircleTask", "LossSpike", "MultilayerTraining", "train_multilayer"]
