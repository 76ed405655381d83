"""GET /openapi.json against the table of routes, and against what the server does."""

import json
import re

import pytest

from fixture_server import ROOT, Server, find_program

SCOPES = {
    "EVERYBODY": [],
    "LOOK": ["inference", "read"],
    "API_SCOPE_INFERENCE": ["inference"],
    "API_SCOPE_READ": ["read"],
    "API_SCOPE_ADMIN": ["admin"],
}


@pytest.fixture(scope="module")
def server():
    program = find_program()
    if program is None:
        pytest.skip("shoal-api-fixture is not built")
    s = Server(program)
    yield s
    assert s.stop() == 0


@pytest.fixture(scope="module")
def document(server):
    status, headers, text = server.request("GET", "/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json"
    return json.loads(text)


def operations(document):
    return {
        (path, method): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_is_the_file(document):
    assert document == json.loads((ROOT / "src/api/openapi.json").read_text())


def test_routes(document):
    """Both ways: nothing is served that is not described, and nothing described that is not served."""
    source = (ROOT / "src/api/api.c").read_text()
    table = source[source.index("struct route routes[]") :]
    table = table[: table.index("\n};")]
    rows = re.findall(r'\{(CLUSTER_ORDERS_PREFIX )?"([^"]+)",\s*"([A-Z]+)",[^{}]*?(\w+)\}', table)
    assert len(rows) == table.count("{") - 1
    routes = {
        (("/v1/cluster/" if prefix else "") + path, method.lower()): SCOPES[scope]
        for prefix, path, method, scope in rows
    }
    described = {
        (re.sub(r"\{\w+\}$", "*", path), method): operation["x-shoal-scopes"]
        for (path, method), operation in operations(document).items()
    }
    assert described == routes


def test_served(document, server):
    for path, method in operations(document):
        body = {} if method != "get" else None
        url = re.sub(r"\{\w+\}", "nothing", path)
        _, _, text = server.request(method.upper(), url, body)
        assert "unknown_url" not in text and "method_not_allowed" not in text, (method, path)


def references(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_form(document):
    assert document["openapi"].startswith("3.1.")
    ids = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(ids)) == len(ids)
    for reference in references(document):
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
    for (path, _), operation in operations(document).items():
        names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert names == re.findall(r"\{(\w+)\}", path)
        assert (operation["security"] == []) == (operation["x-shoal-scopes"] == [])
        assert "default" in operation["responses"]
