"""Hosts for tests: network namespaces on a bridge, in a network that can lose, delay, slow down and part.

    with hosts.Network() as net:
        a, b = net.host("a"), net.host("b")
        server = a.start([program])
        net.one_way(a, b)            # b hears nothing of a
        net.delay(b, ms=200)         # each way
        net.heal()

Frames are dropped in the switch (nftables, bridge family), so that it hits every protocol, ARP included; the hosts know nothing of
it. Delay comes from shoal-net-relay, as not every kernel has netem. Everything lives in namespaces whose names carry our process
id; nothing outside of them is changed. Processes are ended by their ids.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("SHOAL_BUILD", ROOT / "build" / "dev"))
RELAY = BUILD / "tests" / "net" / "shoal-net-relay"
PREFIX = "shoaltest"
HOSTS_MAX = 250
END_S = 10
counter = itertools.count()


def program(name):
    """A program of this folder; skips when it is not built."""
    path = BUILD / "tests" / "net" / name
    if not path.exists():
        pytest.skip(f"{path} is not built")
    return path


def command(*arguments, text=None):
    """Runs a command of the system; its words are the error."""
    done = subprocess.run([str(a) for a in arguments], input=text, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def why_not():
    """Why there can be no hosts here; None when there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft", "tc"):
        if shutil.which(tool) is None:
            return f"there is no program {tool} (Debian packages iproute2, nftables)"
    name = f"{PREFIX}-{os.getpid()}-probe"
    try:
        command("ip", "netns", "add", name)
    except (RuntimeError, OSError) as e:
        return f"no network namespaces here: {e}"
    try:
        command("ip", "-n", name, "link", "add", "lan", "type", "bridge")
        rules = "table bridge t {\nchain c {\ntype filter hook forward priority 0\nnumgen random mod 100 < 5 drop\n}\n}\n"
        command("ip", "netns", "exec", name, "nft", "-f", "-", text=rules)
    except (RuntimeError, OSError) as e:
        return f"no bridges with rules here: {e}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


def need_hosts():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


def remove_leftovers():
    """Namespaces of test runs that were killed."""
    for line in command("ip", "netns", "list").splitlines():
        found = re.match(rf"({PREFIX}-(\d+)-\S+)", line)
        if found and not pathlib.Path(f"/proc/{found[2]}").exists():
            subprocess.run(["ip", "netns", "del", found[1]], capture_output=True)


