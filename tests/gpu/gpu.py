"""The GPU that the tests of this folder use, and what they share with the tests of other folders.

SHOAL_TEST_GPU names it (default: the first that `shoal devices` lists). Without one the tests are skipped.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "vectors"), str(TESTS / "net")]

import cluster  # noqa: E402
import engine_runs as runs  # noqa: E402

__all__ = ["cluster", "devices", "name", "runs"]


@functools.cache
def devices():
    if not cluster.SHOAL.exists():
        pytest.skip(f"{cluster.SHOAL} is not built")
    done = subprocess.run([cluster.SHOAL, "devices", "--json"], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)["devices"]


def name():
    gpus = [device["name"] for device in devices() if not device["is_cpu"]]
    wanted = os.environ.get("SHOAL_TEST_GPU", gpus[0] if gpus else None)
    if wanted not in gpus:
        pytest.skip("ggml finds no GPU here (`make test-vulkan` brings one in software)")
    return wanted
