"""Real nodes in a network that fails: hosts find each other and form a cluster with nothing configured, and streams survive cables,
partitions, delay and loss. docs/internals/cluster.md has the times that are promised."""

import os
import statistics
import time

import pytest

import hosts
from answers import check_answer
from cluster import PROMPT
from node_on_host import Node, make_secret, need_model, wait_for

N_RUNS = int(os.environ.get("SHOAL_FIRE_RUNS", "5"))  # 20 for the figure in docs/performance.md
SLACK = 4.0  # tests share a small computer


@pytest.fixture
def net():
    need_model()
    with hosts.Network() as network:
        for name in "abc":
            network.host(name)
        yield network


def test_three_nodes_find_each_other(net, tmp_path):
    """Joined by invites; then started again and again with nothing but their own folders."""
    nodes = [Node(host, tmp_path / host.name).start() for host in net.hosts]
    for node in nodes[1:]:
        wait_for("the API is there", lambda: node.state() is not None and nodes[0].state() is not None, 20)
        line = nodes[0].order("invite", valid_s=60)["invite"]
        node.order("join", invite=line)
    for node in nodes:
        wait_for("all are members", lambda: len(node.peers_up()) == 2, 20)
    stranger = Node(net.host("d"), tmp_path / "d").start()
    wait_for("the API is there", lambda: stranger.state() is not None, 20)
    status, value = stranger.ask("/v1/cluster/join", {"invite": line})
    assert status >= 400, value  # it has been used
    assert nodes[0].state()["mesh_errors"]["refused_because"]["invite_used"] == 1
    assert not stranger.peers_up()
    stranger.kill()
    times = []
    for _ in range(N_RUNS):
        for node in nodes:
            node.kill()
        begin = time.monotonic()
        for node in nodes:
            node.start()
        for node in nodes:
            wait_for("all know all", lambda: len(node.peers_up()) == 2, 20)
        times.append(time.monotonic() - begin)
    print(f"from the start of three nodes until all have links to all: {statistics.median(times):.2f} s median of {N_RUNS}, "
          f"{max(times):.2f} s at most")
    assert statistics.median(times) < 3 * SLACK


def test_by_address_where_multicast_is_blocked(net, tmp_path):
    net.block_multicast()
    secret = make_secret(tmp_path)
    first = Node(net.hosts[0], tmp_path / "a", secret=secret).start()
    others = [Node(host, tmp_path / host.name, "--peer", f"{net.hosts[0].address}:8421", secret=secret).start() for host in net.hosts[1:]]
    for node in [first, *others]:
        wait_for("one address is enough to know all", lambda: len(node.peers_up()) == 2, 20)
    assert len({n["id"] for n in first.state()["nodes"]}) == 3


@pytest.fixture
def trio(net, tmp_path):
    """Three nodes, a pipeline of three, led by a."""
    secret = make_secret(tmp_path)
    nodes = {host.name: Node(host, tmp_path / host.name, "--placement", "memory", secret=secret) for host in net.hosts}
    for name in "bc":
        nodes[name].start()
    for name in "bc":
        wait_for("they are there", lambda: len(nodes[name].peers_up()) == 1, 20)
    nodes["a"].start("--model", need_model(), *(o for n in (1, 2) for o in ("--peer", f"{net.hosts[n].address}:8421")))
    for node in nodes.values():
        node.wait_serving("abc")
    yield net, nodes
    for node in nodes.values():
        print(f"---- {node.host.name}\n{node.log_text()[-6000:]}")


def undisturbed(node, stream, seconds):
    text = stream.finish()
    check_answer(PROMPT, text, stream.usage)
    print(f"the longest pause: {stream.longest_pause():.2f} s")
    assert stream.longest_pause() < seconds * SLACK
    return text


def test_cable_pulled(trio):
    """The other side says nothing any more: noticed by silence."""
    net, nodes = trio
    stream = nodes["a"].stream().read(5)
    net.unplug(net.hosts[1])
    undisturbed(nodes["a"], stream, 4)
    nodes["a"].wait_serving("ac", 10)
    net.heal()
    nodes["a"].wait_serving("abc", 40)
    wait_for("one coordinator", lambda: len({n.state()["coordinator"] for n in nodes.values()}) == 1, 10)


def test_leader_cut_off(trio):
    """The node with the head is alone; the client is at another."""
    net, nodes = trio
    stream = nodes["b"].stream().read(5)
    net.partition(net.hosts[:1], net.hosts[1:])
    undisturbed(nodes["b"], stream, 4)
    nodes["b"].wait_serving("bc", 10)
    net.heal()
    wait_for("one coordinator", lambda: len({n.state()["coordinator"] for n in nodes.values()}) == 1, 20)
    nodes["c"].wait_serving("abc", 40)
    states = [n.state() for n in nodes.values()]
    assert all(len(s["instances"]) == 1 and s["instances"][0]["epoch"] == states[0]["instances"][0]["epoch"] for s in states)


def test_one_way(trio):
    """a hears c, c does not hear a. b hears both: c is alive, but cannot work with a."""
    net, nodes = trio
    stream = nodes["a"].stream().read(5)
    net.one_way(net.hosts[0], net.hosts[2])
    undisturbed(nodes["a"], stream, 8)
    found = wait_for("a placement without the broken pair", lambda: nodes["b"].serving() and "bad" not in nodes["b"].serving() and nodes["b"].serving(), 20)
    assert not {"a", "c"} <= set(found)


def test_delay(trio):
    """200 ms each way are slow, and no reason to give a node up."""
    net, nodes = trio
    epoch = nodes["a"].state()["instances"][0]["epoch"]
    net.delay(net.hosts[1], 100)
    stream = nodes["a"].stream(n_max=12).read(2)
    text = stream.finish()
    check_answer(PROMPT, text, stream.usage)
    after = nodes["a"].state()
    assert after["instances"][0]["epoch"] == epoch, "it was moved"
    assert all(n["status"] == "up" for n in after["nodes"])


def test_loss(trio):
    """5 % of all frames of one host are lost, each way."""
    net, nodes = trio
    net.loss(net.hosts[1], 5)
    stream = nodes["a"].stream(n_max=60).read(2)
    undisturbed(nodes["a"], stream, 8)


def test_drain_and_leave(trio):
    """Nothing is lost when nodes go in order, either."""
    net, nodes = trio
    stream = nodes["a"].stream().read(3)
    nodes["a"].order("drain", node="b")
    stream.read(25)
    nodes["c"].kill(15)
    undisturbed(nodes["a"], stream, 3)
    nodes["a"].wait_serving("a", 15)
    nodes["a"].order("undrain", node="b")
    nodes["a"].wait_serving("ab", 40)


def test_all_start_again(trio):
    """What should run outlives a restart of every node."""
    net, nodes = trio
    for node in nodes.values():
        node.kill()
    for node in nodes.values():
        node.start()
    for node in nodes.values():
        node.wait_serving("abc", 40)
