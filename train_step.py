"""The training step: its state, optimizer, pmapped computation and placement on devices."""

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
from augment import augment_batch
from losses import training_loss
from model import AXIS, init_variables, trained


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and that a checkpoint holds."""

    step: jax.Array  # int32 []: number of batches trained on
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    @property
    def variables(self):
        """The variables for model.apply."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_optimizer(config):
    """Returns (optax transformation of a batch's gradient, learning rate as a function of updates).

    Adam and Nesterov SGD are those of torch.optim: L2 decay is added to the gradient before the
    moments, scaled by batch * accumulated / nominal size (as YOLOv5 does). AdamW decays kernels
    alone, after the moments (Loshchilov & Hutter 2019).
    """
    options, accumulated = config.optimizer, settings.accumulated_steps(config)
    updates = config.num_steps // accumulated
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=options.learning_rate,
        warmup_steps=round(options.warmup * updates),
        decay_steps=updates,
        end_value=options.final_learning_rate,
    )
    scale = config.batch_size * accumulated / options.nominal_batch_size
    l2 = optax.add_decayed_weights(options.weight_decay * scale)
    betas = {"b1": options.momentum, "b2": options.beta2}
    are_kernels = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    decay = {"weight_decay": options.weight_decay, "mask": are_kernels}
    optimizer = {
        "adam": optax.chain(l2, optax.adam(schedule, **betas)),
        "adamw": optax.adamw(schedule, **betas, **decay),
        "sgd": optax.chain(l2, optax.sgd(schedule, options.momentum, nesterov=True)),
    }[options.name]
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

    Fields of batches are [devices, steps, pairs, ...], see `stack_batches`. Metrics are float32
    [steps], of the whole batch: sums (loss, correct), count and gradient_norm. Gradients and
    BatchNorm's statistics are means over the whole batch, whatever the number of devices.
    The state has no axis of devices: with one, XLA would compute Adam's moments twice and copy all
    donated arrays, a seventh of ResNet18's step on CPU.
    """
    threshold = math.log(config.eval.threshold / (1 - config.eval.threshold))  # as a logit
    apply = nn.apply(partial(training_loss, config), model, mutable=["batch_stats"])

    def train_step(state, batch):
        batch = augment_batch(config, state.step, batch)

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
        sums = {"loss": losses.sum(), "correct": correct.sum(dtype=jnp.float32)}
        sums["count"] = jnp.float32(len(losses))
        flat = jax.tree.map(jnp.ravel, gradient)  # on CPU XLA sums one axis far faster than four
        metrics = lax.psum(sums, AXIS) | {"gradient_norm": optax.tree.norm(flat)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    def train_steps(state, batches):
        return lax.scan(train_step, state, batches)

    return jax.pmap(train_steps, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0)


def mean_over_devices(tree):
    """Averages a tree over AXIS, as one vector: a message for each leaf would be slower.

    Not on GPUs: there XLA joins leaves to messages of 30 MB and sends them while it computes.
    """
    if lax.axis_size(AXIS) == 1:
        return tree
    if jax.default_backend() == "gpu":
        return lax.pmean(tree, AXIS)
    vector, unravel = ravel_pytree(tree)
    return unravel(lax.pmean(vector, AXIS))


def compile_steps(config, train_steps, state, count=1):
    """Compiles pmapped steps, `count` in a call, so that no step's time includes it."""
    # Real arrays: with several processes pmap cannot lower from shapes alone.
    batches = stack_batches([own_part(config, 0)] * count, jax.local_device_count())
    return train_steps.lower(state, batches).compile()


def own_part(config, step):
    """This process's part of a step's batch."""
    return data.make_batch(config, "train", step, jax.process_index(), jax.process_count())


def to_devices(batches, devices=None):
    """Places this process's part of consecutive batches on its devices (by default all)."""
    devices = devices or jax.devices()
    local = sum(device.process_index == jax.process_index() for device in devices)
    return on_devices(stack_batches(batches, local), jax.P(AXIS), devices)


def stack_batches(batches, count):
    """Joins the batches of consecutive steps: Batch with fields [count, steps, pairs, ...]."""
    shared = (
        [field.reshape(count, -1, *field.shape[1:]) for field in fields]
        for fields in zip(*batches, strict=True)
    )
    return data.Batch(*(np.stack(fields, axis=1) for fields in shared))


def replicate(state, devices=None):
    """Places a copy of a state on each device."""
    return on_devices(state, jax.P(), devices or jax.devices())


def on_devices(tree, spec, devices):
    """Places this process's rows on its devices; with spec=P() a whole copy on each."""
    sharding = jax.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS,)), spec)
    return jax.make_array_from_process_local_data(sharding, tree)


def to_host(state):
    """A copy of a state as host arrays; a view would keep the next step from reusing its memory."""
    return jax.tree.map(np.array, state)
