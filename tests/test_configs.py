import importlib

import jax
import numpy as np
import pytest
from conftest import ROOT, TINY, run, tiny_file

import data
import images
import scoring
import train
import train_step
from model import create_model, trained


def leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


COMPILES_LONG = ("small_stem", "pretrained", "seed")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in COMPILES_LONG))
    for name in sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_and_is_evaluated(name, photos, prepared, tmp_path):
    """Two steps and an evaluation with a tiny network of its kind."""
    config = importlib.import_module(f"configs.{name}").get_config()
    sizes = {key: value for key, value in TINY.items() if not key.endswith("every_steps")}
    config.update_from_flattened_dict(sizes | {"num_steps": 2, "eval.num_pairs": 100})
    given = {"folder": photos, "pairs": photos / "given.csv", "tfds": prepared}
    if config.data.source != "shapes":
        config.data.path = str(given[config.data.source])
        images.resolve(config.data)
    if config.model.pretrained:
        config.model.pretrained = str(tmp_path / "model.safetensors")
        tiny_file(config.model.pretrained, 0)
    config = train.resolve(config)
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    started = train_step.create_state(config, model, optimizer)
    before, state = started.params, train_step.replicate(started)
    train_steps = train_step.make_train_steps(config, model, optimizer)
    for step in range(2):
        batches = train_step.to_devices([data.make_batch(config, "train", step)])
        state, metrics = train_steps(state, batches)
    assert metrics["count"] == 8 and np.isfinite(metrics["loss"])
    state = train_step.to_host(state)
    for old, new in leaves(trained(config, before), trained(config, state.params)):
        assert (old != new).any()
    if config.model.frozen:
        for old, new in leaves(before["encoder"], state.params["encoder"]):
            assert (old == new).all()
        for old, new in leaves(started.batch_stats, state.batch_stats):
            assert (old == new).all()
        assert "encoder" not in str(jax.tree.leaves_with_path(state.opt_state))
    score = scoring.make_scorer(model)
    found = scoring.evaluate(config, score, state.variables, "test", most=1)
    assert found.metrics["pairs"] == len(found.scores.logits) == 100
    answers = found.scores.logits >= np.log(config.eval.threshold / (1 - config.eval.threshold))
    assert found.metrics["wrong"] == (answers != found.pairs.label).sum()


@pytest.mark.parametrize("name", ["folder", "omniglot", "pairs"])
def test_of_files_the_last_checkpoint_is_the_best(name):
    assert importlib.import_module(f"configs.{name}").get_config().eval.best == "last"


@pytest.mark.slow
def test_light_learns_every_pair_of_the_founding_data(tmp_path):
    finished = run("train.py", f"--config={ROOT}/configs/light.py", f"--workdir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    assert "test: 0 wrong of 9,216 pairs (every ordered pair" in finished.stdout
