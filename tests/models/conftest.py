import pytest
from file_server import Server
from program import Store


@pytest.fixture
def server():
    s = Server()
    yield s
    s.close()


@pytest.fixture
def store(tmp_path, server):
    return Store(tmp_path / "data", server)
