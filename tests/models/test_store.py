"""Names, cards, hubs, local files; what ls, show and rm say."""

import json
import os
import time

import pytest
from file_server import gguf, sha256
from program import INVALID, MODELS, NOT_FOUND, UNAVAILABLE, UNSUPPORTED

MIB = 1 << 20
REPO = "bartowski/Llama-3.2-3B-Instruct-GGUF"
FILE = "Llama-3.2-3B-Instruct-Q4_K_M.gguf"
FILES = {
    FILE: gguf(MIB, seed=1),
    "Llama-3.2-3B-Instruct-Q8_0.gguf": gguf(2 * MIB, seed=2),
    "mmproj-Llama-3.2-3B-Instruct-Q4_K_M.gguf": gguf(1000),
    "README.md": b"# a model",
}


@pytest.fixture
def hub(server):
    server.add_repo(REPO, FILES)
    return server


def test_by_name(store, hub):
    model = store.pull("llama3.2:3b")["model"]
    assert model["name"] == FILE[:-5] and model["card"] == "llama3.2:3b" and model["sha256"] == sha256(FILES[FILE])
    assert (store.models / FILE).read_bytes() == FILES[FILE]
    n = len(hub.requests)
    for name in ("llama3.2", "LLAMA3.2:3B", "llama-3.2-3b-instruct", "llama3.2:3b-q4_k_m", "llama3.2:3b:Q4_K_M", FILE, FILE[:-5]):
        code, out, err = store.run("show", name, "--json")
        assert code == 0 and json.loads(out)["model"]["name"] == FILE[:-5], (name, err)
    assert store.pull("llama3.2:3b")["was_there"] and len(hub.requests) == n


@pytest.mark.parametrize("name", ["llama3.2:3b-Q8_0", f"{REPO}:Q8_0", f"hf:{REPO}:q8_0", f"hf:{REPO}/Llama-3.2-3B-Instruct-Q8_0.gguf"])
def test_by_quantization(store, hub, name):
    store.pull(name)
    assert [p.name for p in store.models.glob("*.gguf")] == ["Llama-3.2-3B-Instruct-Q8_0.gguf"]


def test_repository_alone(store, hub):
    """Without a quantization the usual one is taken, and never an image encoder."""
    assert store.pull(REPO)["model"]["name"] == FILE[:-5]


def test_several_quantizations(store, hub):
    store.pull("llama3.2:3b-q8_0")
    store.pull("llama3.2:3b")
    assert len(store.list()["models"]) == 2
    assert store.run("rm", "llama3.2:3b-q8_0")[0] == 0
    assert [m["name"] for m in store.list()["models"]] == [FILE[:-5]]


def test_wrong_hash(store, hub):
    """The hub's list says one thing, its file is another."""
    hub.files[f"/{REPO}/resolve/main/{FILE}"].data = gguf(MIB, seed=99)
    err = store.fail(UNSUPPORTED, "llama3.2:3b")
    assert "SHA-256" in err and sha256(FILES[FILE]) in err
    assert list(store.models.glob("*.gguf*")) == []


def test_wrong_size(store, hub):
    hub.files[f"/{REPO}/resolve/main/{FILE}"].data += b"more"
    assert "bytes, not" in store.fail(76, "llama3.2:3b")


def test_hub_without_hashes(store, server):
    server.add_repo(REPO, FILES, hashes=False)
    model = store.pull("llama3.2:3b")["model"]
    assert model["sha256"] == sha256(FILES[FILE])  # remembered, and compared from now on
    path = store.models / FILE
    times = os.stat(path)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.run("show", "llama3.2:3b", "--check")[0] == 65


def test_hub_that_does_not_list(store, server):
    """The card says how the file is called."""
    server.add(f"/{REPO}/resolve/main/{FILE}", FILES[FILE])
    server.add(f"/api/models/{REPO}/tree/main", b"", statuses=[(500, {})] * 10)
    assert store.pull("llama3.2:3b")["model"]["name"] == FILE[:-5]


