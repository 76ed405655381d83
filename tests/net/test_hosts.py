"""The network of hosts.py does what its name for each fault says."""

import subprocess
import sys

import pytest

import hosts

ECHO = """
import socket, sys, threading
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
u.bind(("::", 7000))
t = socket.create_server(("", 7000))
def answer(c):
    while data := c.recv(65536):
        c.sendall(data)
def serve():
    while True:
        threading.Thread(target=answer, args=(t.accept()[0],), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
while True:
    data, sender = u.recvfrom(2000)
    u.sendto(data, sender)
"""
# Sends so many datagrams, one after the other's answer or its time; prints answers and the median of their times.
PING = """
import socket, statistics, sys, time
address, n, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
where = socket.getaddrinfo(address, 7000, type=socket.SOCK_DGRAM)[0]
s = socket.socket(where[0], socket.SOCK_DGRAM)
s.settimeout(timeout)
times = []
for i in range(n):
    begin = time.monotonic()
    try:
        s.sendto(str(i).encode(), where[4])
        while s.recv(2000) != str(i).encode():
            pass
        times.append(time.monotonic() - begin)
    except OSError:
        pass
print(len(times), statistics.median(times) * 1000 if times else 0)
"""
# Echoes so many bytes over TCP; prints the seconds.
STREAM = """
import socket, sys, threading, time
n = int(sys.argv[2])
s = socket.create_connection((sys.argv[1], 7000), 5)
s.settimeout(30)
begin = time.monotonic()
threading.Thread(target=s.sendall, args=(bytes(n),), daemon=True).start()
left = n
while left > 0:
    left -= len(s.recv(65536))
print(time.monotonic() - begin)
"""


@pytest.fixture(scope="module")
def net():
    with hosts.Network() as network:
        for name in "abc":
            host = network.host(name)
            host.echo = host.start([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
            assert host.echo.stdout.readline() == "ready\n"
        yield network


@pytest.fixture(autouse=True)
def healed(net):
    yield
    net.heal()


def ping(source, target, n=5, timeout=1, address=None):
    """Answers and the median time in ms."""
    done = source.run([sys.executable, "-c", PING, address or target.address, n, timeout])
    assert done.returncode == 0, done.stderr
    count, ms = done.stdout.split()
    return int(count), float(ms)


def is_silent(source, target):
    """Nothing comes back, for as long as one waits for it here."""
    return ping(source, target, n=2, timeout=0.2)[0] == 0


def stream(source, target, n):
    done = source.run([sys.executable, "-c", STREAM, target.address, n], timeout=60)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_hosts_reach_each_other(net):
    a, b, c = net.hosts
    for source, target in ((a, b), (b, c), (c, a)):
        assert ping(source, target)[0] == 5
    assert ping(a, b, address=f"{b.link_local()}%eth0")[0] == 5


def test_one_way(net):
    a, b, c = net.hosts
    net.one_way(a, b)
    assert is_silent(a, b) and is_silent(b, a) and ping(a, c)[0] == 5
    net.heal()
    assert ping(a, b)[0] == 5


def test_partition(net):
    a, b, c = net.hosts
    net.partition([a, b], [c])
    assert ping(a, b)[0] == 5 and is_silent(a, c) and is_silent(c, b)
    net.heal()
    assert ping(a, c)[0] == 5


def test_cable(net):
    a, b, _ = net.hosts
    net.unplug(b)
    assert is_silent(a, b)
    assert "LOWER_UP" not in b.ip("link", "show", "eth0")
    net.plug(b)
    assert ping(a, b)[0] == 5


def introduce(a, b):
    """They need not ask for each other's hardware addresses: lost questions would cost many answers."""
    for one, other in ((a, b), (b, a)):
        one.ip("neigh", "replace", other.address, "lladdr", other.mac, "dev", "eth0", "nud", "permanent")


@pytest.mark.alone
def test_loss(net):
    a, b, _ = net.hosts
    introduce(a, b)
    net.loss(b, 30)
    count, _ = ping(a, b, n=200, timeout=0.03)  # 49 % of the pairs arrive
    assert 60 < count < 140


@pytest.mark.alone
def test_rate(net):
    a, b, _ = net.hosts
    net.rate(b, 40)
    try:
        seconds = stream(a, b, 4_000_000)  # 0.8 s each way, both at the same time
        assert 0.6 < seconds < 4
    finally:
        net.rate(b, None)


@pytest.mark.alone
def test_delay(net):
    a, b, c = net.hosts
    before = ping(a, b)[1]
    net.delay(b, ms=50)
    count, ms = ping(a, b, timeout=1)
    assert count == 5 and 100 <= ms < 150 and before < 20
    assert ping(a, c)[1] < 20
    net.delay(b, ms=10, jitter_ms=20)
    assert ping(a, b, n=10, timeout=1)[0] == 10
    net.delay(b, ms=0)
    assert ping(a, b)[1] < 20
    # What passes through taps arrives whole, in both directions, and partitions hold there too.
    assert stream(a, b, 2_000_000) < 20
    net.partition([b], [a, c])
    assert is_silent(a, b)


@pytest.mark.alone
def test_delay_with_loss(net):
    a, b, _ = net.hosts
    introduce(a, b)
    net.delay(b, ms=1, loss_percent=30, double_percent=10)
    count, _ = ping(a, b, n=200, timeout=0.04)
    assert 60 < count < 140


def test_multicast_blocked(net):
    a, b, _ = net.hosts
    listen = ("import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5353));"
              "s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack('4s4s', socket.inet_aton('224.0.0.251'),"
              f"socket.inet_aton('{b.address}'))); print('ready', flush=True); s.settimeout(0.7);\n"
              "try:\n    print(s.recv(100).decode())\nexcept TimeoutError:\n    print('nothing')")
    send = ("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            f"s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton('{a.address}'));"
            "s.sendto(b'heard', ('224.0.0.251', 5353))")

    def heard():
        listener = b.start([sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True)
        assert listener.stdout.readline() == "ready\n"
        assert a.run([sys.executable, "-c", send]).returncode == 0
        return listener.stdout.readline().strip()

    assert heard() == "heard"
    net.block_multicast()
    assert heard() == "nothing"
    assert ping(a, b)[0] == 5


def test_nothing_stays():
    with pytest.raises(ValueError, match="on purpose"), hosts.Network() as network:
        host = network.host("x")
        process = host.start([sys.executable, "-c", "import time; time.sleep(100)"])
        prefix = network.prefix
        raise ValueError("on purpose")
    assert process.poll() is not None
    assert prefix not in hosts.command("ip", "netns", "list")
