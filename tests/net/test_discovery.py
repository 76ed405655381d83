"""Nodes find each other by mDNS: on a bridge, beside another responder, through loss, and among strangers who lie."""

import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

import pytest

import hosts

N_RUNS = int(os.environ.get("SHOAL_DISCOVERY_RUNS", "20"))
TARGET_S = 3  # median
SERVICE = "_shoal-worker._tcp.local"
GROUP = "224.0.0.251"
PORT = 5353


class Tool:
    """A process that announces and browses; its lines are kept as they come, with the time."""

    def __init__(self, host, name, *options, port=7700):
        self.begin = time.monotonic()
        self.process = host.start([hosts.program("shoal-discovery-tool"), name, str(port), *options], stdout=subprocess.PIPE, text=True)
        self.lines, self.changed = [], threading.Condition()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.id = self.wait("begin")[1]

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append((time.monotonic(), line.split()))
                self.changed.notify_all()

    def matching(self, *words):
        return [(when, line) for when, line in self.lines if line[0] == words[0] and all(w in line for w in words[1:])]

    def wait(self, *words, seconds=10, n=1):
        """The n-th line that begins with the first word and has the others."""
        end = time.monotonic() + seconds
        with self.changed:
            while len(self.matching(*words)) < n:
                left = end - time.monotonic()
                assert left > 0 and self.changed.wait(left), f"no {words} within {seconds} s: {self.lines}"
            self.last = self.matching(*words)[n - 1][0]
            return self.matching(*words)[n - 1][1]

    def found(self, other, seconds=10):
        """Waits; returns when, and the line."""
        line = self.wait("found", other.id, seconds=seconds)
        return self.last, line

    def end(self):
        """Goodbye; returns the counters of its last line."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
        self.reader.join(10)
        return dict(pair.split("=") for pair in self.wait("end")[1:])


@pytest.fixture
def net():
    with hosts.Network() as network:
        for name in "abc":
            network.host(name)
        yield network


@pytest.mark.alone
def test_three_hosts_find_each_other(net):
    """The time from the start of the last one until all know all, by default over 20 runs."""
    seconds = []
    for _ in range(N_RUNS):
        tools = [Tool(host, host.name) for host in net.hosts]
        times = [one.found(other)[0] for one in tools for other in tools if one is not other]
        seconds.append(max(times) - tools[-1].begin)
        for host, one in zip(net.hosts, tools):
            for other in (t for t in tools if t is not one):
                line = one.found(other)[1]
                assert line[4:7] == ["7700", "4096", "2"]
                assert line[7].split(",")[0].startswith("10.77.0.")
            assert not one.matching("found", one.id)
        for tool in tools:
            tool.end()
    median = statistics.median(seconds)
    print(f"\ndiscovery of three: median {median:.3f} s, longest {max(seconds):.3f} s, {N_RUNS} runs")
    assert median < TARGET_S


def test_addresses_of_both_kinds(net):
    a, b, _ = net.hosts
    one, other = Tool(a, "one"), Tool(b, "other")
    assert one.found(other)[1][7].split(",") == [b.address, f"{b.link_local()}%eth0"]
    assert other.found(one)[1][7].split(",") == [a.address, f"{a.link_local()}%eth0"]


def test_only_ipv6(net):
    a, b, _ = net.hosts
    for host in (a, b):
        host.ip("addr", "flush", "dev", "eth0", "scope", "global")
    one, other = Tool(a, "one"), Tool(b, "other")
    assert one.found(other)[1][7] == f"{b.link_local()}%eth0"


def test_late_and_leaving(net):
    a, b, c = net.hosts
    one, other = Tool(a, "one"), Tool(b, "other")
    one.found(other)
    time.sleep(1.2)
    late = Tool(c, "late")
    for tool in (one, other):
        assert tool.found(late)[0] - late.begin < TARGET_S
        assert late.found(tool)[0] - late.begin < TARGET_S
    goodbye = time.monotonic()
    other.end()
    for tool in (one, late):
        tool.wait("lost", other.id)
        assert tool.last - goodbye < 3
    # The same host again, as another node: found again, and no trace of the old one.
    again = Tool(b, "again")
    assert one.found(again)[0] - again.begin < TARGET_S


def test_silent_one_looks_but_is_not_seen(net):
    a, b, _ = net.hosts
    worker, looker = Tool(a, "worker"), Tool(b, "looker", "silent")
    looker.found(worker)
    time.sleep(1.5)
    assert not worker.matching("found")


def test_cable_and_new_interface(net):
    a, b, _ = net.hosts
    one, other = Tool(a, "one"), Tool(b, "other")
    one.found(other), other.found(one)
    net.unplug(b)
    other.wait("lost", one.id)  # its only interface is gone
    net.plug(b)
    begin = time.monotonic()
    other.wait("found", one.id, n=2)
    assert other.last - begin < TARGET_S
    b.ip("addr", "add", "10.77.1.9/24", "dev", "eth0")
    one.wait("found", other.id, n=2)
    assert "10.77.1.9" in one.matching("found", other.id)[-1][1][7]


def test_late_interface(net):
    """A node that starts without a network finds the others once there is one."""
    a, b, _ = net.hosts
    net.unplug(b)
    one, other = Tool(a, "one"), Tool(b, "other")
    time.sleep(1)
    assert not other.matching("found")
    net.plug(b)
    one.found(other), other.found(one)


def test_loss_and_delay(net):
    a, b, _ = net.hosts
    net.loss(b, 20)
    net.delay(b, ms=100, jitter_ms=50)
    one, other = Tool(a, "one"), Tool(b, "other")
    one.found(other, seconds=20), other.found(one, seconds=20)


def test_multicast_blocked(net):
    net.block_multicast()
    tools = [Tool(host, host.name) for host in net.hosts]
    time.sleep(4)
    assert not any(tool.matching("found") for tool in tools)
    net.heal()  # and it works as soon as it passes
    tools[0].found(tools[1], seconds=20)
    for tool in tools:
        assert tool.end()["malformed"] == "0"


def test_killed_and_parted(net):
    """Who was killed stays known: mDNS is no check of life. Nothing is lost by a short partition."""
    a, b, c = net.hosts
    tools = [Tool(host, host.name) for host in net.hosts]
    tools[0].found(tools[1]), tools[0].found(tools[2])
    net.partition([a], [b, c])
    time.sleep(2)
    tools[2].process.kill()
    net.heal()
    time.sleep(2)
    assert not tools[0].matching("lost")


def test_two_nodes_on_one_host(net):
    a, b, _ = net.hosts
    one, two, other = Tool(a, "one", port=7701), Tool(a, "two", port=7702), Tool(b, "other")
    for tool in (one, two):
        assert tool.found(other) and other.found(tool)
    assert one.found(two)[1][4] == "7702" and two.found(one)[1][4] == "7701"
    one.end()
    other.wait("lost", one.id)
    assert not other.matching("lost", two.id)


def test_loopback_only(net):
    """Nodes that share one computer, and are seen by nobody else."""
    a = net.hosts[0]
    outside = Tool(a, "outside")
    one, two = Tool(a, "one", "loopback", port=7701), Tool(a, "two", "loopback", port=7702)
    assert one.found(two)[1][7] == "127.0.0.1" and two.found(one)
    time.sleep(1.5)
    assert not outside.matching("found") and not one.matching("found", outside.id)


# ---- other programs on port 5353 ----

def avahi_daemon():
    """avahi-daemon with what it needs, when it is installed."""
    path = shutil.which("avahi-daemon", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        pytest.skip("avahi-daemon is not installed")
    return path


def test_beside_avahi_daemon(net, tmp_path):
    a, b, c = net.hosts
    (tmp_path / "avahi.conf").write_text("[server]\nhost-name=beside\nuse-ipv4=yes\nuse-ipv6=yes\nenable-dbus=no\n[rlimits]\n")
    # Its own /run, as another one may run on this computer.
    run = f"mount -t tmpfs none /run && mkdir -p /run/avahi-daemon && exec {avahi_daemon()} --no-drop-root --no-chroot --no-rlimits -f {tmp_path}/avahi.conf"
    daemon = a.start(["unshare", "-m", "sh", "-c", run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = []
    reader = threading.Thread(target=lambda: log.extend(daemon.stdout), daemon=True)
    reader.start()
    time.sleep(2)
    assert daemon.poll() is None, log
    beside, other = Tool(a, "beside"), Tool(b, "other")
    beside.found(other), other.found(beside)
    late = Tool(c, "late")
    assert late.found(beside)[0] - late.begin < TARGET_S
    other.end()
    beside.wait("lost", other.id)
    time.sleep(1)
    daemon.terminate()
    daemon.wait(10)
    reader.join(10)
    assert not [line for line in log if "conflict" in line.lower() or "collision" in line.lower() or "invalid" in line.lower()], log
    assert beside.end()["malformed"] == "0"


# ---- strangers ----

def name(text):
    return b"".join(bytes([len(p)]) + p.encode() for p in text.split(".") if p) + b"\0"


def record(owner, kind, data, ttl=120, cls=0x8001):
    return (owner if isinstance(owner, bytes) else name(owner)) + struct.pack(">HHIH", kind, cls, ttl, len(data)) + data


def answer(*records):
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def service(number, address="10.77.0.250", ttl=120, **text):
    instance = name(f"x{number}.{SERVICE}")
    pairs = {"id": f"{number + 1:032x}", "name": f"x{number}"} | text
    txt = b"".join(bytes([len(p)]) + p for p in (f"{k}={v}".encode() for k, v in pairs.items()))
    return answer(
        record(SERVICE, 12, instance, ttl, 1),
        record(instance, 33, struct.pack(">HHH", 0, 0, 7000) + name(f"h{number}.local"), ttl),
        record(instance, 16, txt, ttl),
        record(f"h{number}.local", 1, socket.inet_aton(address), ttl),
    )


# Runs in a host: sends the packets that come on stdin (length, bytes) from port 5353 to the group.
SEND = f"""
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.bind(("", int(sys.argv[2])))
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
n = 0
while head := sys.stdin.buffer.read(2):
    packet = sys.stdin.buffer.read(struct.unpack(">H", head)[0])
    s.sendto(packet, (sys.argv[3] if len(sys.argv) > 3 else "{GROUP}", {PORT}))
    n += 1
    if n % 20 == 0:
        time.sleep(0.02)