def test_hub_errors(store, server):
    assert "licence" in store.fail(NOT_FOUND, "llama3.2:3b")
    server.add(f"/api/models/{REPO}/tree/main", b"<html>")
    store.fail(UNSUPPORTED, "llama3.2:3b")
    server.add_repo("o/r", {"m-Q4_K_M-00001-of-00003.gguf": b"", "m-Q4_K_M-00002-of-00003.gguf": b"", "m-Q2_K.gguf": gguf(100)})
    assert "several pieces" in store.fail(UNSUPPORTED, "o/r:Q4_K_M")
    assert "m-Q2_K.gguf" in store.fail(NOT_FOUND, "o/r:Q8_0")


def test_token_goes_to_the_hub_alone(store, hub):
    hub.files[f"/{REPO}/resolve/main/{FILE}"].redirect = hub.url.replace("127.0.0.1", "localhost") + "/cdn"
    hub.add("/cdn", FILES[FILE])
    store.pull("llama3.2:3b", HF_TOKEN="hf_secret")
    assert all(r[3].get("Authorization") == "Bearer hf_secret" for r in hub.requests if r[0] != "/cdn")
    assert hub.asked("/cdn") and all("Authorization" not in r[3] for r in hub.asked("/cdn"))
    hub.add("/x.gguf", FILES[FILE])
    store.pull(hub.url.replace("127.0.0.1", "localhost") + "/x.gguf", HF_TOKEN="hf_secret")
    assert all("Authorization" not in r[3] for r in hub.asked("/x.gguf"))


def test_names_that_mean_nothing(store, server):
    assert "llama3.2:3b" in store.fail(NOT_FOUND, "lama3.2:3b")
    store.fail(NOT_FOUND, "/no/such/file.gguf")
    store.fail(INVALID, "a/b/c")
    store.fail(NOT_FOUND, "../..")
    store.fail(INVALID, server.url + "/")
    assert "Q4_K_M" in store.fail(NOT_FOUND, "llama3.2:3b-Q1_X")
    assert server.requests == [] or all(r[0].startswith("/api/") for r in server.requests)


def test_names_of_files_are_tame(store, server):
    server.add("/a%20b;rm.gguf", gguf(1000))
    store.pull(server.url + "/a%20b;rm.gguf?token=secret")
    assert [p.name for p in store.models.glob("*.gguf")] == ["a_20b_rm.gguf"]


