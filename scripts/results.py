"""Adds up the JUnit files of all suites: prints a table, failures with their output, the reasons of skips, and as the last line
`N passed, N failed, N skipped`. What failed stands there once more in a few lines, for readers who see only the end.

usage: results.py FOLDER        (one FILE.xml a suite, in the order of their times; FILE.seconds and FILE.build_seconds say how long)
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

OUTPUT_LINES = 60
GIST_LINES = 8
SKIP_BY_PROGRAM = "SKIP_RETURN_CODE"  # CTest's word for exit code 77; its other "not run" means that the program was not built


@dataclass
class Case:
    suite: str
    name: str
    outcome: str  # passed, failed, skipped
    text: str


def tail(text: str) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    if len(lines) > OUTPUT_LINES:
        lines = [f"... ({len(lines) - OUTPUT_LINES} lines before this)"] + lines[-OUTPUT_LINES:]
    return "\n".join(lines)


def gist(text: str) -> list[str]:
    """What a failure says of itself: pytest's lines that begin with E, else the last lines of its output."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("E ")]
    return said[:GIST_LINES] or lines[-GIST_LINES:]


def reason(text: str) -> str:
    """The line in which a test program says why it skips."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "skip" in line.lower()), lines[-1] if lines else "no reason given")


def read_case(suite: str, case: ET.Element) -> Case:
    title = case.get("name", "?")
    if suite not in ("lint", "setup") and not title.startswith(("unit.", "fuzz.")) and case.get("classname"):
        title = f"{case.get('classname')}.{title}"
    output = case.findtext("system-out", "") + case.findtext("system-err", "")
    for tag in ("failure", "error"):
        element = case.find(tag)
        if element is not None:
            return Case(suite, title, "failed", tail((element.text or element.get("message", "")) + "\n" + output))
    skipped = case.find("skipped")
    if skipped is not None or case.get("status") in ("notrun", "disabled"):
        message = skipped.get("message", "") if skipped is not None else ""
        is_ctest = case.get("status") is not None
        if is_ctest and SKIP_BY_PROGRAM not in message and case.get("status") != "disabled":
            return Case(suite, title, "failed", tail(f"not run: {message or 'the program was not built'}\n{output}"))
        return Case(suite, title, "skipped", reason(output) if is_ctest else message)
    return Case(suite, title, "passed", "")


def seconds(path: Path, suffix: str) -> str:
    file = path.with_suffix(suffix)
    return file.read_text().strip() if file.exists() else "-"


def main() -> int:
    cases: list[Case] = []
    rows = []
    for path in sorted(Path(sys.argv[1]).glob("*.xml"), key=lambda p: p.stat().st_mtime_ns):
        suite = path.stem
        try:
            read = [read_case(suite, case) for case in ET.parse(path).iter("testcase")]
        except ET.ParseError as error:
            read = [Case(suite, "results", "failed", f"{path}: {error}")]
        count = Counter(case.outcome for case in read)
        rows.append((suite, count["passed"], count["failed"], count["skipped"], seconds(path, ".seconds"), seconds(path, ".build_seconds")))
        cases += read

    for case in cases:
        if case.outcome == "failed":
            print(f"\n--- failed: {case.suite}: {case.name}")
            print("\n".join("    " + line for line in case.text.splitlines()))
    skips = Counter(f"{case.suite}: {case.text}" for case in cases if case.outcome == "skipped")
    if skips:
        print("\nskipped:")
        for text, times in sorted(skips.items()):
            print(f"    {times} x {text}")
    print(f"\n{'suite':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}{'building':>10}")
    for suite, passed, failed, skipped, whole, building in rows:
        print(f"{suite:<12}{passed:>8}{failed:>8}{skipped:>9}{whole:>9}{building:>10}")
    for case in cases:
        if case.outcome == "failed":
            print(f"\nfailed: {case.suite}: {case.name}")
            print("\n".join(f"    {line[:200]}" for line in gist(case.text)))
    total = Counter(case.outcome for case in cases)
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
