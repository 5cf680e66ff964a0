r"""A decoder-only transformer on next characters, in mean-field parameterisation with richness gamma (PyTorch)."""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._checkpoint import CheckpointFile, seed_or_stored
from scalefield._progress import Progress
from scalefield._validate import as_count
from scalefield.errors import DatasetError
from scalefield.networks._torch import require_torch
from scalefield.networks._torch_results import DeepNetworkRuns
from scalefield.networks._torch_training import Problem, Recipe, Sources, train

__all__ = ["train_language_model"]

Array = NDArray[np.float64]
Tensor = Any

OBJECTIVES = ("cross-entropy", "mse")
# Of Python's sources every so many-th file is held out, of a text its last part.
_HELD_OUT_FILE = 20
_HELD_OUT = 0.1
_EXPANSION = 4


def train_language_model(
    width: int = 64,
    gamma: float = 1.0,
    learning_rate: float = 0.5,
    batch_size: int = 16,
    n_steps: int = 1000,
    n_runs: int = 1,
    seed: int | None = None,
    *,
    depth: int = 2,
    n_heads: int = 2,
    context: int = 32,
    objective: str = "cross-entropy",
    corpus: str | os.PathLike[str] | None = None,
    n_characters: int = 64,
    n_test: int = 256,
    centred: bool = True,
    record: str | ArrayLike = "log",
    n_probe: int = 0,
    probe_record: ArrayLike | None = None,
    dtype: str = "float64",
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> DeepNetworkRuns:
    r"""Train a small transformer on the next character of a text, by online SGD, from lazy to rich.

    All weights are standard normal at first, N = width, d = N/n_heads, phi(h) = sqrt(2) max(h, 0), no biases;
    norm(h) subtracts the mean over the N entries and divides by their standard deviation, without parameters:

    ==============  ===============================================================================================
    embedding       h = 2^{-1/2} (E[character] + P[position])
    attention       q, k, v = N^{-1/2} (Q, K, V) norm(h); softmax over the past of q . k/d;
                    h <- h + depth^{-1/2} N^{-1/2} O (values of all heads)
    feed-forward    h <- h + depth^{-1/2} (4N)^{-1/2} D phi(N^{-1/2} U norm(h)), 4N units
    readout         g = N^{-1} W norm(h), an output per character
    ==============  ===============================================================================================

    .. math::
        f = \frac{g - g_0}{\gamma}, \qquad \theta \leftarrow \theta - \eta \gamma^2 N\, \partial_\theta L,

    with L the mean over positions of the cross-entropy of softmax(f), or half the squared error. Predictions are
    uniform at first, L = log(n_characters + 1); outputs move at a rate that neither gamma nor, as N grows, N changes,
    and features by an amount proportional to gamma.

    Parameters
    ----------
    width : int
        N, a multiple of n_heads.
    gamma : float
        Richness, positive; small is lazy.
    learning_rate : float
        eta; tau = eta x step.
    batch_size, n_steps, n_runs : int
        Sequences a step, steps, independent weights and streams.
    seed : int or None
        Same seed, same weights, data and test set, whatever gamma, device and n_runs; None draws one, or takes that of
        the checkpoint.
    depth, n_heads : int
        Blocks, each of attention and feed-forward, and heads.
    context : int
        Characters in a sequence; every one of them is predicted from those before it.
    objective : {"cross-entropy", "mse"}
        Loss in nats, or squared error of one-hot characters less their mean 1/outputs, summed over outputs.
    corpus : path, optional
        A text file, UTF-8; its last tenth is held out. Default: the modules at the top of Python's own library
        (``sysconfig.get_path("stdlib")``, files *.py in the order of their names), every 20th of which is held out:
        some 4.5 million characters, depending on Python's version; `settings` of the result has the number and a
        checksum.
    n_characters : int
        The most frequent characters of the training text, each with an output; all others share one more.
    n_test : int
        Test sequences.
    centred : bool
        Whether g_0 is subtracted.
    record : "log", "all" or array_like of int
        Steps at which losses are recorded: 0 and 64 log-spaced ones, all, or those given.
    n_probe : int
        Test sequences on whose last character the neural tangent kernel is followed; default none.
    probe_record : array_like of int, optional
        Steps at which it is recorded, beginning with 0; by default 0 and 12 log-spaced ones.
    dtype : {"float64", "float32"}
        Number format.
    device : {"cpu", "cuda"}
        Passed to PyTorch.
    checkpoint : path, optional
        A file to write the state to now and then, and to go on from if it is there: the same call, after whatever
        ended it, continues, to the last bit on the CPU of the same machine. More runs may be asked for than it holds.
    checkpoint_every : float
        Seconds between two writings (default 60).
    progress : callable, optional
        Called as ``progress(done, total)`` with steps of all runs.

    Returns
    -------
    DeepNetworkRuns

    Raises
    ------
    BackendUnavailableError
        If PyTorch is not installed, or there is no CUDA device where one is asked for.
    FileNotFoundError, DatasetError
        If there is no such text, or it is too short or not UTF-8.
    DivergenceError
        If a loss is not finite or a thousand times the first; `partial` holds what all runs have recorded before it.
    InsufficientMemoryError
        If weights and gradients of a single run do not fit into the available memory.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order; or the one that came furthest, as far as it
        came; or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.
    TypeError, ValueError
        For arguments of the wrong type or range.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written; training goes on.

    Notes
    -----
    Sequences begin anywhere in the training text, with replacement: training is online while batch_size x context x
    steps is small beside the text, and `DeepNetworkRuns.stream_loss` tells. Scores of attention divided by d, not its
    root, leave features' changes of order gamma at any width; the share of Q and K in the initial kernel is of order
    1/d.
    Runs repeat as those of `train_vision_network`.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, App. A.3 and Figure 9. Yang et al., arXiv:2203.03466 (muP).
    Bordelon, Chaudhry & Pehlevan, arXiv:2405.15712 (infinite limits of transformers).

    Examples
    --------
    >>> from scalefield import networks
    >>> runs = networks.train_language_model(width=16, n_steps=20, seed=0)  # doctest: +SKIP
    >>> round(float(runs.mean[0]), 6)  # doctest: +SKIP
    4.174387
    """
    torch = require_torch()
    file = CheckpointFile.checked(checkpoint, checkpoint_every)
    recipe = Recipe.checked(
        gamma=gamma,
        learning_rate=learning_rate,
        batch_size=batch_size,
        n_steps=n_steps,
        n_runs=n_runs,
        seed=seed_or_stored(seed, file),
        record=record,
        n_probe=n_probe,
        probe_record=probe_record,
        n_test=n_test,
        centred=centred,
        dtype=dtype,
        device=device,
    )
    text = _Text(corpus, as_count("n_characters", n_characters, minimum=2), as_count("context", context))
    problem = _Transformer(torch, width, depth, n_heads, objective, text)
    return train(torch, problem, recipe, file=file, progress=progress)


class _Text:
    """A text as numbers of characters: one part for training, another held out."""

    def __init__(self, corpus: str | os.PathLike[str] | None, n_characters: int, context: int) -> None:
        if corpus is None:
            self.name, training, held_out = "sources of Python's library", *_python_sources()
        else:
            path = Path(corpus)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DatasetError(f"{path}: must be text in UTF-8 ({error})") from error
            cut = int((1.0 - _HELD_OUT) * len(text))
            self.name, training, held_out = path.name, text[:cut], text[cut:]
        if min(len(training), len(held_out)) <= context:
            raise DatasetError(
                f"{self.name}: must have more than {context + 1} characters in either part, "
                f"got {len(training)} and {len(held_out)}"
            )
        # Ties in the order of code points: the same for the same text.
        counts = sorted(Counter(training).items(), key=lambda item: (-item[1], item[0]))
        self.alphabet = "".join(character for character, _ in counts[:n_characters])
        self.n_outputs, self.context = len(self.alphabet) + 1, context
        self.training, self.held_out = self._encoded(training), self._encoded(held_out)
        self.checksum = hashlib.sha256((training + "\0" + held_out).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def _encoded(self, text: str) -> NDArray[np.int64]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
        known = np.array([ord(character) for character in self.alphabet])
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], points), known.size - 1)
        return np.where(known[order][place] == points, order[place], known.size)

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.name,
            "n_train": int(self.training.size),
            "n_held_out": int(self.held_out.size),
            "sha256": self.checksum,
            "n_outputs": self.n_outputs,
            "context": self.context,
        }