def test_local_file_and_folder(store, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        (folder / f"m{i}.gguf").write_bytes(gguf(3 * MIB, seed=i))
    (folder / "bad.txt").write_text("no model")
    model = store.pull(folder / "m0.gguf")["model"]
    assert model["source"] == str(folder / "m0.gguf") and model["sha256"] == sha256(gguf(3 * MIB, seed=0))
    assert store.run("pull", folder)[0] == 0
    assert [m["name"] for m in store.list()["models"]] == ["m0", "m1", "m2"] and store.leftovers() == []
    store.pull(folder / "m1.gguf")
    (folder / "x.gguf").write_bytes(gguf(1000))
    store.pull(folder / "x.gguf", "--link")
    assert (store.models / "x.gguf").is_symlink()
    (folder / "broken.gguf").write_bytes(gguf(MIB)[:-100])
    assert "no whole GGUF file" in store.fail(UNSUPPORTED, folder / "broken.gguf")
    assert store.pull(folder / "m2.gguf", "--offline")["was_there"]


def test_other_folders_are_only_read(store, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "theirs.gguf").write_bytes(gguf(1000))
    before = sorted(folder.iterdir())
    models = store.list("--models", str(folder))["models"]
    assert [(m["name"], m["is_read_only"]) for m in models] == [("theirs", True)]
    assert store.run("rm", "theirs", "--models", folder)[0] == INVALID
    assert store.run("show", "theirs", SHOAL_MODELS=str(folder))[0] == 0
    assert sorted(folder.iterdir()) == before


def test_damaged_files_are_shown(store):
    store.models.mkdir(parents=True)
    (store.models / "cut.gguf").write_bytes(gguf(MIB)[:-1])
    (store.models / "junk.gguf").write_bytes(b"junk")
    (store.models / "empty.gguf").write_bytes(b"")
    (store.models / "fine.gguf").write_bytes(gguf(1000))
    damaged = {m["name"]: m["is_damaged"] for m in store.list()["models"]}
    assert damaged == {"cut": True, "junk": True, "empty": True, "fine": False}
    code, out, _ = store.run("ls")
    assert code == 0 and out.count("DAMAGED") == 3


def test_file_that_is_replaced_is_looked_at_anew(store):
    store.models.mkdir(parents=True)
    path = store.models / "m.gguf"
    path.write_bytes(gguf(1000, architecture="llama"))
    assert store.list()["models"][0]["architecture"] == "llama"
    time.sleep(0.02)
    path.write_bytes(gguf(1000, architecture="other"))
    model = store.list()["models"][0]
    assert model["architecture"] == "other" and not model["can_run"]


def test_index_that_is_damaged(store, hub):
    store.pull("llama3.2:3b")
    (store.models / "index.db").write_bytes(b"this is no database" * 1000)
    assert store.list()["models"][0]["card"] == "llama3.2:3b"  # its name tells
    assert (store.models / "index.db.damaged-1").exists()


def test_rm(store, hub):
    store.pull("llama3.2:3b")
    code, out, _ = store.run("rm", "llama3.2:3b")
    assert code == 0 and FILE in out
    assert store.run("rm", "llama3.2:3b")[0] == NOT_FOUND
    assert store.list()["models"] == [] and not store.pull("llama3.2:3b")["was_there"]


def test_cards_of_people(store, server):
    store.folder.mkdir(parents=True)
    data = gguf(MIB, seed=5)
    server.add("/own.gguf", data)
    card = {"name": "own:1b", "aliases": ["mine"], "architecture": "llama", "layers": 3, "context": 512, "capabilities": ["completion"]}
    card["quantizations"] = [{"name": "F32", "url": server.url + "/own.gguf", "bytes": len(data), "sha256": sha256(data)}]
    (store.folder / "cards.json").write_text(json.dumps({"models": [card]}))
    assert store.pull("mine")["model"]["card"] == "own:1b"
    card["quantizations"][0]["sha256"] = "0" * 64
    (store.folder / "cards.json").write_text(json.dumps({"models": [card]}))
    assert "SHA-256" in store.fail(UNSUPPORTED, "own:1b")
    for wrong in ("{", "[]", '{"models": [{}]}', '{"models": [{"name": "x", "quantizations": [3]}]}'):
        (store.folder / "cards.json").write_text(wrong)
        assert "cards.json" in store.fail(UNSUPPORTED, "mine")


def test_catalogue(store):
    """What ships: complete, and with nothing that nobody knows."""
    cards = store.list("--all")["cards"]
    families = {c["family"] for c in cards}
    assert families == {"llama", "mistral", "qwen", "gemma", "phi", "gpt-oss", "deepseek", "smollm"}
    names = [n for c in cards for n in [c["name"], *c["aliases"]]]
    assert len(names) == len(set(names)) and {"llama-7b", "llama-13b", "llama-30b", "llama-70b", "llama-70b-q4", "mistral-7b"} <= set(names)
    for c in cards:
        assert c["layers"] > 0 and c["context"] > 0 and c["quantizations"] and c["capabilities"] and c["architecture"]
    code, out, _ = store.run("ls", "--all")
    assert code == 0 and "qwen3-coder-next:80b" in out
    code, out, _ = store.run("show", "gemma3:4b")
    assert code == 0 and "not on this computer" in out


def test_nothing_here(store):
    code, out, _ = store.run("ls")
    assert code == 0 and "No models are here" in out
    assert store.run("show", "nothing")[0] == NOT_FOUND
    assert store.run("ps", "--api", "http://127.0.0.1:1")[0] == UNAVAILABLE


def test_real_files(store):
    if not (MODELS / "gemma3.gguf").exists():
        pytest.skip("there are no models")
    models = {m["name"]: m for m in store.list("--models", str(MODELS))["models"]}
    assert models["gemma3"]["architecture"] == "gemma3" and models["gemma3"]["can_run"]
    assert models["gemma3"]["layers"] == 18 and models["smollm2"]["context"] > 0
