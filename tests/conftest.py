"""Shared set-up: references beside the tests are importable, pictures need no screen."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parent))
