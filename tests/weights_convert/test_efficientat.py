"""Every tensor of an EfficientAT checkpoint lands where it should, and nothing is guessed."""

import numpy as np
import pytest

from asdjax.models.backbone import abstract
from asdjax.models.checkpoints import load_backbone
from asdjax.models.efficientat import EfficientATConfig
from asdjax.types import InputError
from weights_convert.__main__ import main
from weights_convert.efficientat import convert_file

TINY = EfficientATConfig(0.1, 5)


def convolution(name, outputs, inputs, taps):
    """Yield names and shapes of a convolution and its norm, as the checkpoints have them."""
    yield f"{name}.0.weight", (outputs, inputs, taps, taps)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.1.{part}", (outputs,)


def shapes():
    """Yield the names and shapes of a checkpoint of width 0.1."""
    yield from convolution("features.0", 8, 1, 3)
    for i, block in enumerate(TINY.blocks, 1):
        places = iter(range(4))
        if block.hidden != block.inputs:
            name = f"features.{i}.block.{next(places)}"
            yield from convolution(name, block.hidden, block.inputs, 1)
        name = f"features.{i}.block.{next(places)}"
        yield from convolution(name, block.hidden, 1, block.taps)
        if block.squeeze:
            name = f"features.{i}.block.{next(places)}.conc_se_layers.0"
            yield f"{name}.fc1.weight", (block.squeeze, block.hidden)
            yield f"{name}.fc1.bias", (block.squeeze,)
            yield f"{name}.fc2.weight", (block.hidden, block.squeeze)
            yield f"{name}.fc2.bias", (block.hidden,)
        name = f"features.{i}.block.{next(places)}"
        yield from convolution(name, block.outputs, block.hidden, 1)
    yield from convolution("features.16", TINY.width, TINY.blocks[-1].outputs, 1)
    yield "classifier.2.weight", (128, TINY.width)
    yield "classifier.2.bias", (128,)
    yield "classifier.5.weight", (5, 128)
    yield "classifier.5.bias", (5,)


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes()}
    return found | {"features.0.1.num_batches_tracked": np.array(7)}


@pytest.fixture
def write(write_checkpoint, tensor):
    return lambda state: write_checkpoint({name: tensor(value) for name, value in state.items()})


def test_tensors_land_in_our_layout(state, write, tmp_path):
    header = convert_file(write(state), tmp_path / "out.safetensors")
    assert EfficientATConfig(**header.config) == TINY
    params = load_backbone(tmp_path / "out.safetensors").params
    assert params.keys() == abstract(TINY)[1].keys()
    kernel = state["features.4.block.0.0.weight"]  # mel, then time
    assert params["blocks.3.depthwise.kernel"][1, 4, 2] == kernel[2, 0, 4, 1]
    assert params["stem.kernel"][2, 0, 3] == state["features.0.0.weight"][3, 0, 0, 2]
    expand = state["features.7.block.0.0.weight"]
    np.testing.assert_array_equal(params["blocks.6.expand.kernel"], expand[:, :, 0, 0].T)
    gate = state["features.4.block.1.conc_se_layers.0.fc2.weight"]
    np.testing.assert_array_equal(params["blocks.3.fc2.kernel"], gate.T)
    variance = state["features.16.1.running_var"]
    np.testing.assert_array_equal(params["last.var"], variance)


def test_the_command_converts(state, write, tmp_path, capsys):
    assert main(["efficientat", str(write(state)), str(tmp_path / "out.safetensors")]) == 0
    assert "efficientat, from a file with SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classifier.2.weight": None}, "two dense layers behind its features"),
        ({"features.0.0.weight": None}, "two dense layers behind its features"),
        ({"features.7.block.1.0.weight": None}, "in the model but not in the file"),
        ({"features.99.weight": np.zeros(3)}, "features.99.weight"),
        ({"features.16.1.bias": np.zeros(3)}, "last.bias: expected"),
        ({"classifier.2.weight": np.zeros((64, 96), "f4")}, "wrong shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, told, state, write, tmp_path):
    changed = {n: x for n, x in (state | change).items() if x is not None}
    with pytest.raises(InputError, match=told):
        convert_file(write(changed), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_files_and_configurations_are_refused(write, tmp_path):
    with pytest.raises(InputError, match="leave --config out"):
        convert_file(tmp_path / "a.pt", tmp_path / "out.safetensors", "base")
    with pytest.raises(InputError, match=r"a\.pt"):
        convert_file(tmp_path / "a.pt", tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="not an EfficientAT"):
        convert_file(write({"patch_embedding.weight": np.zeros(3)}), tmp_path / "out.safetensors")
