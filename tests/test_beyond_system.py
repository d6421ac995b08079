"""Recipes beyond the reports on a tiny backbone: from recordings to scores, and the search."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from machines import tiny_eat, tone_machine
from test_two_microphones import with_far
from trainings import two_machines

from asdjax import arguments
from asdjax.__main__ import main
from asdjax.config import SystemConfig
from asdjax.files import read_csv
from asdjax.metrics.official import TOTAL
from asdjax.models import weights_file
from asdjax.models.logmel import LogMel
from asdjax.models.lora import Lora
from asdjax.models.pooling import Pool
from asdjax.recipes import RECIPES
from asdjax.scoring.density import Density
from asdjax.scoring.knn import Knn
from asdjax.stages import folder, search, stages
from asdjax.train.optimizer import Schedule
from asdjax.types import InputError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_eat(tmp_path_factory.mktemp("weights") / "eat.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for seed, machine in enumerate(("fan", "pump")):
        tone_machine(root, machine, seed)
    return root


def of_eat(recipe, weights):
    config = RECIPES[recipe].config
    encoder = replace(config.encoders[0], weights=str(weights))
    return replace(config, encoders=(encoder,))


@pytest.mark.parametrize("recipe", ["beyond/eat-rdp", "beyond/eat-beam", "beyond/eat-domain"])
def test_frozen_recipes_score(recipe, data, weights, tmp_path):
    results = stages.run(of_eat(recipe, weights), data, tmp_path / "run")
    (score,) = [m.value for m in results if m.metric == "official_score" and m.machine == TOTAL]
    assert score > 0.9  # a loud tone


def test_the_log_mel_by_bands_finds_every_tone(data, tmp_path):
    results = stages.run(RECIPES["beyond/logmel"].config, data, tmp_path / "run")
    assert [m.value for m in results if m.metric == "official_score" and m.machine == TOTAL] == [1]


def test_what_was_trained_is_scored_by_bands(weights, tmp_path):
    """The dense layer of 256 and the pooling train; the vectors are 8 bands of the backbone."""
    system = of_eat("beyond/beats-lora-two", weights)
    short = replace(system.train.optimizer, schedule=Schedule("constant", 1e-4))
    train = replace(system.train, steps=2, batch=4, optimizer=short)
    encoder = replace(system.encoders[0], adapter=Lora(rank=4))
    system = replace(
        system,
        encoders=(encoder,),
        train=train,
        audio=replace(system.audio, seconds=0.5),
        pseudo=None,
    )
    root = with_far(two_machines(tmp_path / "data"))
    stages.run(system, root, tmp_path / "run")
    made = folder.load(tmp_path / "run")
    values = folder.load_embeddings(tmp_path / "run", made, ("fan", "section_00")).values
    config = weights_file.read_header(weights).config
    assert values.shape[1] == 8 * config["embed_dim"]
    trained = weights_file.load(tmp_path / "run" / folder.MODEL).arrays
    assert trained["branches.0.project.kernel"].shape[1] == 256
    assert np.isfinite(values).all()


POOLS = Pool(bands=True), Pool(8.0, bands=True)
SEARCHED = {
    "plain": RECIPES["frozen/logmel"].config,
    "views": SystemConfig((LogMel(4, POOLS),), Knn(parts=8, normalize=Density(4, exits=True))),
}


@pytest.mark.parametrize(("system", "ways"), [("plain", 29), ("views", 261)])
def test_search_ranks_all_ways_and_its_options_score_alike(system, ways, data, tmp_path, capsys):
    """Whatever the run's own scorer has."""
    out = tmp_path / "run"
    stages.run(SEARCHED[system], data, out)
    first = search.search([out])
    heading, *rows = read_csv(out / search.FILE)
    assert len(rows) == len(first) == ways
    assert heading[-1] == "labels of test clips used"
    assert {row[-1] for row in rows} == {"0"}
    assert f"fan/section_00 of {out}" in heading
    values = [row["mean consistency"] for row in first]
    assert values == sorted(values, reverse=True)
    labelled = search.search([out], labels=True)
    assert {row["labels of test clips used"] for row in labelled} == {1}
    together = next((row for row in labelled if row["view"] == "all"), labelled[1])
    for row in (labelled[0], labelled[-1], labelled[12], labelled[20], together):
        words = ["asdjax", "score", str(out), *row["scorer"].split()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", words)
            main()
        metrics = stages.report(out)
        (value,) = [m.value for m in metrics if m.metric == "official_score" and m.machine == TOTAL]
        # 1e-6: float32 scores; ties are rare
        assert value == pytest.approx(row["mean official score"], abs=1e-6)
    printed = capsys.readouterr().err
    assert "with fewer than 17 training clips" in printed
    assert "not comparable with others" in printed
    assert "next to nothing of how well anomalies are detected" in " ".join(printed.split())


def test_parts_that_an_embedding_does_not_have_are_refused_before_it_is_made(data, tmp_path):
    config = RECIPES["frozen/logmel"].config
    with pytest.raises(InputError, match="expected parts that the embedding has, 1, got 8"):
        stages.run(replace(config, scorer=Knn(parts=8)), data, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    both = replace(config, encoders=(LogMel(4, POOLS),))
    with pytest.raises(InputError, match="expected a view NUMBER 2 of mean, bands, RDP 8, bands"):
        stages.run(replace(both, scorer=Knn(view=(0, 3))), data, tmp_path / "run")
    with pytest.raises(InputError, match="parts that the embedding has, 1 or 2 or 8, got 4"):
        stages.run(replace(both, scorer=Knn(parts=4)), data, tmp_path / "run")


def test_an_embedded_run_is_scored_by_parts_without_its_weights(weights, data, tmp_path):
    moved = tmp_path / "eat.safetensors"
    shutil.copy(weights, moved)
    stages.run(of_eat("beyond/eat-beam", moved), data, tmp_path / "run")
    with pytest.raises(InputError, match="parts that the embedding has, 1 or 8, got 4"):
        stages.score(tmp_path / "run", Knn(parts=4))
    moved.unlink()
    stages.score(tmp_path / "run", Knn(parts=8))
    assert folder.load(tmp_path / "run").system.scorer == Knn(parts=8)


def test_poolings_are_words_on_the_command_line():
    words = ["--data", "d", "--out", "o", "--encoders.0.pools", "mean,bands", "rdp8,bands"]
    given = arguments.parse("run", ["frozen/logmel", *words, "--encoders.0.bands", "4"])
    assert given.config.encoders == (LogMel(4, POOLS),)
    with pytest.raises(InputError, match=r"--encoders.0.pools: expected mean, rdp8.* got rpd8"):
        arguments.parse("run", ["frozen/logmel", *words[:-1], "rpd8"])


def test_search_refuses_what_nothing_can_be_ranked_by(data, tmp_path):
    out = tmp_path / "run"
    stages.run(RECIPES["frozen/logmel"].config, data, out)
    other = tmp_path / "other"
    stages.run(RECIPES["beyond/logmel"].config, data, other)
    with pytest.raises(InputError, match="expected runs of one system"):
        search.search([out, other])
    with pytest.raises(InputError, match="expected a run's folder"):
        search.search([tmp_path / "nothing"])
    with pytest.raises(InputError, match="expected one or more folders of runs"):
        search.search([])
    with pytest.raises(InputError, match="expected a csv for --out, got the folder"):
        search.search([out], out=tmp_path)
    made = folder.load(out)
    clips = tuple(replace(clip, domain="source") for clip in made.clips)
    folder.save(out, replace(made, clips=clips))
    with pytest.raises(InputError, match=r"training clips of source and target .* none in .*run"):
        search.search([out])
