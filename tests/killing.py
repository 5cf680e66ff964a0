"""Processes that are killed until they have done their work, and what they are run with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path


def kill_until_done(child: Callable[[int], None], *, at_random: bool = True) -> int:
    """Fork children, which get the number of the attempt, until one ends by itself; how many were killed before.

    Compiled code is loaded once: a child is a copy of this process. Killed at random moments, 0.02 to 0.2 s and more
    after their start, or by themselves.
    """
    moments = random.Random(1)
    for attempt in range(200):
        process = os.fork()
        if process == 0:
            try:
                child(attempt)
                os._exit(0)
            finally:
                os._exit(1)
        if at_random:
            # Later and later, so that a slow machine finishes too.
            time.sleep(moments.uniform(0.02, 0.2) * (1.0 + attempt / 10))
            os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        if not os.WIFSIGNALED(status):
            if status:
                sys.exit(f"status {status}")
            return attempt
    sys.exit("never done")


def run_script(script: str, *arguments: str) -> int:
    """Run a script of children on two threads, which prints how many were killed: at least three.

    Fast machines finish after fewer kills, but not after none.
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "SCALEFIELD_NUM_THREADS": "2", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 3, result.stdout
    return int(result.stdout)