class Host:
    def __init__(self, net, name, index):
        self.net, self.name, self.index = net, name, index
        self.namespace = f"{net.prefix}-{name}"
        self.address = f"10.77.0.{index}"
        self.mac = f"02:00:00:00:00:{index:02x}"
        self.cable = f"p{index}"  # the switch's end of its cable
        self.port = self.cable  # where it is attached to the bridge: the relay's end when it has one
        self.relay = None
        self.loss_permille = 0
        self.is_multicast_blocked = False

    def ip(self, *arguments):
        return command("ip", "-n", self.namespace, *arguments)

    def start(self, arguments, **options):
        """A process in this host, as subprocess.Popen. It is killed at the end of the network."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace, *map(str, arguments)], **options)
        self.net.processes.append(process)
        return process

    def run(self, arguments, timeout=30, **options):
        options = {"capture_output": True, "text": True} | options
        return subprocess.run(["ip", "netns", "exec", self.namespace, *map(str, arguments)], timeout=timeout, **options)

    def link_local(self):
        """Its IPv6 link-local address, made from its MAC."""
        return f"fe80::ff:fe00:{self.index:x}"


class Network:
    def __init__(self, seed=1):
        need_hosts()
        self.prefix = f"{PREFIX}-{os.getpid()}-{next(counter)}"
        self.switch = f"{self.prefix}-switch"
        self.seed = seed
        self.hosts, self.processes, self.drops = [], [], []

    def __enter__(self):
        remove_leftovers()
        try:
            self.add_namespace(self.switch)
            self.add_bridge("lan")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def add_namespace(self, name):
        command("ip", "netns", "add", name)
        command("ip", "-n", name, "link", "set", "lo", "up")

    def add_bridge(self, name):
        self.ip("link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        self.ip("link", "set", name, "up")

    def ip(self, *arguments):
        """In the switch."""
        return command("ip", "-n", self.switch, *arguments)

    def in_switch(self, *arguments, text=None):
        return command("ip", "netns", "exec", self.switch, *arguments, text=text)

    def host(self, name, mtu=1500):
        """A new host, with an address of each kind on its one interface, eth0."""
        index = len(self.hosts) + 1
        assert index <= HOSTS_MAX
        host = Host(self, name, index)
        self.hosts.append(host)
        self.add_namespace(host.namespace)
        # Its link-local address is usable at once: no one else can have it.
        settings = [f"net.ipv6.conf.{which}.{name}=0" for which in ("all", "default") for name in ("accept_dad", "addr_gen_mode")]
        host.run(["sysctl", "-qw", *settings], check=True)
        self.ip("link", "add", host.cable, "mtu", mtu, "type", "veth",
                "peer", "name", "eth0", "netns", host.namespace, "address", host.mac, "mtu", mtu)
        self.ip("link", "set", host.cable, "master", "lan", "up")
        host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
        host.ip("link", "set", "eth0", "up")
        return host

    # ---- what a network does to frames ----

    def apply_rules(self):
        rules = ["table bridge faults", "delete table bridge faults", "table bridge faults {", "chain forward {",
                 "type filter hook forward priority 0; policy accept"]
        for source, target in self.drops:
            rules.append(f'iifname "{source.port}" oifname "{target.port}" drop')
        for host in self.hosts:
            if host.is_multicast_blocked:
                for way in ("iifname", "oifname"):
                    rules.append(f'{way} "{host.port}" ip daddr 224.0.0.0/4 drop')
                    rules.append(f'{way} "{host.port}" ip6 daddr ff02::fb drop')
            if host.loss_permille > 0:
                rules.append(f'iifname "{host.port}" numgen random mod 1000 < {host.loss_permille} drop')
                rules.append(f'oifname "{host.port}" numgen random mod 1000 < {host.loss_permille} drop')
        self.in_switch("nft", "-f", "-", text="\n".join([*rules, "}", "}"]) + "\n")

    def one_way(self, source, target):
        """Nothing of source reaches target."""
        self.drops.append((source, target))
        self.apply_rules()

    def partition(self, *groups):
        """Hosts of different groups do not reach each other."""
        for a, b in itertools.permutations(groups, 2):
            self.drops += itertools.product(a, b)
        self.apply_rules()

    def loss(self, host, percent):
        """Of each frame to and from it."""
        host.loss_permille = round(percent * 10)
        self.apply_rules()

    def block_multicast(self, *hosts):
        """As some access points do. Addresses are still resolved."""
        for host in hosts or self.hosts:
            host.is_multicast_blocked = True
        self.apply_rules()

    def unplug(self, host):
        """Pulls the cable: both ends see the link go down."""
        self.ip("link", "set", host.cable, "down")

    def plug(self, host):
        self.ip("link", "set", host.cable, "up")

    def rate(self, host, mbit):
        """Both ways; None takes the limit away."""
        for run, device in ((host.run, "eth0"), (lambda a, **_: self.in_switch(*a), host.cable)):
            if mbit is None:
                run(["tc", "qdisc", "del", "dev", device, "root"], check=True)
            else:
                burst = max(16000, int(mbit * 1e6 / 8 / 100))  # a hundredth of a second
                run(["tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{mbit}mbit", "burst", burst,
                     "latency", "100ms"], check=True)

    def delay(self, host, ms, jitter_ms=0, loss_percent=0, double_percent=0):
        """Each frame to and from it takes so long, and up to jitter_ms longer, which lets frames overtake each other."""
        if host.relay is None:
            self.add_relay(host)
        values = [ms * 1000, jitter_ms * 1000, loss_percent * 10, double_percent * 10]
        host.relay.stdin.write(" ".join(str(round(v)) for v in values) + "\n")
        host.relay.stdin.flush()
        assert host.relay.stdout.readline() == "ok\n"

    def add_relay(self, host):
        """The cable ends in a small bridge of its own; the relay leads from there to the bridge of all."""
        near, far, bridge = f"near{host.index}", f"far{host.index}", f"lan{host.index}"
        host.relay = subprocess.Popen(
            ["ip", "netns", "exec", self.switch, program(RELAY.name), near, far, str(self.seed * 1000 + host.index)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.processes.append(host.relay)
        assert host.relay.stdout.readline() == "ready\n", "the relay did not start"
        self.add_bridge(bridge)
        for device in (near, far):
            self.ip("link", "set", device, "mtu", self.mtu(host))
            self.in_switch("sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1")
        self.ip("link", "set", near, "master", bridge, "up")
        self.ip("link", "set", far, "master", "lan", "up")
        self.ip("link", "set", host.cable, "master", bridge)
        host.port = far
        self.apply_rules()

    def mtu(self, host):
        return int(re.search(r"mtu (\d+)", self.ip("link", "show", host.cable))[1])

    def heal(self):
        """No drops, no loss, no delay, multicast passes, every cable is in. Rates stay."""
        self.drops = []
        for host in self.hosts:
            host.loss_permille = 0
            host.is_multicast_blocked = False
            self.plug(host)
            if host.relay is not None:
                self.delay(host, 0)
        self.apply_rules()

    # ---- the end ----

    def close(self):
        running = [p for p in self.processes if p.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)  # a stopped process does not see the next one
                process.terminate()
        end = time.monotonic() + END_S
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self.processes:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self.processes = []
        for name in [*(h.namespace for h in self.hosts), self.switch]:
            self.end_strays(name)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        self.hosts = []

    def end_strays(self, name):
        """Children of our processes: whoever still lives in a namespace that only we made."""
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
