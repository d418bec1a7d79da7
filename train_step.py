"""A training step: its state, the optimizer, what it computes (pmapped), places on devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.flatten_util import ravel_pytree

import data
import pretrained
import settings
from model import AXIS, init_variables, trained, training_loss


class TrainState(struct.PyTreeNode):
    """All that changes while training; a checkpoint holds it whole."""

    step: jax.Array  # int32 [], batches seen
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    @property
    def variables(self):
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_optimizer(config):
    """Returns (optax transformation of batches' gradients, learning rate as a function of updates).

    Adam or Nesterov SGD after torch.optim: L2 decay is added to the gradient before the moments.
    Batches smaller than the nominal one accumulate, and the decay is scaled to what they add up to
    (the rule of YOLOv5's trainer): by batch * accumulated / nominal.
    """
    options, accumulated = config.optimizer, settings.accumulated_steps(config)
    schedule = optax.cosine_decay_schedule(
        options.learning_rate,
        decay_steps=config.num_steps // accumulated,
        alpha=options.final_learning_rate / options.learning_rate,
    )
    scale = config.batch_size * accumulated / options.nominal_batch_size
    moments = {
        "adam": lambda: optax.scale_by_adam(b1=options.momentum, b2=options.beta2),
        "sgd": lambda: optax.trace(decay=options.momentum, nesterov=True),
    }[options.name]
    optimizer = optax.chain(
        optax.add_decayed_weights(options.weight_decay * scale),
        moments(),
        optax.scale_by_learning_rate(schedule),
    )
    if accumulated > 1:
        optimizer = optax.MultiSteps(optimizer, accumulated)
    return optimizer, schedule


def create_state(config, model, optimizer):
    """The state before the first step, as host arrays."""
    variables = init_variables(model, config)
    if config.model.pretrained:
        encoder = {kind: tree["encoder"] for kind, tree in variables.items()}
        for kind, tree in pretrained.load(config.model.pretrained, encoder).items():
            variables[kind]["encoder"] = tree
    opt_state = jax.jit(optimizer.init)(trained(config, variables["params"]))
    return jax.device_get(TrainState(jnp.zeros((), jnp.int32), opt_state=opt_state, **variables))


def make_train_steps(config, model, optimizer):
    """Returns the pmapped steps (state, batches) -> (state, metrics); the state is donated.

    Batches have an axis of steps after that of devices, and each metric has one.
    The state is the same on all devices, without an axis for them: with one, XLA would have Adam
    compute its moments twice and copy all that is donated, a seventh of ResNet18's step on CPU.
    Gradients and BatchNorm's statistics are means over the whole batch, so what is learnt does not
    depend on the number of devices. Metrics are float32, of the batch: sums (loss, correct), count
    and gradient_norm.
    """
    threshold = math.log(config.eval.threshold / (1 - config.eval.threshold))  # as a logit
    apply = nn.apply(partial(training_loss, config), model, mutable=["batch_stats"])

    def train_step(state, batch):
        def loss_of(params):
            variables = {"params": state.params | params, "batch_stats": state.batch_stats}
            (loss, *answers), updated = apply(variables, batch)
            return loss, (*answers, updated["batch_stats"])

        params = trained(config, state.params)
        gradient, (losses, logits, batch_stats) = jax.grad(loss_of, has_aux=True)(params)
        gradient = mean_over_devices(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = state.params | optax.apply_updates(params, updates)
        correct = (logits >= threshold) == (batch.label == 1)
        sums = {
            "loss": losses.sum(),
            "correct": correct.sum(dtype=jnp.float32),
            "count": jnp.float32(len(losses)),
        }
        flat = jax.tree.map(jnp.ravel, gradient)  # on CPU XLA sums one axis far faster than four
        metrics = lax.psum(sums, AXIS) | {"gradient_norm": optax.tree.norm(flat)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    def train_steps(state, batches):
        return lax.scan(train_step, state, batches)

    return jax.pmap(train_steps, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)


def mean_over_devices(tree):
    """Averages over AXIS; in one piece, since leaf by leaf would cost a message each.

    But for GPUs: there XLA gathers leaves into messages of 30 MB and sends them while it computes.
    """
    if lax.axis_size(AXIS) == 1:
        return tree
    if jax.default_backend() == "gpu":
        return lax.pmean(tree, AXIS)
    vector, unravel = ravel_pytree(tree)
    return unravel(lax.pmean(vector, AXIS))


def compile_steps(config, train_steps, state, count=1):
    """Compiles pmapped steps ahead, for so many in a call, so that no step's time contains it.

    Unlike the pmapped function a program takes and gives arrays over the devices of all processes.
    """
    # Arrays, not their shapes alone, which pmap cannot lower where there are several processes.
    batches = split([own_part(config, 0)] * count, jax.local_device_count())
    return train_steps.lower(state, batches).compile()


def own_part(config, step):
    """The part of a step's batch that is this process's."""
    return data.make_batch(config, "train", step, jax.process_index(), jax.process_count())


def to_devices(batches, devices=None):
    """Places a process's part of consecutive batches on its devices, or on some of all devices."""
    devices = devices or jax.devices()
    local = sum(device.process_index == jax.process_index() for device in devices)
    return on_devices(split(batches, local), jax.P(AXIS), devices)


def split(batches, count):
    """Batches as one, with leading axes of so many devices and of steps, as pmap takes them."""
    shared = (
        [field.reshape(count, -1, *field.shape[1:]) for field in fields]
        for fields in zip(*batches, strict=True)
    )
    return data.Batch(*(np.stack(fields, axis=1) for fields in shared))


def replicate(state, devices=None):
    """Places a state on all devices, or on some of them."""
    return on_devices(state, jax.P(), devices or jax.devices())


def on_devices(tree, spec, devices):
    """Places this process's rows on its devices; with P() the same whole on each."""
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS,)), spec)
    return jax.make_array_from_process_local_data(sharding, tree)


def to_host(state):
    """A state as host arrays: copies, for with views the next step could not reuse its memory."""
    return jax.tree.map(np.array, state)
