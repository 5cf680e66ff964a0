"""Compiled kernels: Cython extensions (built from csrc/) and Numba functions (compiled on first use).

Nothing here imports the layers above.
"""
