"""Checkpoints of the speech models that cannot be converted, and what is left out on request."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asdjax.models.weights_file import load
from asdjax.types import InputError
from weights_convert.__main__ import main
from weights_convert.speech import convert_file

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of a checkpoint of HuBERT, to be spoiled."""
    return shutil.copytree(golden / "speech" / "hubert_tiny", tmp_path / "hubert")


@pytest.fixture
def converted(folder, tmp_path):
    """`converted(kind)`: its parameters by name."""

    def convert(kind="hubert", **options):
        out = tmp_path / "out.safetensors"
        try:
            convert_file(kind, folder, out, **options)
        except InputError:
            assert not out.exists()
            raise
        return load(out).arrays

    return convert


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def add(path, **tensors):
    save_file(load_file(path) | tensors, path)


@pytest.mark.parametrize("name", [CONFIG, PREPROCESSOR])
def test_a_folder_without_a_configuration_is_refused(folder, converted, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: no such file; expected config.json and"):
        converted()


@pytest.mark.parametrize(("text", "told"), [("{", "not JSON"), ("[]", "expected an object")])
def test_a_configuration_that_is_none_is_refused(folder, converted, text, told):
    (folder / CONFIG).write_text(text)
    with pytest.raises(InputError, match=rf"{CONFIG}: {told}"):
        converted()


def test_a_folder_without_weights_is_refused(folder, converted):
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"expected model.safetensors or pytorch_model.bin in"):
        converted()


def test_another_architecture_is_refused(folder, converted):
    with pytest.raises(InputError, match="model_type: expected 'wavlm', got 'hubert'"):
        converted("wavlm")
    save_file({"encoder.layer.0.attention.self.query.weight": np.zeros((4, 4))}, folder / WEIGHTS)
    with pytest.raises(InputError, match="not a speech model of Hugging Face"):
        converted()


@pytest.mark.parametrize(
    ("file", "settings", "told"),
    [
        (PREPROCESSOR, {"sampling_rate": 8000}, "sampling_rate: expected 16000, got 8000"),
        (PREPROCESSOR, {"do_normalize": None}, "do_normalize: expected true or false, got None"),
        (CONFIG, {"hidden_act": "relu"}, "hidden_act: expected 'gelu', got 'relu'"),
        (CONFIG, {"add_adapter": True}, "add_adapter: expected False, got True"),
        (CONFIG, {"num_hidden_layers": "3"}, "num_hidden_layers: expected int, got '3'"),
        (CONFIG, {"conv_stride": [5, 2]}, "conv_dim: expected as many as conv_kernel and conv_str"),
        (CONFIG, {"feat_extract_norm": "batch"}, "feat_extract_norm: expected group or layer"),
    ],
)
def test_settings_that_are_not_those_of_the_model_are_refused(
    folder, converted, file, settings, told
):
    change(folder / file, **settings)
    with pytest.raises(InputError, match=told):
        converted()


def test_every_tensor_is_used_and_every_parameter_filled(folder, converted):
    tensors = load_file(folder / WEIGHTS)
    names = "encoder.layers.0.final_layer_norm.bias", "feature_projection.projection.weight"
    kept = {name: value for name, value in tensors.items() if name != names[0]}
    save_file(kept | {"encoder.layers.0.more": np.zeros(2, np.float32)}, folder / WEIGHTS)
    with pytest.raises(InputError) as error:
        converted()
    assert {"layers.0.ffn_norm.bias", "encoder.layers.0.more"} <= set(str(error.value).split())
    save_file(tensors | {names[1]: tensors[names[1]][:, 1:]}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"proj\.kernel"):
        converted()


def test_a_model_with_a_head_is_taken_without_it_where_that_is_asked_for(
    folder, converted, tmp_path, capsys
):
    plain = converted()
    tensors = {f"hubert.{name}": value for name, value in load_file(folder / WEIGHTS).items()}
    head = {"lm_head.weight": np.ones((32, 64), np.float32), "lm_head.bias": np.ones(32)}
    save_file(tensors | head, folder / WEIGHTS)
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(InputError, match=r"--without-head leaves it out[^$]*lm_head.bias"):
        converted()
    found = converted(without_head=True)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    out = str(tmp_path / "command.safetensors")
    assert main(["hubert", str(folder), out]) == 1
    assert "lm_head.weight" in capsys.readouterr().err
    assert main(["hubert", str(folder), out, "--without-head"]) == 0
    with pytest.raises(SystemExit):
        main(["beats", str(folder), out, "--without-head"])


def test_what_pre_training_needs_is_left_out(folder, converted):
    plain = converted()
    add(
        folder / WEIGHTS,
        **{"quantizer.codevectors": np.ones((1, 8, 4), np.float32)},
        **{"project_q.weight": np.ones((4, 4), np.float32)},
    )
    assert converted().keys() == plain.keys()


def test_a_converted_file_is_told_from_a_checkpoint(folder, converted, tmp_path):
    converted()
    shutil.copyfile(tmp_path / "out.safetensors", folder / WEIGHTS)
    (tmp_path / "out.safetensors").unlink()
    with pytest.raises(InputError, match="a weight file of asdjax already"):
        converted()
