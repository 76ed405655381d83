"""GPUs as people use them: `shoal run`, and a cluster in which one node has a GPU and one has none."""

import json
import subprocess

import pytest

from gpu import cluster, runs
from gpu import name as gpu

PROMPT = "Tell me about the sea."


def run(*options):
    """(standard output, standard error) of `shoal run`."""
    done = subprocess.run([str(part) for part in (cluster.SHOAL, "run", cluster.need_model(), PROMPT, "--max-tokens", 16, *options)],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_run_answers():
    text, figures = run("--device", gpu(), "--json", "--temperature", 0)
    assert len(text.split()) > 3
    rank = json.loads(figures.splitlines()[-1])["ranks"][0]
    assert rank["device"] == gpu()
    assert rank["weight_bytes_device"] > 0.5 * rank["weight_bytes"]


def test_run_refuses_unknown_devices():
    done = subprocess.run([cluster.SHOAL, "run", cluster.need_model(), PROMPT, "--device", "abacus"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "abacus" in done.stderr and gpu() in done.stderr


@pytest.mark.parametrize("order", ["gpu first", "gpu last"])
def test_mixed_cluster_answers_the_same(order):
    """As the same pipeline without nodes."""
    devices = ",".join([gpu(), "cpu"] if order == "gpu first" else ["cpu", gpu()])
    with_nodes = cluster.Cluster(2, "--device", devices, "--split", "pipeline", "--draft", "0")
    try:
        nodes = {node["name"]: node for node in cluster.state(with_nodes.apis[0])["nodes"]}
        assert len(nodes) == 2
        text = cluster.chat(with_nodes.apis[0], prompt=PROMPT)
        again = cluster.chat(with_nodes.apis[1], prompt=PROMPT)
    finally:
        with_nodes.stop()
    assert text == again
    candidates = {run("--device", list_, "--ranks", 2, "--split", "pipeline", "--draft", 0, "--temperature", 0)[0].strip()
                  for list_ in (f"{gpu()},cpu", f"cpu,{gpu()}")}
    assert text.strip() in candidates
    assert runs.model("smollm2").exists()
