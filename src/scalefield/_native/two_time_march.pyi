import numpy as np
from numpy.typing import NDArray

BLOCK: int
MODE_GROUP: int
LANES: int

class TwoTimeMarch:
    def __init__(
        self,
        arrays: dict[str, NDArray[np.float64]],
        workspace: dict[str, NDArray[np.float64]],
        *,
        eigenvalue: NDArray[np.float64],
        mode_weight: NDArray[np.float64],
        source_eigenvalue: NDArray[np.float64],
        source_power: NDArray[np.float64],
        learning_rate: float,
        gamma: float,
        inverse_width: float,
        inverse_batch: float,
        inverse_n_samples: float,
        noise_power: float,
        largest_loss: float,
        memory_given: bool,
        n_workers: int,
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def diverged(self) -> bool: ...
    def stop(self) -> None: ...
    def abandon(self) -> None: ...
    def march(self, worker: int) -> None: ...
