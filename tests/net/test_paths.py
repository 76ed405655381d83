"""Two nodes with two cables between them, a slow one that they know each other by and a fast one: tensors take the fast one, also when
it comes late, change to the other when it is cut, and go where a route says. The byte counters of the interfaces are the witnesses."""

import concurrent.futures
import time

import pytest

import hosts
from answers import check_answer
from node_on_host import Node, make_secret, need_model, wait_for

SLOW_MBIT = 6  # beside the speed that is assumed for one thread, the other cable is worth a new connection
OPTIONS = ("--no-discovery", "--placement", "memory")
PROMPT = "Tell me what these are, and which one is the odd one out: " + ", ".join(f"a house with {n} rooms" for n in range(60)) + "."
N_MAX = 40
TENSOR_BYTES = 400_000  # the prompt's hidden states alone are more than this
LONG_PROMPT = "Write a long story about a lighthouse keeper and the sea."
LONG_MAX = 900  # tokens: longer than it takes to notice a new cable
PAUSE_S = 15 * 2  # with reading the prompt again; tests share a small computer


class Cables:
    """Hosts a and b on the switch's bridge (eth0, slow) and on a second one (eth1)."""

    def __init__(self, net, folder, is_fast_v6=False):
        need_model()
        self.net, self.folder, self.secret = net, folder, make_secret(folder)
        net.add_bridge("fast")
        self.hosts = [net.host(name) for name in "ab"]
        for host in self.hosts:
            net.ip("link", "add", self.cable(host), "type", "veth", "peer", "name", "eth1", "netns", host.namespace)
            net.ip("link", "set", self.cable(host), "master", "fast", "up")
            if is_fast_v6:  # as everywhere but in hosts.py: an address is tentative at first
                host.run(["sysctl", "-qw", "net.ipv6.conf.eth1.accept_dad=1", "net.ipv6.conf.eth1.dad_transmits=3"], check=True)
            host.ip("addr", "add", self.fast(host, is_fast_v6) + ("/64" if is_fast_v6 else "/24"), "dev", "eth1")
            host.ip("link", "set", "eth1", "up")
            net.rate(host, SLOW_MBIT)
        self.nodes = []

    def cable(self, host):
        return f"fast{host.index}"

    def fast(self, host, is_v6=False):
        return f"fd00:77::{host.index}" if is_v6 else f"10.78.0.{host.index}"

    def plug(self, is_in=True):
        """The fast cable; both ends see it."""
        for host in self.hosts:
            self.net.ip("link", "set", self.cable(host), "up" if is_in else "down")

    def start(self, options_a=(), options_b=()):
        """Node b, then a, which leads the model and is told of b's slow address only."""
        b = Node(self.hosts[1], self.folder / "b", *OPTIONS, *options_b, secret=self.secret).start()
        wait_for("the API is there", lambda: b.state() is not None, 20)
        a = Node(self.hosts[0], self.folder / "a", *OPTIONS, "--model", need_model(),
                 "--peer", f"{self.hosts[1].address}:8421", *options_a, secret=self.secret).start()
        self.nodes = [a, b]
        wait_for("both serve", lambda: set(a.serving()) == {"a", "b"}, 60)
        return self.nodes

    def bytes(self, interface):
        """Both ways, of host a."""
        return sum(int(self.hosts[0].run(["cat", f"/sys/class/net/{interface}/statistics/{way}_bytes"], check=True).stdout)
                   for way in ("tx", "rx"))

    def ask(self, meanwhile=lambda: None, n_max=N_MAX, prompt=PROMPT, pause_s=None):
        """Asks node a. Returns what went over eth0 and eth1."""
        before = self.bytes("eth0"), self.bytes("eth1")
        stream = self.nodes[0].stream(n_max, prompt)
        stream.read(6)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(meanwhile)
            text = stream.finish()
            done.result()
        check_answer(prompt, text, stream.usage)
        print(f"longest pause {stream.longest_pause():.2f} s of {len(stream.pieces)} pieces")
        assert pause_s is None or stream.longest_pause() < pause_s
        return self.bytes("eth0") - before[0], self.bytes("eth1") - before[1]

    def ask_over_fast(self):
        """Tensors go over the fast cable. A round of measuring, which sends some over every cable, may fall into an answer: asks again then,
        something that no cache knows."""
        for attempt in range(3):
            slow, fast = self.ask(prompt=f"Question {attempt}. {PROMPT}")
            print(f"{slow} bytes over the slow cable, {fast} over the fast one")
            if slow < fast / 2:
                break
        assert fast > TENSOR_BYTES and slow < fast / 2

    def paths(self, index):
        """Of that node to the other, by the local interface; routes are apart."""
        now = self.nodes[index].state()
        other = next(n for n in now["nodes"] if not n["is_self"]) if now else {"paths": []}
        return other["paths"]

    def used(self, index):
        return [p for p in self.paths(index) if p["is_used"]]

    def wait_used(self, index, interface, is_route=False, seconds=20):
        def used():
            now = self.used(index)
            return now and (now[0]["local_interface"], now[0]["is_route"]) == (interface, is_route) and now[0]["mbit_s"] > 0

        wait_for(f"{interface} is used", used, seconds)

    def wait_taken(self, interface, seconds=30):
        """Waits until the instance is connected over that one: the node of rank 1 connects."""
        def taken():
            names = self.nodes[0].serving()
            return len(names) == 2 and [p["local_interface"] for p in self.paths("ab".index(names[1])) if p["is_taken"]] == [interface]

        wait_for(f"tensors take {interface}", taken, seconds)

    def instance(self):
        return self.nodes[0].state()["instances"][0]


