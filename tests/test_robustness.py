import importlib

import numpy as np
import pytest

import robustness
import settings
import shapes
from configs import default


@pytest.mark.parametrize("name", ["default", "heldout", "unseen", "identity"])
def test_one_nuisance_more_at_each_step(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.eval.num_pairs = 300
    steps = dict(robustness.sweep(config))
    expected = ["identical", "+ translation", "+ scale", "+ rotation"]
    expected += [] if name == "identity" else ["+ unseen kinds"]
    assert list(steps) == expected
    varied = {
        "identical": set(),
        "+ translation": {"row", "column"},
        "+ scale": {"size"},
        "+ rotation": {"angle"},
    }
    allowed = set()
    for step, pairs in steps.items():
        assert pairs.label.mean() == 0.5
        alike = (pairs.images[pairs.first] == pairs.images[pairs.second]).all(axis=(1, 2, 3))
        one, other = (pairs.class_ids[places] for places in (pairs.first, pairs.second))
        np.testing.assert_array_equal(one == other, pairs.label == 1)
        if step == "identical":
            np.testing.assert_array_equal(alike, pairs.label == 1)
        else:
            assert alike[pairs.label == 1].mean() < 0.2
        allowed |= varied.get(step, set())
        for field in ("row", "column", "size", "angle"):
            values = getattr(pairs.latents, field)[pairs.class_ids == pairs.class_ids[0]]
            assert len(np.unique(values)) == 1 or field in allowed
            assert len(np.unique(values)) > 1 or field not in allowed
        low, high = shapes.size_range(config.data)
        for kind, name_of_kind in enumerate(config.data.shapes):
            sizes = pairs.latents.size[pairs.latents.shape == kind]
            if step != "+ unseen kinds" and len(sizes):
                assert low[kind] <= sizes.min() and sizes.max() <= high[kind], name_of_kind


@pytest.mark.parametrize("step, field", [("scale", "size"), ("translation", "row")])
def test_what_does_not_vary_is_in_the_middle_of_what_will(step, field):
    config = default.get_config()
    config.eval.num_pairs = 1000
    steps = dict(robustness.sweep(config))
    for kind in range(2):
        plain, varied = (
            getattr(steps[name].latents, field)[steps[name].latents.shape == kind]
            for name in ("identical", f"+ {step}")
        )
        assert len(varied) > 500 and abs(plain[0] - (varied.min() + varied.max()) / 2) <= 0.5


def test_sizes_are_the_largest_that_can_turn_in_the_image():
    options = default.get_config().data
    options.update({"placement": "inside", "p_rotation": 1.0, "max_size": 40})
    robustness.fit(options)
    assert 2 * shapes.margin(options) + 1 <= options.image_size
    options.max_size += 1
    assert 2 * shapes.margin(options) + 1 > options.image_size


def test_unseen_kinds_are_unseen():
    config = settings.frozen(default.get_config())
    *_, (name, pairs) = robustness.sweep(config)
    assert name == "+ unseen kinds" and len(np.unique(pairs.class_ids)) == 6
