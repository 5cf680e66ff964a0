"""What everything trained with PyTorch shares: the import, devices, number formats and generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scalefield.errors import BackendUnavailableError

__all__ = ["as_device", "as_dtype", "deterministic", "generator", "require_torch", "seed_of"]

DTYPES = ("float64", "float32")
DEVICES = ("cpu", "cuda")


def require_torch() -> Any:
    """The torch module.

    Raises
    ------
    BackendUnavailableError
        If it is not installed; the message names the extra.
    """
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailableError(f"deep networks need PyTorch: pip install 'scalefield[nn]' ({error})") from error
    return torch


def as_device(torch: Any, device: str) -> str:
    """Return the device's name; one that is not there is an error."""
    if device not in DEVICES:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"device 'cuda' asked for, but PyTorch {torch.__version__} finds no CUDA device; use device='cpu'"
        )
    return device


def as_dtype(torch: Any, dtype: str) -> Any:
    """Return the torch dtype of a name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
    return getattr(torch, dtype)


def seed_of(*keys: int) -> int:
    """A seed below 2^63 of its own for every tuple of keys."""
    return int(np.random.SeedSequence(list(keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(torch: Any, *keys: int) -> Any:
    """A generator of its own for every tuple of keys; on the CPU, so that all devices get the same numbers."""
    return torch.Generator().manual_seed(seed_of(*keys))


@contextmanager
def deterministic(torch: Any) -> Iterator[None]:
    """One thread on the CPU, no TF32 and no choice of algorithms by timing on CUDA; as before afterwards.

    Sums of several threads are rounded in another order. The small networks here gain little from more, and lose
    much where other work keeps the cores busy.
    """
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32