@pytest.fixture
def net():
    with hosts.Network() as network:
        yield network


def test_tensors_take_the_fast_cable_and_then_the_other(net, tmp_path):
    cables = Cables(net, tmp_path)
    cables.start()
    for index in range(2):
        cables.wait_used(index, "eth1")
        by_interface = {p["local_interface"]: p for p in cables.paths(index) if p["status"] == "reached"}
        assert by_interface.keys() == {"eth0", "eth1"}
        assert by_interface["eth0"]["mbit_s"] < 2 * SLOW_MBIT < by_interface["eth1"]["mbit_s"], by_interface
    cables.wait_taken("eth1")
    cables.ask_over_fast()

    slow, fast = cables.ask(lambda: net.ip("link", "set", cables.cable(cables.hosts[1]), "down"), pause_s=PAUSE_S)
    print(f"fast cable cut: {slow} bytes over the slow one, {fast} over the fast one")
    assert slow > TENSOR_BYTES  # the prompt was read again, over the other
    for index in range(2):
        cables.wait_used(index, "eth0")
    cables.wait_taken("eth0")
    assert cables.nodes[0].state()["requests"]["failed"] == 0

    net.ip("link", "set", cables.cable(cables.hosts[1]), "up")
    for index in range(2):
        cables.wait_used(index, "eth1", seconds=30)
    cables.wait_taken("eth1")


def test_a_silent_cable_is_found_out(net, tmp_path):
    """No interface goes down: only frames are lost."""
    cables = Cables(net, tmp_path)
    a, _ = cables.start()
    cables.wait_taken("eth1")
    slow, _ = cables.ask(lambda: net.in_switch("ip", "link", "set", cables.cable(cables.hosts[0]), "nomaster"), n_max=60, pause_s=PAUSE_S)
    assert slow > TENSOR_BYTES
    assert a.state()["requests"]["failed"] == 0


def test_a_cable_that_comes_later(net, tmp_path):
    """It is plugged in while an answer is given, which goes on over it."""
    cables = Cables(net, tmp_path)
    cables.plug(False)
    cables.start()
    cables.wait_taken("eth0")
    slow, fast = cables.ask()
    print(f"one cable: {slow} bytes over the slow one, {fast} over the fast one")
    assert slow > TENSOR_BYTES and fast == 0
    before = cables.instance()  # tensors that fill a slow cable may have held up heartbeats once already

    def plug():
        begin = time.monotonic()
        cables.plug()
        cables.wait_taken("eth1")
        print(f"tensors take it {time.monotonic() - begin:.1f} s after it was plugged in")

    slow, fast = cables.ask(plug, n_max=LONG_MAX, prompt=LONG_PROMPT, pause_s=PAUSE_S)
    print(f"another one: {slow} bytes over the slow one, {fast} over the fast one")
    assert fast > TENSOR_BYTES
    now = cables.instance()
    assert now["epoch"] != before["epoch"] and now["restarts"] == before["restarts"]
    assert cables.nodes[0].state()["requests"]["failed"] == 0
    cables.ask_over_fast()


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_route_wins(net, tmp_path, who):
    cables = Cables(net, tmp_path)
    options = {}
    if who == "a":
        options["options_a"] = ("--route", f"b={cables.hosts[1].address}")
    else:
        options["options_b"] = ("--route", f"a={cables.hosts[0].address}")
    cables.start(**options)
    for index in range(2):
        cables.wait_used(index, "eth0", is_route=True)
    if who == "a":  # an instance that was placed after the route was known
        slow, fast = cables.ask()
        print(f"route: {slow} bytes over the slow cable, {fast} over the fast one")
        assert slow > TENSOR_BYTES and fast < slow / 2


def test_a_route_that_leads_nowhere(net, tmp_path):
    cables = Cables(net, tmp_path)
    a, _ = cables.start(options_a=("--route", "b=10.78.0.99"))
    cables.wait_used(0, "eth1")
    assert "route=10.78.0.99 leads nowhere" in a.log_text()
    assert [p["status"] for p in cables.paths(0) if p["is_route"]] == ["unreached"]


def test_ipv6(net, tmp_path):
    """The fast cable knows nothing of IPv4."""
    cables = Cables(net, tmp_path, is_fast_v6=True)
    for host in cables.hosts:
        host.run(["sysctl", "-qw", "net.ipv6.bindv6only=0"], check=True)
    any_address = ("--mesh", "[::]:8421")
    cables.start(any_address, any_address)
    for index in range(2):
        cables.wait_used(index, "eth1")
        assert ":" in cables.used(index)[0]["remote"]
    cables.wait_taken("eth1")  # its addresses are usable a second or two late
    cables.ask_over_fast()
