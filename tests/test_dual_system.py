"""A system of two branches: what it depends on, and its whole path from clips to scores."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from trainings import small_system, two_machines

from asdjax.losses.margin import Margin
from asdjax.metrics import score_files
from asdjax.models import weights_file
from asdjax.models.backbone import abstract
from asdjax.models.beats import BeatsConfig
from asdjax.models.eat import EatConfig
from asdjax.models.lora import Lora
from asdjax.models.pretrained import Pretrained
from asdjax.models.weights_file import Header
from asdjax.stages import folder, recordings, stages
from asdjax.stages.options import Options
from asdjax.train.config import HeadConfig

WIDTH = 8  # of the embedding of a branch
ADAPTER = Lora(rank=2, alpha=2.0, targets=("q",))


def encoders(*paths: Path) -> tuple[Pretrained, ...]:
    return tuple(Pretrained(str(path), ADAPTER, "mean", WIDTH) for path in paths)


STRUCTURES = {
    "beats": BeatsConfig(
        input_patch_size=16,
        embed_dim=16,
        encoder_layers=1,
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=48,
        encoder_attention_heads=2,
        conv_pos=8,
        conv_pos_groups=2,
    ),
    "eat": EatConfig(embed_dim=16, depth=1, num_heads=2, max_length=8),
}


def tiny(path: Path) -> Path:
    """Write random weights of the backbone that the file is named after."""
    structure, draw = STRUCTURES[path.stem], np.random.default_rng(0).standard_normal
    values = {n: np.float32(0.3 * draw(x.shape)) for n, x in abstract(structure)[1].items()}
    weights_file.save(path, values, Header(path.stem, asdict(structure)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return two_machines(tmp_path_factory.mktemp("machines"))


HEADER = Header("beats", asdict(BeatsConfig.base()))


def system_of(*paths: Path):
    """Return a system with a head for all encoders and one for each."""
    head = HeadConfig(Margin("arcface", 0.2, 10.0), branch_weights=(1 / len(paths),) * len(paths))
    return small_system(encoders=encoders(*paths), heads=(head,))


def test_what_a_system_depends_on_is_the_content_of_the_weights_of_every_encoder(data, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for i, path in enumerate((one, two)):
        weights_file.save(path, {"a": np.full(3, i, np.float32)}, HEADER)

    def prepared(*paths: Path) -> folder.Run:
        return recordings.prepare(system_of(*paths), data, Options())

    def key(*paths: Path) -> str:
        return json.dumps(prepared(*paths).model(tmp_path / "run").key)

    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, two)]
    assert prepared(one, two).weights == tuple(digests)
    systems = [(one,), (two,), (one, two), (two, one), (one, one), (two, two)]
    assert len({key(*paths) for paths in systems}) == len(systems)
    before = key(one, two)
    assert key(shutil.copy(one, tmp_path / "elsewhere.safetensors"), two) == before
    for path in (one, two):
        weights_file.save(path, {"a": np.full(3, 7, np.float32)}, HEADER)
        assert key(one, two) != before
        before = key(one, two)


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory) -> Path:
    """A complete run of BEATs and EAT side by side on two machines, but for its figures."""
    root, read = tmp_path_factory.mktemp("dual"), []
    paths = [tiny(root / f"{kind}.safetensors") for kind in STRUCTURES]
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.figures, "write", lambda *_: None)
        patch.setattr(Path, "read_bytes", counted)
        results = stages.run(system_of(*paths), data, root / "run")
    assert "official_score" in {metric.metric for metric in results}
    # For their digests, for the training and for the embeddings: once altogether.
    assert [read.count(path) for path in paths] == [1, 1]
    return root / "run"


def test_the_model_has_both_branches_and_a_head_for_each_and_for_both(ran):
    trained = weights_file.load(ran / folder.MODEL).arrays
    parts = {".".join(name.split(".")[:2]) for name in trained}
    assert parts == {"branches.0", "branches.1", "heads.0", "heads.1", "heads.2"}
    shapes = [trained[f"heads.{i}.centers"].shape for i in range(3)]
    assert shapes == [(4, 1, 2 * WIDTH), (4, 1, WIDTH), (4, 1, WIDTH)]  # 2 speeds of 2 machines
    for branch, structure in zip(("branches.0", "branches.1"), STRUCTURES.values(), strict=True):
        assert trained[f"{branch}.project.kernel"].shape == (structure.width, WIDTH)
        # The second factor of an adapter starts at 0.
        names = [n for n in trained if n.startswith(f"{branch}.backbone") and n.endswith("lora_b")]
        assert names
        assert all(trained[name].any() for name in names)


def test_scores_are_distances_of_the_embeddings_of_both_branches(ran):
    made, scores = folder.load(ran), {f.machine: f for f in score_files.load(ran / "scores")}
    assert set(scores) == {"fan", "pump"}
    for group, clips in made.groups.items():
        values = folder.load_embeddings(ran, made, group).values.astype(np.float64)
        assert values.shape == (len(clips), 2 * WIDTH)
        for own in np.split(values, 2, axis=1):
            assert np.ptp(own, axis=0).all()  # each branch tells clips apart
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        train = [i for i, clip in enumerate(clips) if clip.split == "train"]
        got = dict(zip(scores[group[0]].names, scores[group[0]].values, strict=True))
        want = {
            clip.name: 1 - (unit[train] @ unit[i]).max()
            for i, clip in enumerate(clips)
            if clip.split == "test"
        }
        assert got.keys() == want.keys()
        # 1e-6: float32 cosines near 1.
        np.testing.assert_allclose([got[n] for n in want], [*want.values()], rtol=0, atol=1e-6)
