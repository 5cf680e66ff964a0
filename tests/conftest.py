"""Shared set-up.

References beside the tests are importable, pictures need no screen, examples are repeatable, and Ctrl-C is heard.
"""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parent))

# The same examples every time; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Shells start background jobs with SIGINT ignored, and Python leaves it so: tests that interrupt would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
