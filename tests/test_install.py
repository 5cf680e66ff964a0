"""The package as installed: the right files, one version, a light import, and examples that run."""

import doctest
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import scalefield as sf

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "scalefield"


def is_editable() -> bool:
    record = importlib.metadata.distribution("scalefield").read_text("direct_url.json")
    return bool(record and json.loads(record).get("dir_info", {}).get("editable"))


EDITABLE = is_editable()


def source_files() -> set[str]:
    """Everything under src/scalefield that belongs into an installation."""
    found = (path for path in SOURCE.rglob("*") if path.is_file())
    names = {path.relative_to(SOURCE).as_posix() for path in found if "__pycache__" not in path.parts}
    return {name for name in names if not name.endswith(("meson.build", ".pyc"))}


def compiled_modules() -> set[str]:
    return {path.stem for path in (ROOT / "csrc").glob("*.pyx")}


# ---------------------------------------------------------------------------------------------------- files


def test_every_source_file_is_named_in_meson_build():
    text = (SOURCE / "meson.build").read_text(encoding="utf-8")
    blocks = re.findall(r"py\.install_sources\(\s*\[(.*?)\],\s*subdir: '([\w/]+)',\s*\)", text, flags=re.DOTALL)
    assert len(blocks) == text.count("install_sources")
    listed = [(name, subdir) for files, subdir in blocks for name in re.findall(r"'([^']+)'", files)]
    assert sorted(name for name, _ in listed) == sorted(source_files())
    # Each file goes to the folder of its own name, or modules would be installed under wrong names.
    for name, subdir in listed:
        assert (Path("scalefield") / name).parent.as_posix() == subdir


def test_every_module_is_installed():
    missing = []
    modules = [name for name in source_files() if name.endswith(".py")]
    modules += [f"_native/{name}.py" for name in compiled_modules()]
    for name in modules:
        parts = ("scalefield", *name.removesuffix(".py").split("/"))
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if importlib.util.find_spec(module) is None:
            missing.append(module)
    assert not missing


def test_data_and_type_information_are_installed():
    package = importlib.resources.files("scalefield")
    others = {name for name in source_files() if not name.endswith(".py")}
    assert {"py.typed", "data/digits_spectrum.csv"} <= others
    for name in others:
        assert package.joinpath(*name.split("/")).read_bytes() == (SOURCE / name).read_bytes(), name


def test_every_compiled_module_has_a_stub():
    assert compiled_modules()
    assert compiled_modules() == {Path(name).stem for name in source_files() if name.endswith(".pyi")}
    for name in compiled_modules():
        assert (SOURCE / "_native" / f"{name}.pyi").is_file()
        spec = importlib.util.find_spec(f"scalefield._native.{name}")
        assert spec.origin.endswith((".so", ".pyd"))


@pytest.mark.skipif(EDITABLE, reason="an editable installation runs from the source tree")
def test_the_installed_package_is_the_one_tested():
    installed = Path(sf.__file__).resolve().parent
    assert not installed.is_relative_to(ROOT / "src")
    found = (path for path in installed.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = {path.relative_to(installed).as_posix() for path in found}
    compiled = {name for name in names if name.endswith((".so", ".pyd"))}
    assert {Path(name).name.split(".")[0] for name in compiled} == compiled_modules()
    assert names - compiled == source_files()
    for name in source_files():
        assert (installed / name).read_bytes() == (SOURCE / name).read_bytes(), f"{name} differs: reinstall"


# -------------------------------------------------------------------------------------------------- version


def test_one_version():
    project = re.search(r"project\((.*?)\n\)", (ROOT / "meson.build").read_text(encoding="utf-8"), flags=re.DOTALL)
    version = re.search(r"^\s*version: '([^']+)',$", project[1], flags=re.MULTILINE)[1]
    assert sf.__version__ == version == importlib.metadata.version("scalefield")


# --------------------------------------------------------------------------------------------------- import

IMPORT = """
import importlib.util, json, sys, time
start = time.process_time()
import numpy, scipy.linalg, scipy.special, scipy.optimize
base = time.process_time() - start
before = set(sys.modules)
importlib.util.find_spec("scalefield")  # where an editable installation looks whether to rebuild
start = time.process_time()
import scalefield
seconds = time.process_time() - start
new = sorted(set(sys.modules) - before)
print(json.dumps({"base": base, "seconds": seconds, "new": new, "file": scalefield.__file__}))
"""


def fresh_import(folder: Path) -> dict:
    # From another folder, so that nothing is found by lying nearby.
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout.splitlines()[-1])


