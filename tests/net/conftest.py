"""Fixtures that several files of this folder use."""

import pytest

from cluster import Cluster, need_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two nodes, a pipeline of two: shared by the tests that leave it as they found it."""
    need_model()
    with open(tmp_path_factory.mktemp("pair") / "log", "w") as log:
        cluster = Cluster(2, log=log)
        yield cluster
        cluster.stop()
