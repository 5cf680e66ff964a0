"""Kernels of networks: infinitely wide ones on data and on the circle, and those of finite networks."""

__all__: list[str] = []
