"""Benchmarks compare with the plain reference versions that the tests use."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
