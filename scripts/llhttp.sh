#!/bin/sh
# Puts llhttp, the HTTP/1.1 parser, into build/deps/llhttp: four generated C files and the licence.
#
# Run by `make` before CMake. It does nothing when the files of the pinned version are there, or when
# pkg-config knows a system llhttp of version 9 or later. The source is the sdist of the Python
# package httptools, which carries llhttp 9.4.1 whole; it comes through pip, from the index that pip
# is configured for, and is refused unless its SHA-256 is the one below (pip checks it before it
# looks into the archive).
#
# Without network, a distribution's generated sources (Debian: apt install node-llhttp) also do:
# cmake/llhttp.cmake looks for them last.
set -eu

package=httptools
version=0.8.0
sha256=6b2a32f18d97e16e90827d7a819ffa8dbd8cc245fc4e1fa9d1095b54ef4bd999

root=$(cd "$(dirname "$0")/.." && pwd)
target=$root/build/deps/llhttp
stamp=$package-$version-$sha256

if [ -f "$target/stamp" ] && [ "$(cat "$target/stamp")" = "$stamp" ]; then
    exit 0
fi
if command -v pkg-config >/dev/null 2>&1 && pkg-config --exists 'libllhttp >= 9'; then
    echo "llhttp: using the system's $(pkg-config --modversion libllhttp)"
    exit 0
fi

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$package==$version --hash=sha256:$sha256" >"$work/requirements.txt"
if ! "$python" -m pip download --quiet --no-deps --no-binary :all: --require-hashes \
    -r "$work/requirements.txt" -d "$work" >"$work/log" 2>&1; then
    cat "$work/log" >&2
    echo "llhttp: could not fetch $package $version with '$python -m pip'." >&2
    echo "llhttp: install pip, set PYTHON to one that has it, or install node-llhttp (Debian)." >&2
    # A distribution's sources are good enough to go on.
    [ -f /usr/share/llhttp/llhttp.c ] && exit 0
    exit 1
fi

mkdir "$work/out"
tar -xzf "$work/$package-$version.tar.gz" -C "$work"
vendor=$work/$package-$version/vendor/llhttp
cp "$vendor/include/llhttp.h" "$vendor/src/llhttp.c" "$vendor/src/api.c" "$vendor/src/http.c" \
    "$work/out/"
cp "$vendor/LICENSE-MIT" "$work/out/LICENSE"
echo "$stamp" >"$work/out/stamp"
mkdir -p "$root/build/deps"
rm -rf "$target"
mv "$work/out" "$target"
echo "llhttp: $(sed -n 's/#define LLHTTP_VERSION_[A-Z]* //p' "$target/llhttp.h" | paste -sd. -) in $target"
