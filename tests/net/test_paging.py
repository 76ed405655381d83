"""A model that is larger than the memory it may have: it waits for other nodes first, then runs from its file, and says that this is slow."""

import pytest

import test_orders
from answers import check_answer
from cluster import PROMPT, Stream, need_model, state, wait_for
from control_groups import small_group

WAIT_S = 5  # CLUSTER_WAIT_MS: other nodes may still come


def problem(api):
    models = state(api)["models"]
    return models[0]["problem"] if models else ""


def ask_paged(folder, *options, enter=None):
    """Checks one node's answer; returns its log."""
    with test_orders.serve(folder, "--slots", "1", "--model", need_model(), *options, enter=enter) as (api, _):
        wait_for("it says that the model does not fit", lambda: problem(api), 5)
        wait_for("it serves all the same", lambda: test_orders.holders(api), WAIT_S + 20)
        text, _, usage = Stream(api, n_max=16).rest()
        assert problem(api) == ""
    check_answer(PROMPT, text, usage)
    return (folder / "log").read_text()


def test_more_than_it_may_have(tmp_path):
    log = ask_paged(tmp_path / "node", "--memory", 130)
    assert "read from disk in every step" in log and "read from disk as needed" in log


def test_more_than_there_is(tmp_path):
    """The kernel gives it no more: pages of the file come and go."""
    with small_group(150) as enter:
        log = ask_paged(tmp_path / "node", enter=enter)
    assert "read from disk in every step" in log


def test_caches_must_fit(tmp_path):
    with test_orders.serve(tmp_path / "node", "--slots", "1", "--model", need_model(), "--memory", 20) as (api, _):
        with pytest.raises(AssertionError):
            wait_for("it serves", lambda: test_orders.holders(api), WAIT_S + 4)
        assert "does not fit" in problem(api)
