"""Names, files and the cache of weights."""

from collections import Counter

import numpy as np
import pytest

from asdjax.files import sha256_file
from asdjax.models import checkpoints, weights_file
from asdjax.models.backbone import Backbone
from asdjax.models.checkpoints import load_backbone
from asdjax.models.weights_file import Header
from asdjax.types import InputError
from weights_convert import CONVERTERS, beats, eat


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ASDJAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_loaded_backbone_computes_with_the_file(golden, tmp_path):
    path = tmp_path / "tiny.safetensors"
    beats.convert_file(golden / "beats_tiny.pt", path)
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


def test_backbones_of_one_file_read_it_once(golden, tmp_path, monkeypatch):
    path = tmp_path / "tiny.safetensors"
    beats.convert_file(golden / "beats_tiny.pt", path)
    paths, read = [], weights_file.load
    monkeypatch.setattr(weights_file, "load", lambda path: paths.append(path) or read(path))
    one, two = load_backbone(path), load_backbone(path, "bfloat16")
    assert paths == [path]
    for name, value in one.params.items():
        np.testing.assert_array_equal(two.params[name], value)


def test_public_table_is_complete():
    kinds = [checkpoint.kind for checkpoint in checkpoints.CHECKPOINTS.values()]
    counts = {"beats": 7, "eat": 4, "hubert": 2, "wav2vec2": 2, "wavlm": 3, "unispeech-sat": 2}
    counts |= {"efficientat": 8}
    assert Counter(kinds) == counts
    assert set(kinds) == set(checkpoints.structures()) == set(CONVERTERS)
    known = [each.sha256 for each in checkpoints.CHECKPOINTS.values() if each.sha256]
    assert len(set(known)) == 9
    assert {len(sha256) for sha256 in known} == {64}
    for name, checkpoint in checkpoints.CHECKPOINTS.items():
        assert name.startswith("mn" if checkpoint.kind == "efficientat" else checkpoint.kind)
        if checkpoint.kind == "beats":
            assert checkpoint.sha256
            assert checkpoint.page.startswith("https://1drv.ms/")
            assert ("finetuned" in name) == (checkpoint.size == 363_145_291)
            assert checkpoint.url is None or checkpoint.url.endswith("/" + checkpoint.file)
        elif checkpoint.kind == "efficientat":
            release = "/releases/download/v0.0.1/"
            assert checkpoint.url == f"{checkpoint.page}{release}{checkpoint.file}"
            assert checkpoint.file.startswith(f"{name}_as_mAP_")
        elif checkpoint.kind != "eat":
            assert checkpoint.url == f"{checkpoint.page}/resolve/main/pytorch_model.bin"
            assert name.rpartition("-")[2] in ("base", "large", "plus")
            assert checkpoint.page.startswith("https://huggingface.co/")
            assert name.removesuffix("-plus") in checkpoint.page
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
    with pytest.raises(InputError, match=r"convert KIND x/a\.pt a.* KIND is beats or .*unispeech"):
        load_backbone("x/a.pt")
    with pytest.raises(InputError, match=r"known name.*beats-iter3.*eat-base"):
        load_backbone("beats-iter9")
    with pytest.raises(InputError, match="no such weight file"):
        load_backbone(tmp_path / "absent.safetensors")
    path = tmp_path / "system.safetensors"
    weights_file.save(path, {"a": np.zeros(1)}, Header("system", {}))
    with pytest.raises(InputError, match=r"kind 'beats' or 'eat' or .*'wavlm'.*, got 'system'"):
        load_backbone(path)


def test_weights_of_another_structure_are_refused_with_the_file(tmp_path, golden):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    header = beats.convert_file(golden / "beats_tiny.pt", good)
    arrays = weights_file.load(good).arrays
    del arrays["norm.bias"]
    weights_file.save(bad, arrays, header)
    with pytest.raises(InputError, match=rf"{bad}.*\n.*\n  norm\.bias"):
        load_backbone(bad)
    weights_file.save(bad, arrays, Header("beats", header.config | {"unheard": 1}))
    with pytest.raises(InputError, match=rf"{bad}.*unheard"):
        load_backbone(bad)


def test_default_cache_is_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("ASDJAX_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints.cached("x") == tmp_path / ".cache" / "asdjax" / "weights" / "x.safetensors"
