"""The checks that need no running program. Each check counts as one test.

usage: lint.py [--junit FILE] [CHECK...]

Checks: layers (who may include whom), format (clang-format), tidy (clang-tidy), links (Markdown), syntax (shell and Python). A report of
long files is printed beside them and never fails.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
JOBS = int(os.environ.get("JOBS") or len(os.sched_getaffinity(0)))
LINES_PLEASANT = 500
TIDY = [
    BUILD / "lint/bin/clang-tidy", "--quiet",
    "--extra-arg=-Wno-unknown-warning-option",  # the commands are gcc's, and name warnings that clang does not have
    # Nearly all the time goes into the analyzer's paths through a few long functions: a third of its usual limit.
    *(f"--extra-arg={word}" for word in ("-Xclang", "-analyzer-config", "-Xclang", "max-nodes=75000")),
]

sys.path.insert(0, str(ROOT / "scripts"))
import layers  # noqa: E402


def files(*patterns: str) -> list[Path]:
    """Files of the tree that match, without build outputs and dependencies."""
    found = []
    for pattern in patterns:
        found += [p for p in ROOT.glob(pattern) if not {"build", "target", "node_modules"} & set(p.relative_to(ROOT).parts)]
    return sorted(set(found))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def c_files() -> list[Path]:
    return files("src/**/*.[ch]", "include/**/*.h", "tests/**/*.[ch]", "tools/**/*.[ch]", "bench/**/*.[ch]")


def check_layers() -> list[str]:
    return layers.check(ROOT)


def check_format() -> list[str]:
    tool = BUILD / "lint/bin/clang-format"
    done = subprocess.run([tool, "--dry-run", "-Werror", *c_files()], capture_output=True, text=True)
    if done.returncode == 0:
        return []
    wrong = sorted(set(re.findall(r"^(\S+?):\d+:\d+: error", done.stderr, re.M)))
    return [f"{w}: not formatted; `make format` does it" for w in wrong] or [done.stderr]


def read_includes(entry: dict[str, str]) -> list[Path]:
    """A C file and the headers of the tree that it includes; all headers when the compiler does not tell."""
    words = shlex.split(entry["command"])
    output = words.index("-o")
    done = subprocess.run([*words[:output], *words[output + 2:], "-MM"], capture_output=True, text=True, cwd=entry["directory"])
    if done.returncode != 0:
        return [Path(entry["file"]), *files("src/**/*.h")]
    return [Path(entry["directory"], word) for word in done.stdout.replace("\\\n", " ").split(":", 1)[1].split()]


def check_tidy() -> list[str]:
    """Runs clang-tidy on each C file of src/; a file that was clean with the same contents, included headers and command is left out."""
    database = BUILD / "dev/compile_commands.json"
    if not database.exists():
        return ["build/dev/compile_commands.json is missing: run `make build` first"]
    version = (ROOT / ".clang-tidy").read_bytes() + (ROOT / "scripts/requirements/lint.txt").read_bytes() + repr(TIDY).encode()
    clean = BUILD / "lint/clean"
    clean.mkdir(parents=True, exist_ok=True)
    database = [entry for entry in json.loads(database.read_text()) if Path(entry["file"]).is_relative_to(ROOT / "src")]
    database = [entry for entry in database if Path(entry["file"]).exists()]
    digest = functools.cache(lambda path: hashlib.sha256(path.read_bytes()).digest())
    work = []
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for entry, parts in zip(database, pool.map(read_includes, database)):
            stamp = hashlib.sha256(version + entry["command"].encode() + b"".join(map(digest, parts))).hexdigest()
            if not (clean / stamp).exists():
                work.append((Path(entry["file"]), clean / stamp))
    work.sort(key=lambda item: item[0].stat().st_size, reverse=True)  # the long ones should not be the last

    def run(item: tuple[Path, Path]) -> str:
        path, stamp = item
        done = subprocess.run([*TIDY, "-p", BUILD / "dev", path], capture_output=True, text=True, cwd=ROOT)
        if done.returncode == 0:
            stamp.touch()
            return ""
        return done.stdout.replace(f"{ROOT}/", "") or done.stderr

    problems = []
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        for number, text in enumerate(pool.map(run, work), 1):
            print(f"clang-tidy [{number}/{len(work)}] {name(work[number - 1][0])}", flush=True)
            if text:
                problems.append(text)
    return problems


def slug(heading: str) -> str:
    """The anchor that hosts of Markdown give to a heading."""
    text = re.sub(r"[`*_\[\]()]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def check_links() -> list[str]:
    """Links between files of the tree, and their anchors; no address on the network is asked."""
    problems = []
    link = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    for path in files("*.md", "*/**/*.md"):
        text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.M | re.S)
        for number, line in enumerate(text.splitlines(), 1):
            for target in link.findall(line):
                if re.match(r"[a-z]+:", target):
                    continue
                file, _, anchor = target.partition("#")
                goal = (path.parent / file).resolve() if file else path
                if not goal.exists():
                    problems.append(f"{name(path)}:{number}: {target} does not exist")
                elif anchor and goal.suffix == ".md":
                    if anchor not in {slug(h) for h in re.findall(r"^#+\s+(.*)$", goal.read_text(), re.M)}:
                        problems.append(f"{name(path)}:{number}: {file or name(path)} has no heading #{anchor}")
    return problems


def check_syntax() -> list[str]:
    problems = []
    for path in files("scripts/*.sh", ".ci/run", "tests/**/*.sh", "bench/**/*.sh"):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        if done.returncode != 0:
            problems.append(done.stderr)
    for path in files("scripts/*.py", "tests/**/*.py", "bench/**/*.py", "tools/**/*.py"):
        try:
            compile(path.read_text(), name(path), "exec")
        except SyntaxError as error:
            problems.append(f"{name(path)}:{error.lineno}: {error.msg}")
    return problems


def report_lengths() -> None:
    long = [(len(p.read_text().splitlines()), name(p)) for p in c_files() + files("scripts/*", "tests/**/*.py", "src/**/*.rs") if p.is_file()]
    long = sorted((item for item in long if item[0] > LINES_PLEASANT), reverse=True)
    for lines, path in long:
        print(f"note: {path} has {lines} lines; up to {LINES_PLEASANT} are pleasant to read")


CHECKS = {
    "layers": check_layers,
    "format": check_format,
    "links": check_links,
    "syntax": check_syntax,
    "tidy": check_tidy,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--junit", type=Path)
    parser.add_argument("check", nargs="*", choices=[[], *CHECKS])
    arguments = parser.parse_args()
    suite = ET.Element("testsuite", name="lint")
    failed = 0
    for check in arguments.check or CHECKS:
        start = time.monotonic()
        problems = CHECKS[check]()
        case = ET.SubElement(suite, "testcase", name=f"lint.{check}", time=f"{time.monotonic() - start:.1f}")
        print(f"lint.{check}: {'ok' if not problems else 'failed'}", flush=True)
        if problems:
            failed += 1
            text = "\n".join(problems)
            print(text, flush=True)
            ET.SubElement(case, "failure", message=f"{len(problems)} problems").text = text
    report_lengths()
    if arguments.junit:
        arguments.junit.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(suite).write(arguments.junit)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
