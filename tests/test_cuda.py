"""The CUDA path: its checks in Numba's simulator and on a device, its kernels in PTX, and a device that is absent.

The simulator must be chosen before Numba is imported, so `cuda_checks.py` runs in a process of its own, once for all
its functions; each is reported here by name. The simulator comes with Numba itself; `numba-cuda` brings its own.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

import pytest

import scalefield as sf
from scalefield.errors import BackendUnavailableError

TESTS = Path(__file__).resolve().parent
CHECKS = TESTS / "cuda_checks.py"
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


def run_python(*arguments: str, simulator: bool, **kwargs) -> subprocess.CompletedProcess:
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1" if simulator else "0", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=1200, **kwargs
    )


def device_reason() -> str | None:
    """Why no kernel can run on a device here; None if one can."""
    script = "from scalefield._native import gpu; import json; print(json.dumps(gpu.missing()))"
    result = run_python("-c", script, simulator=False)
    return json.loads(result.stdout) if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def run_checks(folder: Path, simulator: bool) -> dict[str, list[tuple[str, str]]]:
    """Return (outcome, message) of every case of every function of cuda_checks.py."""
    report = folder / "report.xml"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(CHECKS)]
    result = run_python(*arguments, simulator=simulator, cwd=TESTS.parent)
    assert report.exists(), result.stdout + result.stderr
    outcomes = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome, message = child.tag, f"{case.get('name')}: {child.text or child.get('message')}"
        outcomes[case.get("name").partition("[")[0]].append((outcome, message))
    return outcomes


@pytest.fixture(scope="module")
def in_the_simulator(tmp_path_factory):
    return run_checks(tmp_path_factory.mktemp("simulator"), simulator=True)


@pytest.fixture(scope="module")
def on_the_device(tmp_path_factory):
    reason = device_reason()
    if reason is not None:
        pytest.skip(reason)
    return run_checks(tmp_path_factory.mktemp("device"), simulator=False)


@pytest.mark.parametrize("name", NAMES)
def test_simulator(in_the_simulator, name):
    cases = in_the_simulator[name]
    assert cases
    assert [outcome for outcome, _ in cases] == ["passed"] * len(cases), "\n".join(text for _, text in cases)


@pytest.mark.parametrize("name", NAMES)
def test_device(on_the_device, name):
    cases = on_the_device[name]
    assert cases
    assert {outcome for outcome, _ in cases} <= {"passed", "skipped"}, "\n".join(text for _, text in cases)


def test_benchmarks_run():
    """At toy sizes in the simulator, since they are written where no device is at hand."""
    benchmarks = TESTS.parent / "benchmarks" / "test_bench_cuda.py"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable", str(benchmarks)]
    result = run_python(*arguments, simulator=True, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout


# --------------------------------------------------------------------------------------------- no device

ABSENT = """
import numpy as np, scalefield as sf
from scalefield.errors import BackendUnavailableError, ScalefieldError
from scalefield.simulation.cuda import simulate_on_cuda
from scalefield.simulation.plan import Plan
{before}
model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=8), width=4)
plan = Plan(model, 1, 1, 0, "literal", np.arange(2), np.dtype(float), "gaussian")
try:
    simulate_on_cuda(plan)
except BackendUnavailableError as error:
    assert isinstance(error, ScalefieldError)
    print(error)
