"""Names, files and the cache of weights; the server is on loopback."""

import dataclasses
import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

from asdjax import params, weights
from asdjax.files import sha256_file
from asdjax.models.backbone import Backbone
from asdjax.types import InputError
from asdjax.weights import Checkpoint, fetch, find, load_backbone
from weights_convert import eat
from weights_convert.beats import convert_file


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
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


@pytest.fixture
def served(golden, server, monkeypatch):
    """The public checkpoint "tiny", of BEATs."""
    url, folder = server
    file = shutil.copyfile(golden / "beats_tiny.pt", folder / "beats_tiny.pt")
    url = f"{url}/{file.name}"
    tiny = Checkpoint(file.name, sha256_file(file), "a page", url, file.stat().st_size)
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny", tiny)
    return tiny


@pytest.fixture
def served_eat(golden, server, monkeypatch):
    """The public checkpoint "tiny-eat", of whose SHA-256 nothing is known."""
    url, folder = server
    shutil.copyfile(golden / "eat_tiny_hf.safetensors", folder / "model.safetensors")
    shutil.copyfile(golden / "eat_tiny_hf_config.json", folder / "config.json")
    tiny = Checkpoint("tiny.safetensors", "", "a page", f"{url}/model.safetensors", None, "eat")
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny-eat", tiny)
    return tiny


def test_loaded_backbone_computes_with_the_file(golden, tmp_path):
    path = tmp_path / "tiny.safetensors"
    convert_file(golden / "beats_tiny.pt", path)
    backbone = load_backbone(path)
    assert isinstance(backbone, Backbone)
    assert backbone.sha256 == sha256_file(path)
    assert backbone.config.max_distance == 800
    with np.load(golden / "beats_tiny.npz") as file:
        # 2e-4: from the wave on, whose filter bank is only good to 3e-5
        np.testing.assert_allclose(backbone(file["odd_wave"]), file["odd_out"], atol=2e-4)


def test_loaded_eat_computes_with_the_file(golden, tmp_path):
    path = tmp_path / "tiny.safetensors"
    eat.convert_file(golden / "eat_tiny.pt", path)
    backbone = load_backbone(path)
    assert (backbone.config.depth, backbone.sha256) == (3, sha256_file(path))
    with np.load(golden / "eat_tiny.npz") as file:
        tokens = backbone(file["wave_a"][None])
        # 2e-4: from the wave on, whose filter bank is only good to 3e-5
        np.testing.assert_allclose(tokens[0], file["x"][0], atol=2e-4)


def test_fetch_downloads_verifies_converts_and_caches(served, home):
    with pytest.raises(InputError, match="asdjax weights fetch tiny"):
        load_backbone("tiny")
    seen, notes = [], []
    path = fetch("tiny", note=notes.append, progress=lambda received, total: seen.append(received))
    assert path == home / "weights" / "tiny.safetensors" == find("tiny")
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]
    assert params.load(path)[1].source_sha256 == served.sha256
    assert seen[-1] == served.size
    assert served.url in notes[0]
    assert load_backbone("tiny").config.encoder_layers == 3


def test_fetch_of_what_is_cached_asks_nobody(served, monkeypatch):
    fetch("tiny", note=lambda _: None)
    gone = Checkpoint(served.file, served.sha256, served.page, "http://127.0.0.1:1/gone", 1)
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny", gone)
    assert fetch("tiny").is_file()


def test_fetch_replaces_an_unreadable_cache(served):
    path = fetch("tiny", note=lambda _: None)
    path.write_bytes(b"damaged")
    fetch("tiny", note=lambda _: None)
    assert load_backbone("tiny").config.encoder_layers == 3


def test_fetch_refuses_another_file_than_the_published_one(served, home, monkeypatch):
    other = Checkpoint(served.file, "0" * 64, served.page, served.url, served.size)
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny", other)
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
    assert params.load(path)[1].source_sha256 == sha256
    assert load_backbone("tiny-eat").config.depth == 3
    assert served_eat.url in notes[0]
    assert seen[-1] == (golden / "eat_tiny_hf.safetensors").stat().st_size
    assert f"has the SHA-256 {sha256}; none is published" in notes[1]


def test_what_is_cached_without_a_published_checksum_stays(served_eat, monkeypatch):
    path = fetch("tiny-eat", note=lambda _: None)
    gone = dataclasses.replace(served_eat, url="http://127.0.0.1:1/model.safetensors")
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny-eat", gone)
    assert fetch("tiny-eat") == path


