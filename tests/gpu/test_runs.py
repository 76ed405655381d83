"""GPUs as people use them: `shoal run`, and a cluster in which one node has a GPU and one has none. The model is small and random, since
the GPU may be a driver for processors."""

import json
import subprocess

import pytest

from gpu import cluster, runs
from gpu import name as gpu

PROMPT = "Tell me about the sea."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "small.gguf"
    runs.call(runs.program("shoal-make-model"), "--layers", 4, "--embd", 128, "--heads", 4, "--kv-heads", 2, "--ff", 256, "--tokenizer",
              cluster.need_model(), path)
    return path


def run(model, *options):
    """(standard output, standard error) of `shoal run`."""
    done = runs.call(cluster.SHOAL, "run", model, PROMPT, "--max-tokens", 8, "--temperature", 0, "--draft", 0, *options)
    return done.stdout.decode(), done.stderr.decode()


def test_run_answers(model):
    text, figures = run(model, "--device", gpu(), "--json")
    assert len(text.split()) > 3
    rank = json.loads(figures.splitlines()[-1])["ranks"][0]
    assert rank["device"] == gpu()
    assert rank["weight_bytes_device"] > 0


def test_run_refuses_unknown_devices(model):
    done = subprocess.run([cluster.SHOAL, "run", model, PROMPT, "--device", "abacus"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "abacus" in done.stderr and gpu() in done.stderr


def test_mixed_cluster_answers_the_same(model):
    """As the same pipeline without nodes."""
    devices = f"{gpu()},cpu"
    nodes = cluster.Cluster(2, "--device", devices, "--split", "pipeline", "--draft", "0", "--model", model, model=False)
    try:
        answers = {cluster.chat(api, model="small", prompt=PROMPT, n_max=8).strip() for api in nodes.apis}
    finally:
        nodes.stop()
    assert len(answers) == 1
    assert answers <= {run(model, "--ranks", 2, "--split", "pipeline", "--device", order)[0].strip() for order in (devices, f"cpu,{gpu()}")}