"""


def test_absent_device():
    """It raises and names the driver; nothing runs on the processor instead."""
    if device_reason() is None:
        pytest.skip("there is a device")
    result = run_python("-c", ABSENT.format(before=""), simulator=False)
    assert result.returncode == 0, result.stderr
    missing = "no CUDA driver" if importlib.util.find_spec("numba_cuda") else "the package numba-cuda is not installed"
    assert result.stdout.startswith(f"device 'cuda' cannot be used: {missing}")


def test_simulate_never_falls_back():
    if device_reason() is None:
        pytest.skip("there is a device")
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=20), width=4, batch_size=4)
    with pytest.raises(BackendUnavailableError, match="device 'cuda' cannot be used"):
        sf.simulate(model, 3, seed=0, device="cuda")


PRETEND = "from scalefield._native import gpu; import importlib.util; importlib.util.find_spec = lambda name: name\n"
NO_ERROR = "gpu.cuda.cuda_error = lambda: None\n"


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("import sys; sys.modules['numba.cuda'] = None", "the package numba-cuda is missing"),
        (PRETEND.replace("name\n", "None\n"), "the package numba-cuda is not installed"),
        (PRETEND + "gpu.cuda.cuda_error = lambda: 'no\\nlibrary'", "no CUDA driver (no library)"),
        (PRETEND + NO_ERROR + "gpu.cuda.gpus = []", "the CUDA driver finds no device"),
        (
            PRETEND + NO_ERROR + "gpu.cuda.gpus = [0]; gpu.cuda.is_available = lambda: False",
            "the CUDA compiler (NVVM) is not installed; pip install 'scalefield[cuda]'",
        ),
        (
            PRETEND + "def fail(): raise OSError('bad\\nlibrary')\ngpu.cuda.cuda_error = fail",
            "the CUDA driver does not answer (OSError: bad library)",
        ),
    ],
    ids=["import", "package", "driver", "device", "compiler", "failing driver"],
)
def test_what_is_missing_is_named(before, message):
    result = run_python("-c", ABSENT.format(before=before), simulator=False)
    assert result.returncode == 0, result.stderr
    assert message in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_one_module_imports_the_target():
    """So that another CUDA compiler can take its place; and the package itself imports without it."""
    source = TESTS.parent / "src" / "scalefield"
    users = [path.name for path in source.rglob("*.py") if "numba import cuda" in path.read_text(encoding="utf-8")]
    others = [path.name for path in source.rglob("*.py") if "import numba.cuda" in path.read_text(encoding="utf-8")]
    assert (users, others) == (["gpu.py"], [])
    script = "import sys, scalefield, scalefield.simulation.cuda; print('numba' in sys.modules)"
    assert run_python("-c", script, simulator=False).stdout == "False\n"


# ---------------------------------------------------------------------------------------------------- PTX

def has_compiler() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("numba_cuda", "nvidia", "nvidia.cu13"))


@pytest.fixture(scope="module", params=[(8, 0), (9, 0), (10, 0)], ids=["sm_80", "sm_90", "sm_100"])
def compiled(request):
    """The architecture, and what is known of every kernel compiled for it."""
    if not has_compiler():
        pytest.skip("numba-cuda with its compiler is not installed (pip install 'scalefield[cuda]')")
    result = run_python(str(TESTS / "ptx_facts.py"), *map(str, request.param), simulator=False)
    assert result.returncode == 0, result.stderr
    return request.param, json.loads(result.stdout)


def test_ptx(compiled):
    """Every kernel compiles, has no local memory, calls nothing, and has the arithmetic and accesses it should."""
    capability, kernels = compiled
    # Two precisions of: 12 kernels and `descend` in two sizes and two sources of A(0), `advance` in two sizes and four
    # kinds, and its reset.
    assert len(kernels) == 2 * (2 * 2 * 12 + 2 * 2 + 2 * 4 + 1)
    for label, facts in kernels.items():
        name, dtype, source, _ = label.split()
        assert facts["target"] == f"sm_{capability[0]}{capability[1]}", label
        assert facts["entries"] == 1, label
        assert not facts["local"], label
        assert facts["calls"] == facts["atomics"] == 0, label
        # What a block may use without asking for more.
        assert facts["shared bytes"] <= 48 * 1024, label
        if dtype == "float32":
            # In double precision only the final sum of the losses, and where a loss is written down.
            assert facts["double"] <= {"sum_loss": 100, "advance": 2}.get(name, 0), label
        if dtype == "float64" and name not in ("reset", "reset_mixing"):
            # No arithmetic in single precision: entries of A(0) are converted.
            assert facts["float"] == 0, label
        if name in ("project", "back_project", "mix", "descend") and source == "stored":
            # Eight rows (or four, and the four ahead) and their factors, 16 bytes a load.
            lanes = 1 if dtype == "float32" else 2
            factors = {"project": 1, "mix": 1, "back_project": 2, "descend": 1}[name]
            # A(0) is in single precision, G is not.
            rows = 8 * lanes if name == "mix" else 8
            assert facts["vector loads"] == rows + factors * lanes, label
        if name in ("fill_projection", "residuals", "gradient") or source.startswith("batch"):
            # The generator multiplies 32 by 32 bits.
            assert facts["wide products"] >= 18, label


def test_registers(compiled):
    """What the assembler makes of it: nothing is spilled where A(0) streams, and blocks fit as they were bounded."""
    _, kernels = compiled
    if any(facts["registers"] is None for facts in kernels.values()):
        pytest.skip("nvJitLink, which comes with numba-cuda[cu13], is not installed")
    for label, facts in kernels.items():
        name, dtype, source, threads = label.split()
        # Loop invariants of the reduced step, and some of the generator's words where it makes A(0).
        assert facts["spilled"] <= (1024 if name == "advance" else 256 if source == "made" else 0), label
        if name in ("project", "back_project") and source == "stored" and dtype == "float32" and threads == "256":
            # Four blocks on a multiprocessor, and eight loads of four registers for each thread.
            assert 4 * 8 < facts["registers"] <= 65536 // (4 * 256), label
        if name == "advance" and threads == "256":
            assert facts["registers"] <= 65536 // (3 * 256), label
