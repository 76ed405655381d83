"""Checks that each folder of src/ includes only what it may: the folders that CMakeLists.txt links it with, and outside headers that
belong to it. docs/architecture.md has the reasons.

usage: layers.py [ROOT]
"""

import re
import sys
from pathlib import Path

# A folder may use those above it in this list, never those below.
ORDER = ["base", "model", "text", "comm", "engine", "runner", "cluster", "device", "store", "mesh", "api", "node", "cli"]

# Outside headers (regular expression) and the folders that may include them.
SOCKETS = r"(sys/socket|sys/un|netinet/.*|arpa/inet|netdb|net/if|ifaddrs|poll|sys/epoll)\.h"
OUTSIDE = [
    (r"(ggml.*|gguf|llama)\.h", {"engine"}),
    (r"uv\.h", {"store", "mesh", "api", "node", "cli"}),
    (r"llhttp\.h", {"api"}),
    (r"jansson\.h", {"base"}),
    (r"(pcre2|utf8proc)\.h", {"text"}),
    (r"openssl/.*", {"model", "comm", "runner", "store", "mesh", "api", "node"}),
    (r"curl/.*", {"store", "node", "cli"}),
    (r"sqlite3\.h", {"store"}),
    (SOCKETS, {"comm", "runner", "device", "mesh", "api", "node", "cli"}),
]
# Decisions are pure: what would bring time, threads, files or the network into them.
FORBIDDEN = {
    "cluster": r"(pthread|threads|time|sys/time|unistd|fcntl|signal|sys/stat|sys/mman|dirent|semaphore|stdatomic|base/clock)\.h",
}
# What a folder may see of another one, where that is less than everything.
ONLY = {
    ("api", "engine"): {"engine/sampler.h", "engine/logprobs.h"},  # what a request asks of sampling
}

INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')
LIBRARY = re.compile(r"^shoal_library\((\w+)(?:\s+USES\s+([\w\s]*?))?(?:\s+LIBS\s[^)]*)?\)", re.M)


def linked(root: Path, problems: list[str]) -> dict[str, set[str]]:
    """Folder -> the folders it may use, directly or through others, as CMakeLists.txt links them."""
    uses: dict[str, set[str]] = {}
    for name, direct in LIBRARY.findall((root / "CMakeLists.txt").read_text()):
        uses[name] = set()
        for other in direct.split():
            if ORDER.index(other) >= ORDER.index(name):
                problems.append(f"CMakeLists.txt: {name} links {other}, which stands below it")
            uses[name] |= {other} | uses.get(other, set())
    uses["cli"] = set(ORDER) - {"cli"}
    return uses


def check(root: Path) -> list[str]:
    problems: list[str] = []
    uses = linked(root, problems)
    for path in sorted((root / "src").glob("*/*.[ch]")):
        folder = path.parent.name
        if folder not in ORDER:
            problems.append(f"{path.relative_to(root)}: src/{folder}/ is not in the list of folders")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            header, where = found[1], f"{path.relative_to(root)}:{number}"
            other = header.split("/")[0]
            if "/" in header and other in ORDER:
                if other != folder and other not in uses.get(folder, set()):
                    problems.append(f"{where}: {folder}/ may not use {header}; it may use {', '.join(sorted(uses.get(folder, set())))}")
                elif (folder, other) in ONLY and header not in ONLY[folder, other]:
                    problems.append(f"{where}: of {other}/, {folder}/ may only use {', '.join(ONLY[folder, other])}")
            for pattern, owners in OUTSIDE:
                if re.fullmatch(pattern, header) and folder not in owners:
                    problems.append(f"{where}: <{header}> belongs to {', '.join(sorted(owners))}")
            if folder in FORBIDDEN and re.fullmatch(FORBIDDEN[folder], header):
                problems.append(f"{where}: {folder}/ is pure and may not use <{header}>")
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
    print("\n".join(found))
    sys.exit(1 if found else 0)
