"""Control groups of the kernel, of both versions: less of a processor or of memory for some processes. Skips where there are none."""

import contextlib
import os
import pathlib

import pytest

from cluster import wait_for

ROOT = pathlib.Path("/sys/fs/cgroup")


@contextlib.contextmanager
def control_group(controller, v1, v2):
    """A group with these files of settings, {name: text}; yields what a process does to enter it."""
    is_v1 = (ROOT / controller).is_dir()
    folder = (ROOT / controller if is_v1 else ROOT) / f"shoal-test-{os.getpid()}"
    try:
        folder.mkdir()
        for name, text in (v1 if is_v1 else v2).items():
            (folder / name).write_text(text)
    except OSError as e:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control groups here: {e}")
    try:
        yield lambda: (folder / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        wait_for("the group is empty", lambda: not (folder / "cgroup.procs").read_text(), 20)
        folder.rmdir()


def slow_group(percent):
    """So much of one processor."""
    quota = str(percent * 100)
    return control_group("cpu", {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": quota}, {"cpu.max": f"{quota} 10000"})


def small_group(mib):
    """So much memory, pages of files included."""
    n_bytes = str(mib << 20)
    return control_group("memory", {"memory.limit_in_bytes": n_bytes}, {"memory.max": n_bytes})
