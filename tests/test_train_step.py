"""The training step against definitions in NumPy, and the optimizers against PyTorch's."""

import functools

import jax
import numpy as np
import optax
import pytest
from conftest import assert_same_gradient, tiny_config
from test_train import leaves, setup

import data
import train_step
from model import create_model

TWO = (1, 1)  # stages, the second of which halves the maps


@functools.cache
def run_steps(devices, steps=20):
    """Returns (state after one step, losses of all steps) of TWO stages on some of the devices."""
    config = tiny_config()
    state, train_steps = setup(TWO)
    devices = jax.devices()[:devices]
    state, losses, first = train_step.replicate(state, devices), [], None
    for step in range(steps):
        batches = train_step.to_devices([data.make_batch(config, "train", step)], devices)
        state, metrics = train_steps(state, batches)
        losses.append(metrics["loss"].item() / config.batch_size)
        first = first or train_step.to_host(state)
    return first, np.array(losses)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_number_of_devices_does_not_change_what_is_learnt(devices):
    one, losses = run_steps(1)
    other, other_losses = run_steps(devices)
    assert_same_gradient(one.opt_state, other.opt_state)
    for a, b in leaves(one.batch_stats, other.batch_stats):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max() + 1e-12
    np.testing.assert_allclose(other_losses, losses, rtol=1e-2)


def test_a_step_is_the_gradient_step_of_a_plain_reference(tiny):
    """One Adam step with L2 decay against torch.optim.Adam's definition in NumPy, float64."""
    tiny.model.stage_sizes = TWO
    before, _ = setup(TWO)
    after, _ = run_steps(1)
    model = create_model(tiny)
    batch = data.make_batch(tiny, "train", 0)

    def loss_of(params):
        variables = {"params": params, "batch_stats": before.batch_stats}
        apply = jax.vmap(  # an axis for BatchNorm's mean over devices
            lambda a, b: model.apply(variables, a, b, train=True, mutable=["batch_stats"])[0],
            axis_name="devices",
        )
        logits = apply(batch.image1[None], batch.image2[None])[0]
        return (jax.nn.softplus(logits) - batch.label * logits).mean()

    gradient = jax.jit(jax.grad(loss_of))(before.params)
    for p, g, found in leaves(before.params, gradient, after.params):
        g = np.asarray(g, np.float64) + 5e-4 * p
        first, second = (1 - 0.937) * g / (1 - 0.937), (1 - 0.999) * g**2 / (1 - 0.999)
        expected = p - 1e-3 * first / (np.sqrt(second) + 1e-8)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_an_answer_in_training_is_right_by_the_threshold_of_the_config(tiny):
    tiny.model.encoder, tiny.eval.threshold = "cnn", 1e-9  # all are called the same
    model, (optimizer, _) = create_model(tiny), train_step.make_optimizer(tiny)
    state, device = train_step.create_state(tiny, model, optimizer), jax.devices()[:1]
    batches = [data.make_batch(tiny, "train", step) for step in range(4)]
    train_steps = train_step.make_train_steps(tiny, model, optimizer)
    placed = train_step.to_devices(batches, device)
    _, metrics = train_steps(train_step.replicate(state, device), placed)
    assert metrics["correct"].tolist() == [batch.label.sum() for batch in batches]
    assert metrics["count"].tolist() == [8, 8, 8, 8]


def test_small_batches_accumulate_to_the_nominal_one():
    """Two batches of 4 under a nominal 8 make one update with the mean of their gradients."""
    config = tiny_config()
    config.batch_size, config.optimizer.nominal_batch_size = 4, 8
    optimizer, schedule = train_step.make_optimizer(config)
    config.batch_size = 8
    whole, _ = train_step.make_optimizer(config)
    params = {"w": np.array([1.0, -2.0], np.float32)}
    gradients = [{"w": np.array(g, np.float32)} for g in ([0.5, 1.0], [1.5, -2.0])]
    state = optimizer.init(params)
    first, state = optimizer.update(gradients[0], state, params)
    second, _ = optimizer.update(gradients[1], state, params)
    mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *gradients)
    expected, _ = whole.update(mean, whole.init(params), params)
    assert (first["w"] == 0).all()
    np.testing.assert_allclose(second["w"], expected["w"], rtol=1e-6)
    assert schedule(4) == pytest.approx(1e-5)  # 8 steps are 4 updates


def test_weight_decay_is_scaled_to_what_the_batches_add_up_to(tiny):
    tiny.optimizer.update(
        {"name": "sgd", "momentum": 0.0, "weight_decay": 0.5, "final_learning_rate": 1e-3}
    )
    tiny.batch_size, tiny.optimizer.nominal_batch_size = 12, 8
    optimizer, _ = train_step.make_optimizer(tiny)
    params = {"w": np.array([2.0], np.float32)}
    updates, _ = optimizer.update({"w": np.zeros(1, np.float32)}, optimizer.init(params), params)
    assert updates["w"][0] == pytest.approx(-1e-3 * 0.5 * 12 / 8 * 2.0)


def test_nesterov_sgd_is_torchs(tiny):
    tiny.optimizer.update({"name": "sgd", "weight_decay": 0.0, "final_learning_rate": 1e-3})
    optimizer, _ = train_step.make_optimizer(tiny)
    params, velocity = {"w": np.array([1.0], np.float32)}, 0.0
    state, expected = optimizer.init(params), 1.0
    for gradient in (0.3, -0.2, 0.7):
        updates, state = optimizer.update({"w": np.array([gradient], np.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.937 * velocity + gradient
        expected -= 1e-3 * (gradient + 0.937 * velocity)
    assert params["w"][0] == pytest.approx(expected, rel=1e-6)


def test_golden_losses():
    """To be changed only with a change that means to alter data, model or optimizer."""
    _, losses = run_steps(1)
    assert losses[:5] == pytest.approx([0.65230, 0.70707, 0.75154, 0.71601, 0.78662], rel=1e-3)


def test_adamw_decays_kernels_alone_and_apart_from_the_gradient(tiny):
    """Two steps against the definition (Loshchilov & Hutter 2019, algorithm 2), in float64."""
    tiny.optimizer.update({"name": "adamw", "weight_decay": 0.5, "warmup": 0.25})
    optimizer, schedule = train_step.make_optimizer(tiny)  # 8 steps, of which 2 are the warm-up
    assert schedule(0) == 0
    assert schedule(1) == pytest.approx(0.5 * 1e-3)
    assert schedule(2) == pytest.approx(1e-3)
    assert schedule(5) == pytest.approx((1e-3 + 1e-5) / 2)  # half way through the cosine
    assert schedule(8) == pytest.approx(1e-5)
    params = {"kernel": np.float32([[1.0, -2.0]]), "scale": np.float32([3.0])}
    gradients = [{"kernel": np.float32([[0.1, 0.4]]), "scale": np.float32([-0.2])}] * 2
    state, moved = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, moved)
        moved = jax.tree.map(np.add, moved, updates)
    for name, decay in (("kernel", 0.5), ("scale", 0.0)):  # of equal gradients both moments are g
        before, g = np.float64(params[name]), np.float64(gradients[0][name])
        expected = before - 0.5e-3 * (g / (np.abs(g) + 1e-8) + decay * before)
        np.testing.assert_allclose(moved[name], expected, rtol=1e-6)