def test_fetch_of_eat_refuses_what_does_not_fit(served_eat, server, home, golden, monkeypatch):
    wrong = dataclasses.replace(served_eat, sha256="0" * 64)
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny-eat", wrong)
    with pytest.raises(InputError, match="checksum"):
        fetch("tiny-eat", note=lambda _: None)
    monkeypatch.setitem(weights.CHECKPOINTS, "tiny-eat", served_eat)
    file = server[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        fetch("tiny-eat", note=lambda _: None)
    assert not weights.cached("tiny-eat").exists()
    shutil.copyfile(golden / "eat_tiny_hf.safetensors", file)  # what is left does no harm
    fetch("tiny-eat", note=lambda _: None)
    assert load_backbone("tiny-eat").config.depth == 3


def test_fetch_of_eat_from_either_form(served_eat, golden, tmp_path):
    notes = []
    path = fetch("tiny-eat", golden / "eat_tiny.pt", note=notes.append)
    first = params.load(path)[0]
    assert "none is published" in notes[0]
    source = shutil.copyfile(golden / "eat_tiny_hf.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        fetch("tiny-eat", source)
    shutil.copyfile(golden / "eat_tiny_hf_config.json", tmp_path / "config.json")
    fetch("tiny-eat", source, note=notes.append)
    second, header = params.load(path)
    assert header.source_sha256 == sha256_file(source)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_checkpoint_without_an_address_says_where_to_get_it():
    with pytest.raises(InputError) as error:
        fetch("beats-iter3-plus-as20k")
    for part in ("BEATs_iter3_plus_AS20K.pt", "https://1drv.ms/", "--from"):
        assert part in str(error.value)


def test_public_table_is_complete():
    kinds = [checkpoint.kind for checkpoint in weights.CHECKPOINTS.values()]
    assert (kinds.count("beats"), kinds.count("eat")) == (7, 4)
    known = [each.sha256 for each in weights.CHECKPOINTS.values() if each.sha256]
    assert len(set(known)) == 8
    assert {len(sha256) for sha256 in known} == {64}
    for name, checkpoint in weights.CHECKPOINTS.items():
        assert name.startswith(checkpoint.kind)
        if checkpoint.kind == "beats":
            assert checkpoint.sha256
            assert checkpoint.page.startswith("https://1drv.ms/")
            assert ("finetuned" in name) == (checkpoint.size == weights.FINETUNED_BYTES)
            assert checkpoint.url is None or checkpoint.url.endswith("/" + checkpoint.file)
        else:
            assert checkpoint.page.startswith("https://huggingface.co/worstchan/EAT-")
            assert checkpoint.url == f"{checkpoint.page}/resolve/main/model.safetensors"
            assert ("finetuned" in name) == ("finetune" in checkpoint.page)
            assert ("large" in name) == ("large" in checkpoint.page)


def test_wrong_arguments_say_what_to_do(tmp_path, golden):
    with pytest.raises(InputError, match=r"python -m weights_convert beats x/BEATs\.pt BEATs"):
        load_backbone("x/BEATs.pt")
    with pytest.raises(InputError, match=r"weights_convert eat x/EAT_base\.pt EAT_base") as error:
        load_backbone("x/EAT_base.pt")
    assert "convert beats" not in str(error.value)
    with pytest.raises(InputError, match=r"convert beats x/a\.pt a.* or .*convert eat x/a\.pt a"):
        load_backbone("x/a.pt")
    with pytest.raises(InputError, match=r"known name.*beats-iter3.*eat-base"):
        load_backbone("beats-iter9")
    with pytest.raises(InputError, match="no such weight file"):
        load_backbone(tmp_path / "absent.safetensors")
    path = tmp_path / "system.safetensors"
    params.save(path, {"a": np.zeros(1)}, params.Header("system", {}))
    with pytest.raises(InputError, match="kind 'beats' or 'eat', got 'system'"):
        load_backbone(path)


def test_weights_of_another_structure_are_refused_with_the_file(tmp_path, golden):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    header = convert_file(golden / "beats_tiny.pt", good)
    arrays, _ = params.load(good)
    del arrays["norm.bias"]
    params.save(bad, arrays, header)
    with pytest.raises(InputError, match=rf"{bad}.*\n.*\n  norm\.bias"):
        load_backbone(bad)
    params.save(bad, arrays, params.Header("beats", header.config | {"unheard": 1}))
    with pytest.raises(InputError, match=rf"{bad}.*unheard"):
        load_backbone(bad)


def test_default_cache_is_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("ASDJAX_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cached("x") == tmp_path / ".cache" / "asdjax" / "weights" / "x.safetensors"
