"""Fixtures that several files of this folder use, and who runs beside whom.

Most tests wait more than they compute, so several run at the same time (pytest-xdist). Those that measure times, or compare speeds,
are marked `alone`: they come last, and no other test of this folder runs meanwhile.
"""

import fcntl

import pytest

from cluster import Cluster, need_model

ALONE = "alone"


def pytest_configure(config):
    config.addinivalue_line("markers", f"{ALONE}: measures times; no other test of this folder runs meanwhile")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker(ALONE) is not None)


@pytest.fixture(autouse=True)
def turn(request):
    """This file as a lock of all processes that run tests of this folder: held by many, or by one alone."""
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker(ALONE) else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two nodes, a pipeline of two: shared by the tests that leave it as they found it."""
    need_model()
    with open(tmp_path_factory.mktemp("pair") / "log", "w") as log:
        cluster = Cluster(2, log=log)
        yield cluster
        cluster.stop()
