import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import expit

import calibration
import data
from errors import UserError
from model import create_model, init_variables
from scoring import Scores


def answers(logits, label):
    return Scores(logits, np.zeros_like(logits), logits > 0, label)


def drawn(scale, shift, count=4000):
    """Logits whose honest version is scale * logit + shift, and labels."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, count)
    return logits, (random.random(count) < expit(scale * logits + shift)).astype(float)


@pytest.mark.parametrize("scale, shift", [(0.4, -1.0), (2.5, 0.7)])
def test_what_is_fitted_is_logistic_regression(scale, shift):
    """Against scikit-learn's, with Platt's targets as weights of both labels."""
    from sklearn.linear_model import LogisticRegression

    logits, label = drawn(scale, shift)
    weight = np.random.default_rng(1).random(len(label))
    weight /= weight.sum()
    found = calibration.fit(answers(logits, label), weight)
    ones = label.sum()
    target = np.where(label == 1, (ones + 1) / (ones + 2), 1 / (len(label) - ones + 2))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    both = np.concatenate([weight * target, weight * (1 - target)])
    oracle.fit(np.tile(logits, 2)[:, None], np.repeat([1, 0], len(label)), both)
    np.testing.assert_allclose(found, (oracle.coef_[0, 0], oracle.intercept_[0]), rtol=1e-3)
    np.testing.assert_allclose(found, (scale, shift), atol=0.25)


def test_pairs_that_are_all_right_have_a_finite_scale_and_bad_ones_none():
    logits, label = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0])
    weight = np.full(4, 0.25)
    scale, _ = calibration.fit(answers(logits, label), weight)
    assert 0.1 < scale < 10
    assert calibration.fit(answers(-logits, label), weight) == calibration.NONE
    assert calibration.fit(answers(logits, np.ones(4)), weight) == calibration.NONE


@pytest.mark.parametrize(
    "changes",
    [{"model.head": "cosine"}, {"model.head": "mlp"}],
)
def test_the_networks_own_logits_are_scaled_and_shifted(changes, tiny):
    tiny.update_from_flattened_dict(changes | {"model.encoder": "cnn"})
    model, batch = create_model(tiny), data.make_batch(tiny, "train", 0)
    before = jax.device_get(init_variables(model, tiny))
    after = calibration.apply(before, 2.5, -0.7)
    one, other = (model.apply(v, batch.image1, batch.image2) for v in (before, after))
    np.testing.assert_allclose(other, 2.5 * one - 0.7, rtol=1e-4, atol=1e-4)
    assert jax.tree.map(np.dtype, jax.tree.map(lambda x: x.dtype, before)) == jax.tree.map(
        np.dtype, jax.tree.map(lambda x: x.dtype, after)
    )


@pytest.mark.parametrize("count", [5, 19, 20])
@pytest.mark.parametrize("split", ["disjoint", "classes", "groups"])
@pytest.mark.parametrize("source", ["folder", "shapes"])
def test_few_classes_are_said_where_others_are_tested(count, split, source, tiny):
    tiny.data.source, tiny.data.split = source, split
    pairs = SimpleNamespace(class_ids=np.arange(3 * count) % count)
    said = calibration.caution(tiny.data, pairs)
    expected = f"; validation has {count} classes: too few to say how well this suits others"
    assert said == expected * (count < 20 and split != "disjoint" and source == "folder")
    assert calibration.caution(tiny.data, SimpleNamespace(class_ids=None)) == ""


def test_what_is_kept_is_of_one_step(tmp_path, capsys):
    path = tmp_path / "numbers.json"
    assert calibration.kept(path, 4, "scale", "shift") is None
    path.write_text(json.dumps({"step": 4, "scale": 1.5, "shift": 0.25}))
    assert calibration.kept(path, 4, "scale", "shift") == [1.5, 0.25]
    assert capsys.readouterr().err == ""
    assert calibration.kept(path, 8, "scale", "shift") is None
    assert capsys.readouterr().err == f"warning: {path} is of step 4, not of 8\n"
    for text in ("{}", "half", json.dumps({"step": 4, "scale": "x", "shift": 0})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"numbers.json is damaged: delete it"):
            calibration.kept(path, 4, "scale", "shift")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"numbers.json cannot be read"):
        calibration.kept(path, 4, "scale", "shift")
