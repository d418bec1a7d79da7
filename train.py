"""Trains a network to say whether two images show the same kind of thing.

    python train.py --config=configs/default.py                       # the same line again resumes
    python train.py --config=configs/default.py --workdir=runs/sgd --config.optimizer.name=sgd
    tensorboard --logdir=runs

The step is the only clock: batches, learning rate and resume are functions of (seed, step).
"""

if __name__ == "__main__":  # first: a mistake is answered before JAX and TensorFlow load
    import pretrained
    import settings

    COMMAND, CLUSTER = settings.train_command(), settings.cluster()
    pretrained.resolve(COMMAND[0].model)

import ctypes
import gc
import json
import math
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from threading import Thread

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

import checkpoint
import data
import hosts
import pretrained
import settings
from evaluate import MOST_PAIRS, evaluate, kept_threshold, make_scorer
from model import AXIS, create_model, init_variables, trained, training_loss
from report import (
    describe,
    import_slow,
    note_versions,
    open_writer,
    scalars,
    write_report,
)


def train_and_evaluate(config, workdir):
    """Trains to the end, from the newest checkpoint in workdir if there is one; then evaluates.

    Validation and test are evaluated with the checkpoint of lowest validation loss. A run that was
    interrupted and resumed ends with the same bits as one that was not.
    """
    keep_freed_memory()
    config, first = resolve(config), jax.process_index() == 0
    model, (optimizer, schedule) = create_model(config), make_optimizer(config)
    score, state = make_scorer(model), create_state(config, model, optimizer)
    with ExitStack() as stack:
        if first:  # this process alone touches the run's folder
            stack.enter_context(settings.lock(workdir))  # before anything in there is written
            settings.check_workdir(config, workdir)  # again: another one may have come before
            settings.save_config(config, workdir)
        checkpoints = stack.enter_context(checkpoint.opened(workdir, **config.checkpoint))
        state = hosts.from_first(partial(checkpoint.restore, checkpoints, state), state)
        introduce(config, workdir, state)
        programs = compile_programs(config, make_train_steps(config, model, optimizer), state)
        if first:  # now: beside tracing it would take turns with it, beside steps it does not
            Thread(target=import_slow, daemon=True).start()
        write, flush = stack.enter_context(open_writer(workdir, int(state.step)))
        if int(state.step) == 0:
            write("texts", 0, texts(config, state.params))
        bar = stack.enter_context(progress_bar(config, int(state.step)))
        stack.enter_context(finishing_steps())
        for step, current, metrics in train(config, programs, state, bar):
            interrupted = bool(SIGNALS)  # once: one may come at any moment
            metrics["learning_rate"] = float(
                schedule((step - 1) // settings.accumulated_steps(config))
            )
            write("scalars", step, {f"train/{name}": value for name, value in metrics.items()})
            due = step % config.eval_every_steps == 0 or step == config.num_steps
            if due or interrupted:
                host_state = to_host(current)
                found = {"loss": math.inf}  # never the best
                if due:
                    validation = evaluate(config, score, host_state.variables, "validation")
                    write("scalars", step, scalars("validation", validation))
                    bar.write(describe(step, "validation", validation))
                    found = validation.metrics
                flush()  # no gap on resuming: curves before the checkpoint
                checkpoint.save(checkpoints, host_state, found)
            if interrupted or (due and SIGNALS):
                checkpoint.wait(checkpoints)
                hosts.part()
                leave(SIGNALS[0], f"saved at step {step}; the same command resumes there")
        checkpoint.wait(checkpoints)
        best = partial(
            checkpoint.restore_model, checkpoints, "best", state.variables, skip_damaged=True
        )
        step, variables = hosts.from_first(best, (np.int64(0), state.variables))
    if SIGNALS:
        hosts.part()
        leave(SIGNALS[0], "training is complete; the same command writes its report")
    splits = ("validation", "test")
    threshold = kept_threshold(config, workdir, int(step))
    found = {s: evaluate(config, score, variables, s, MOST_PAIRS, threshold) for s in splits}
    if first:
        write_report(config, workdir, int(step), found)


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


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory():
    """Has glibc keep the memory that a step frees; without it the kernel clears it anew each step.

    ResNet18 at batch 32 touches 140 MB of temporaries a step: 36,000 page faults, a fifth of the
    step's time on two cores.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_ARENA_MAX, 1)


def resolve(config):
    """Returns a copy with "auto" replaced by what this machine computes with."""
    config = config.copy_and_resolve_references()
    devices = jax.device_count()
    if config.batch_size % devices:
        text = f"must be divisible by the number of devices ({devices})"
        settings.stop(f"--config.batch_size={config.batch_size}: {text}")
    if config.model.dtype == "auto":
        config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return config


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


def compile_programs(config, train_steps, state):
    """What a run from a state on will call, compiled ahead: {number of steps: program}."""
    calls = islice(executions(config, int(state.step)), config.steps_per_execution)
    counts = {len(steps) for steps in calls}  # there are no others: by then calls are aligned
    return {count: compile_steps(config, train_steps, state, count) for count in counts}


def compile_steps(config, train_steps, state, count=1):
    """Compiles pmapped steps ahead, for so many in a call, so that no step's time contains it.

    Unlike the pmapped function a program takes and gives arrays over the devices of all processes.
    """
    # Arrays, not their shapes alone, which pmap cannot lower where there are several processes.
    batches = split([own_part(config, 0)] * count, jax.local_device_count())
    return train_steps.lower(state, batches).compile()


def executions(config, start):
    """Yields the steps that are computed in one call, as ranges.

    They end at multiples of their number, so wherever something is due; a run that is resumed
    between two of those takes single steps to the next.
    """
    most = math.gcd(config.steps_per_execution, *intervals(config))
    while start < config.num_steps:
        end = start + (1 if start % most else most)
        yield range(start, end)
        start = end


def intervals(config):
    """At multiples of these steps curves or validation are due; the last is the end."""
    return config.log_every_steps, config.eval_every_steps, config.num_steps


def train(config, programs, state, bar):
    """Yields (step, state, metrics) at every step where curves or validation are due.

    The state comes back on the devices and is given away to the next call. Metrics are those of the
    steps since the last yield; pairs per second leave out what the caller does. After a signal the
    steps that run are the last, and are yielded.

    Raises FloatingPointError at a step whose metrics are not finite.
    """
    done, call, state = int(state.step), 0, replicate(state)
    placed = data.prefetch(
        lambda steps: to_devices([own_part(config, step) for step in steps]),
        executions(config, done),
        workers=min(8, os.cpu_count()),
    )
    history, began = [], time.perf_counter()
    for call, (steps, batches) in enumerate(zip(executions(config, done), placed, strict=True), 1):
        state, metrics = programs[len(steps)](state, batches)
        history.append(metrics)
        bar.update(len(steps))
        history[-2:-1] = jax.device_get(history[-2:-1])  # one call ahead of the device, no more
        last = signalled(call) or not all(map(is_finite, history[-2:-1]))
        if last or any(steps.stop % interval == 0 for interval in intervals(config)):
            history = jax.device_get(history)
            rate = config.batch_size * (steps.stop - done) / (time.perf_counter() - began)
            yield steps.stop, state, summarize(history, done, rate, bar)
            if last:
                return
            done, history, began = steps.stop, [], time.perf_counter()
    signalled(call + 1)  # while the last call ran


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


def summarize(history, done, rate, bar):
    """Metrics of calls after `done` steps as those of one; FloatingPointError if not finite."""
    series = {name: np.hstack([metrics[name] for metrics in history]) for name in history[0]}
    finite = np.isfinite([*series.values()]).all(axis=0)
    if not finite.all():
        first = finite.argmin()
        text = ", ".join(f"{name} {series[name][first]:g}" for name in ("loss", "gradient_norm"))
        batch = f'data.make_batch(config, "train", {done + first})'
        raise FloatingPointError(f"step {done + first + 1} diverged on {batch}: {text}")
    sums = {name: float(values.sum(dtype=np.float64)) for name, values in series.items()}
    metrics = {
        "loss": sums["loss"] / sums["count"],
        "accuracy": sums["correct"] / sums["count"],
        "gradient_norm": sums["gradient_norm"] / len(finite),
        "pairs_per_second": rate,
    }
    text = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f}, {rate:,.0f} pairs/s"
    bar.set_description_str(text)
    if bar.disable:
        print(f"step {done + len(finite)}: {text}", flush=True)
    return metrics


def is_finite(metrics):
    return all(np.isfinite(values).all() for values in metrics.values())


def progress_bar(config, step):
    """A bar where stderr is a terminal; elsewhere it stays silent and plain lines are printed."""
    form = "{n_fmt}/{total_fmt} steps |{bar:20}| {desc} [{elapsed}<{remaining}]"
    return tqdm(
        total=config.num_steps,
        initial=step,
        bar_format=form,
        disable=jax.process_index() > 0 or not sys.stderr.isatty(),
        dynamic_ncols=True,
    )


def introduce(config, workdir, state):
    """Says and notes what is trained and from where."""
    step, devices = int(state.step), jax.devices()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{workdir}: {count:,} parameters, {config.model.dtype}, on {len(devices)} x "
        f"{devices[0].device_kind}; {f'resumed at step {step}' if step else 'from the start'}",
        flush=True,
    )
    if step == config.num_steps:
        print(f"complete: all {step} steps are done; a new --workdir trains anew")
    elif jax.process_index() == 0:
        note_versions(workdir, step)


def texts(config, params):
    """The config and the table of parameters, for TensorBoard."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    found = {"config": json.dumps(config.to_dict(), indent=2), "parameters": table}
    return {name: f"<pre>{text}</pre>" for name, text in found.items()}


SIGNALS = []  # the one that came while steps were trained


def signalled(call):
    """Whether a signal came and this call is to be the last: of several processes the same one.

    They agree on a number that all have yet to reach, so calls are counted one by one.
    """
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call):
        SIGNALS.append(signal.SIGTERM)
    return bool(SIGNALS)


@contextmanager
def finishing_steps():
    """In here a first signal is only noted, so that the steps that run end and are saved.

    Where there are several processes JAX handles SIGTERM and tells the others.
    """

    def note(number, _):
        if alone:
            SIGNALS.append(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        for each in before:
            signal.signal(each, leave_at_once)

    SIGNALS.clear()
    alone = jax.process_count() == 1
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before if alone else (signal.SIGINT,):
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_once(number, _):
    """Ends the program on a signal; what checkpoints hold is whole at every moment."""
    leave(number, "the same command resumes from the newest checkpoint")


def leave(number, text):
    os.write(2, f"\ninterrupted: {text}\n".encode())  # print may be in the middle of a line
    os._exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave_at_once)
    gc.set_threshold(100_000)  # tracing makes a million objects; counting them took a tenth of it
    with hosts.joined(CLUSTER, settings.flatten(COMMAND[0].to_dict())):
        train_and_evaluate(*COMMAND)
    hosts.finish()
