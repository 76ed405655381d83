"""The verbs about model files, run as people do, each with a data folder of its own."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHOAL = ROOT / os.environ.get("SHOAL_BUILD", "build/dev") / "shoal"
MODELS = ROOT / os.environ.get("SHOAL_TEST_MODELS", "build/models")
TIMEOUT_S = 120
# codes of exit, src/base/error.h
NOT_FOUND, UNAVAILABLE, TIMED_OUT, PROTOCOL, DAMAGED, IO, INVALID, CANCELLED = 66, 69, 75, 76, 65, 74, 64, 130
BUSY, UNSUPPORTED = 75, 65


class Store:
    """A data folder, and a server as its hub."""

    def __init__(self, folder, server):
        if not SHOAL.exists():
            pytest.skip(f"{SHOAL} is not built")
        self.folder, self.server = pathlib.Path(folder), server
        self.models = self.folder / "models"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SHOAL_", "HF_")) and "proxy" not in k.lower()}
        self.environment |= {"XDG_DATA_HOME": str(self.folder / "unused"), "SHOAL_HUB": server.url, "SHOAL_LOG": "info"}

    def command(self, verb, *arguments):
        return [str(SHOAL), verb, *map(str, arguments), "--data-dir", str(self.folder)]

    def run(self, verb, *arguments, **environment):
        """Exit code, standard output, standard error."""
        done = subprocess.run(
            self.command(verb, *arguments), capture_output=True, text=True, timeout=TIMEOUT_S, env=self.environment | environment
        )
        return done.returncode, done.stdout, done.stderr

    def pull(self, what, *arguments, **environment):
        """The file that came; the last line says so."""
        code, out, err = self.run("pull", what, "--json", *arguments, **environment)
        assert code == 0, err
        last = json.loads(out.splitlines()[-1])
        assert last["phase"] == "done"
        return last

    def fail(self, code, what, *arguments, **environment):
        """What standard error says of a pull that must fail so."""
        found, out, err = self.run("pull", what, *arguments, **environment)
        assert found == code, (found, out, err)
        return err

    def begin(self, what, *arguments):
        return subprocess.Popen(
            self.command("pull", what, "--json", *arguments),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
        )

    def list(self, *arguments):
        code, out, err = self.run("ls", "--json", *arguments)
        assert code == 0, err
        return json.loads(out)

    def leftovers(self):
        return sorted(p.name for p in self.models.glob("*") if ".part" in p.name)