"""


def send(host, packets, port=PORT, to=None):
    data = b"".join(struct.pack(">H", len(p)) + p for p in packets)
    where = [host.address, str(port)] + ([to] if to else [])
    subprocess.run(["ip", "netns", "exec", host.namespace, sys.executable, "-c", SEND, *where], input=data, check=True, timeout=60)


def test_garbage(net):
    """Random bytes, cut packets, changed packets, loops of names: counted, and those who are real find each other all the same."""
    a, b, c = net.hosts
    rng = random.Random(4)
    one = Tool(a, "one")
    good = [service(n) for n in range(3)]
    packets = [rng.randbytes(rng.randrange(1, 1400)) for _ in range(200)]
    packets += [g[: rng.randrange(len(g))] for g in good for _ in range(60)]
    for _ in range(300):
        changed = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 8)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        packets.append(bytes(changed))
    loop = struct.pack(">HHHHHH", 0, 0x8400, 0, 1, 0, 0) + b"\xc0\x0c" + struct.pack(">HHIH", 12, 1, 120, 2) + b"\xc0\x0c"
    packets += [loop, b"", struct.pack(">HHHHHH", 0, 0x8400, 65535, 65535, 65535, 65535), answer(record("a.local", 5, name("a.local")))]
    corpus = pathlib.Path(__file__).resolve().parent.parent / "fuzz" / "corpus" / "mdns"
    packets += [path.read_bytes()[3:1400] for path in sorted(corpus.iterdir())][:200]
    send(c, packets)
    other = Tool(b, "other")
    one.found(other), other.found(one)
    counters = one.end()
    assert int(counters["malformed"]) > 100


def test_only_the_link_is_heard(net):
    """Answers by unicast, or from another port, could come from anywhere."""
    a, _, c = net.hosts
    one = Tool(a, "one")
    send(c, [service(1)], port=5999)
    send(c, [service(2)], to=a.address)
    send(c, [service(3)])
    one.wait("found", f"{4:032x}")
    assert len(one.matching("found")) == 1


def test_flood_of_services(net):
    """Thousands of services from one stranger take a bounded part of the table; found events are bounded, real nodes are found."""
    a, b, c = net.hosts
    one = Tool(a, "one")
    send(c, [service(n) for n in range(3000)])
    other = Tool(b, "other")
    one.found(other), other.found(one)
    time.sleep(1)
    strangers = [line for _, line in one.matching("found") if line[2] != other.id]
    assert 0 < len(strangers) <= 32
    counters = one.end()
    assert int(counters["dropped"]) > 1000 and int(counters["peers"]) <= 33


def test_texts_of_strangers_are_clean(net):
    a, _, c = net.hosts
    one = Tool(a, "one")
    send(c, [service(1, name="\x1b[31mred"), service(2, id="0" * 32), service(3, id="zz"), service(4, name="fine", memory="9" * 30)])
    line = one.wait("found", f"{5:032x}")
    assert line[3:6] == ["fine", "7000", "0"]
    one.wait("found", f"{2:032x}")
    assert len(one.matching("found")) == 2 and not any("\x1b" in " ".join(line) for _, line in one.lines)


def test_changes_are_told_once_a_second(net):
    a, _, c = net.hosts
    one = Tool(a, "one")
    begin = time.monotonic()
    send(c, [service(1, memory=str(n)) for n in range(400)])
    time.sleep(1.5)
    seconds = time.monotonic() - begin
    assert 2 <= len(one.matching("found")) <= seconds + 2
    send(c, [service(1, ttl=0)])
    one.wait("lost", f"{2:032x}")