def _python_sources() -> tuple[str, str]:
    """The modules at the top of Python's library, and those of them that are held out."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted((path for path in folder.glob("*.py") if path.is_file()), key=lambda path: path.name)
    if len(paths) < _HELD_OUT_FILE:
        raise DatasetError(f"{folder}: holds {len(paths)} sources of Python's library; give a text file as corpus")
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    held_out = texts[_HELD_OUT_FILE // 2 :: _HELD_OUT_FILE]
    training = [text for index, text in enumerate(texts) if index % _HELD_OUT_FILE != _HELD_OUT_FILE // 2]
    return "\n".join(training), "\n".join(held_out)


class _Transformer(Problem):
    """The network and its text."""

    architecture = "transformer"

    def __init__(self, torch: Any, width: int, depth: int, n_heads: int, objective: str, text: _Text) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be 'cross-entropy' or 'mse', got {objective!r}")
        self.torch, self.text, self.objective = torch, text, objective
        self.width, self.depth = as_count("width", width, minimum=2), as_count("depth", depth)
        self.n_heads = as_count("n_heads", n_heads)
        if self.width % self.n_heads:
            raise ValueError(f"width must be a multiple of n_heads = {self.n_heads}, got {self.width}")
        self.settings = {**text.settings(), "depth": self.depth, "n_heads": self.n_heads}
        self.tokens = torch.from_numpy(text.training), torch.from_numpy(text.held_out)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        n, outputs = self.width, self.text.n_outputs
        shapes: dict[str, tuple[int, ...]] = {"embedding": (outputs, n), "position": (self.text.context, n)}
        for block in range(self.depth):
            shapes |= {f"{part}_{block}": (n, n) for part in ("query", "key", "value", "merge")}
            shapes |= {f"up_{block}": (_EXPANSION * n, n), f"down_{block}": (n, _EXPANSION * n)}
        return {**shapes, "readout": (outputs, n)}

    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        torch, functional = self.torch, self.torch.nn.functional
        n, length, share = self.width, inputs.shape[1], 1.0 / math.sqrt(self.depth)
        size = n // self.n_heads

        def norm(h: Tensor) -> Tensor:
            return functional.layer_norm(h, (n,))

        def dense(name: str, h: Tensor) -> Tensor:
            weights = parameters[name]
            return h @ weights.T / math.sqrt(weights.shape[1])

        def heads(h: Tensor) -> Tensor:
            return h.reshape(*h.shape[:2], self.n_heads, size).transpose(1, 2)

        future = torch.ones((length, length), dtype=torch.bool, device=inputs.device).triu(1)
        h = (parameters["embedding"][inputs] + parameters["position"][:length]) / math.sqrt(2.0)
        for block in range(self.depth):
            x = norm(h)
            query, key, value = (heads(dense(f"{part}_{block}", x)) for part in ("query", "key", "value"))
            scores = (query @ key.transpose(2, 3) / size).masked_fill(future, -math.inf)
            mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(h.shape)
            h = h + share * dense(f"merge_{block}", mixed)
            units = math.sqrt(2.0) * functional.relu(dense(f"up_{block}", norm(h)))
            h = h + share * dense(f"down_{block}", units)
        return norm(h) @ parameters["readout"].T / n

    def probed(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self.apply(parameters, inputs)[:, -1]

    def _windows(self, tokens: Tensor, n: int, generator: Any) -> tuple[Tensor, Tensor]:
        context = self.text.context
        start = self.torch.randint(len(tokens) - context, (n,), generator=generator)
        windows = tokens[start[:, None] + self.torch.arange(context + 1)]
        return windows[:, :-1], windows[:, 1:]

    def batches(self, batch_size: int, sources: Sources, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in count(first):
            yield self._windows(self.tokens[0], batch_size, sources.of_step(step))

    def sample(self, n: int, generator: Any, *, held_out: bool) -> tuple[Tensor, Tensor]:
        return self._windows(self.tokens[1 if held_out else 0], n, generator)

    def _one_hot(self, targets: Tensor) -> Tensor:
        return self.torch.nn.functional.one_hot(targets, self.text.n_outputs) - 1.0 / self.text.n_outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.objective == "mse":
            return (outputs - self._one_hot(targets)).square().sum(dim=-1).mean()
        return self.torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def probe_targets(self, targets: Tensor) -> Array:
        return np.asarray(self._one_hot(targets[:, -1]).cpu().double().numpy())
