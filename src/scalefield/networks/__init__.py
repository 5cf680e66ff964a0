"""Trained networks, lazy against rich: linear networks and what their kernels learn."""
