"""Processes of this computer, seen from outside."""

import pathlib
import time


def fields(pid):
    """State and what follows it in /proc/PID/stat; None when there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent counts as gone."""
    now = fields(pid)
    return now is not None and now[0] not in "ZX"


def children(pid):
    """Processes whose parent is pid, in the order of their start: runners by rank."""
    found = [int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(child for child in found if alive(child) and int((fields(child) or [0, 0])[1]) == pid)


def wait_until_gone(pids, seconds):
    """Returns those that are still there."""
    until = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    return [pid for pid in pids if alive(pid)]
