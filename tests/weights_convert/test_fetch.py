"""Public checkpoints on their way into the cache; the server is on loopback."""

import dataclasses
import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

from asdjax.files import sha256_file
from asdjax.models import checkpoints, weights_file
from asdjax.models.checkpoints import Checkpoint, find, load_backbone
from asdjax.types import InputError
from weights_convert.fetch import fetch


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ASDJAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server(tmp_path):
    """A server of our own: its address and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def served(golden, server, monkeypatch):
    """The public checkpoint "tiny", of BEATs."""
    url, folder = server
    file = shutil.copyfile(golden / "beats_tiny.pt", folder / "beats_tiny.pt")
    url = f"{url}/{file.name}"
    tiny = Checkpoint(file.name, sha256_file(file), "a page", url, file.stat().st_size)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny", tiny)
    return tiny


@pytest.fixture
def served_eat(golden, server, monkeypatch):
    """The public checkpoint "tiny-eat", of whose SHA-256 nothing is known."""
    url, folder = server
    shutil.copyfile(golden / "eat_tiny_hf.safetensors", folder / "model.safetensors")
    shutil.copyfile(golden / "eat_tiny_hf_config.json", folder / "config.json")
    tiny = Checkpoint("tiny.safetensors", "", "a page", f"{url}/model.safetensors", None, "eat")
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny-eat", tiny)
    return tiny


def test_fetch_downloads_verifies_converts_and_caches(served, home):
    with pytest.raises(InputError, match="asdjax weights fetch tiny"):
        load_backbone("tiny")
    seen, notes = [], []
    path = fetch("tiny", note=notes.append, progress=lambda received, total: seen.append(received))
    assert path == home / "weights" / "tiny.safetensors" == find("tiny")
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]
    assert weights_file.load(path).header.source_sha256 == served.sha256
    assert seen[-1] == served.size
    assert served.url in notes[0]
    assert load_backbone("tiny").config.encoder_layers == 3


def test_what_is_cached_is_not_fetched_again(served, monkeypatch):
    fetch("tiny", note=lambda _: None)
    gone = Checkpoint(served.file, served.sha256, served.page, "http://127.0.0.1:1/gone", 1)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny", gone)
    assert fetch("tiny").is_file()


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"damaged", lambda content: content[:-1] + bytes([content[-1] ^ 1])],
    ids=["unreadable", "one bit"],
)
def test_fetch_replaces_a_damaged_cache(served, damage):
    path = fetch("tiny", note=lambda _: None)
    before = path.read_bytes()
    path.write_bytes(damage(before))
    with pytest.raises(InputError, match=str(path)):
        load_backbone("tiny")
    fetch("tiny", note=lambda _: None)
    assert path.read_bytes() == before


def test_fetch_refuses_another_file_than_the_published_one(served, home, monkeypatch):
    other = Checkpoint(served.file, "0" * 64, served.page, served.url, served.size)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny", other)
    with pytest.raises(InputError, match="checksum"):
        fetch("tiny", note=lambda _: None)
    assert list((home / "weights").iterdir()) == []


def test_fetch_from_a_file_notes_an_unknown_checksum(served, golden, tmp_path):
    notes = []
    fetch("tiny", golden / "beats_tiny.pt", note=notes.append)
    assert notes == []
    fetch("tiny", golden / "beats_tiny_finetuned.pt", note=notes.append)
    assert served.sha256 in notes[0]
    assert load_backbone("tiny").labels[0] == "/m/tiny0"


def test_fetch_from_a_broken_file_keeps_the_cache(served, golden, tmp_path):
    path = fetch("tiny", golden / "beats_tiny.pt")
    before = path.read_bytes()
    broken = tmp_path / "broken.pt"
    broken.write_bytes((golden / "beats_tiny.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken\.pt: damaged or cut off"):
        fetch("tiny", broken)
    assert path.read_bytes() == before


def test_fetch_of_eat_brings_its_configuration_too(served_eat, golden, home):
    seen, notes = [], []
    path = fetch("tiny-eat", note=notes.append, progress=lambda done, total: seen.append(done))
    assert [file.name for file in path.parent.iterdir()] == ["tiny-eat.safetensors"]
    sha256 = sha256_file(golden / "eat_tiny_hf.safetensors")
    assert weights_file.load(path).header.source_sha256 == sha256
    assert load_backbone("tiny-eat").config.depth == 3
    assert served_eat.url in notes[0]
    assert seen[-1] == (golden / "eat_tiny_hf.safetensors").stat().st_size
    assert f"has the SHA-256 {sha256}; none is published" in notes[1]


def test_fetch_of_eat_refuses_what_does_not_fit(served_eat, server, home, golden, monkeypatch):
    wrong = dataclasses.replace(served_eat, sha256="0" * 64)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny-eat", wrong)
    with pytest.raises(InputError, match="checksum"):
        fetch("tiny-eat", note=lambda _: None)
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny-eat", served_eat)
    file = server[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        fetch("tiny-eat", note=lambda _: None)
    assert not checkpoints.cached("tiny-eat").exists()
    shutil.copyfile(golden / "eat_tiny_hf.safetensors", file)  # what is left does no harm
    fetch("tiny-eat", note=lambda _: None)
    assert load_backbone("tiny-eat").config.depth == 3


def test_fetch_of_eat_from_either_form(served_eat, golden, tmp_path):
    notes = []
    path = fetch("tiny-eat", golden / "eat_tiny.pt", note=notes.append)
    first = weights_file.load(path).arrays
    assert "none is published" in notes[0]
    source = shutil.copyfile(golden / "eat_tiny_hf.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        fetch("tiny-eat", source)
    shutil.copyfile(golden / "eat_tiny_hf_config.json", tmp_path / "config.json")
    fetch("tiny-eat", source, note=notes.append)
    second, header, _ = weights_file.load(path)
    assert header.source_sha256 == sha256_file(source)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_is_cached_without_a_published_checksum_stays(served_eat, monkeypatch):
    path = fetch("tiny-eat", note=lambda _: None)
    gone = dataclasses.replace(served_eat, url="http://127.0.0.1:1/model.safetensors")
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "tiny-eat", gone)
    assert fetch("tiny-eat") == path


def test_checkpoint_without_an_address_says_where_to_get_it():
    with pytest.raises(InputError) as error:
        fetch("beats-iter3-plus-as20k")
    for part in ("BEATs_iter3_plus_AS20K.pt", "https://1drv.ms/", "--from"):
        assert part in str(error.value)