def test_import_is_light(tmp_path):
    """0.3 s of the processor beyond numpy and scipy, as the best of five: caches may be cold at first."""
    runs = []
    for _ in range(5):
        runs.append(fresh_import(tmp_path))
        if runs[-1]["seconds"] < 0.3:
            break
    loaded = {name.split(".")[0] for name in runs[-1]["new"]}
    assert "scalefield" in loaded
    assert Path(runs[-1]["file"]) == Path(sf.__file__)
    heavy = loaded & {"numba", "llvmlite", "matplotlib", "rich", "click", "sklearn", "cupy", "pandas", "hypothesis"}
    assert not heavy
    times = ", ".join(f"{run['seconds']:.3f} (numpy and scipy {run['base']:.3f})" for run in runs)
    assert min(run["seconds"] for run in runs) < 0.3, f"seconds to import scalefield: {times}"


# ------------------------------------------------------------------------------------------------- examples


def public_examples() -> list[doctest.DocTest]:
    """Examples in the docstrings of everything public: scalefield.__all__ and the __all__ of its modules."""
    finder = doctest.DocTestFinder()
    examples = finder.find(sf, "scalefield", module=False, globs={}) if sf.__doc__ and ">>>" in sf.__doc__ else []
    for name in sf.__all__:
        value = getattr(sf, name)
        if inspect.ismodule(value):
            members = [(f"{name}.{member}", getattr(value, member)) for member in value.__all__]
        else:
            members = [(name, value)]
        for path, member in members:
            found = finder.find(member, f"scalefield.{path}", module=inspect.getmodule(member), globs={})
            examples += [example for example in found if example.examples]
    return examples


EXAMPLES = public_examples()


def run_example(example: doctest.DocTest, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    report: list[str] = []
    try:
        failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
    assert tried > 0
    assert failed == 0, "".join(report)


def test_the_main_names_have_examples():
    names = {example.name for example in EXAMPLES}
    main = ["PowerLawSpectrum", "PowerLawSpectrum.quadrature", "Spectrum", "Model", "solve_dmft", "simulate"]
    main += ["datasets.digits_spectrum", "plot.loss_curves"]
    assert {f"scalefield.{name}" for name in main} <= names


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_examples(example, monkeypatch, tmp_path):
    run_example(example, monkeypatch, tmp_path)


def test_readme_examples(monkeypatch, tmp_path):
    """Python blocks of the README, in order and in one namespace: doctests where they have prompts, else scripts."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```(?:python|py|pycon)\s*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    assert blocks, "the README has no Python examples"
    namespace: dict = {}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        if ">>>" in block[1]:
            example = doctest.DocTestParser().get_doctest(block[1], namespace, "README", "README.md", line)
            # A doctest works on a copy of the namespace and clears it afterwards.
            names = example.globs
            monkeypatch.chdir(tmp_path)
            report: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(example, out=report.append, clear_globs=False)
            assert runner.failures == 0, "".join(report)
            namespace.update(names)
        else:
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("MPLBACKEND", "Agg")
            exec(compile("\n" * line + block[1], "README.md", "exec"), namespace)


def test_nothing_is_written_on_import(tmp_path):
    fresh_import(tmp_path)
    assert os.listdir(tmp_path) == []
