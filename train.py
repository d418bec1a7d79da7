"""Trains a network to say whether two images show the same kind of thing.

    python train.py --config=configs/default.py                       # the same line again resumes
    python train.py --config=configs/default.py --workdir=runs/sgd --config.optimizer.name=sgd

The step is the only clock: batches, learning rate and resume are functions of (seed, step).
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import math
import os
import signal
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import calibration
import checkpoint
import command_line
import curves
import data
import fingerprint
import hosts
import pretrained
import runtime
import settings
import train_step
from model import create_model
from report import describe, scalars, write_report
from scoring import MOST_PAIRS, THRESHOLD, evaluate, kept_threshold, make_scorer

SIGNALS = []  # numbers of the signals that came during training


def define_flags():
    command_line.define_config("What to train.")
    flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config's name>.")
    runtime.define_flags()
    hosts.define_flags()


def main(options):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, exit_on_signal)
    runtime.prepare(options.cache)
    cluster = hosts.read_cluster(options)
    config, workdir = read_command(options)
    values = settings.flatten(config.to_dict())
    if cluster is not None:
        values |= fingerprint.seal(config.data)
    with hosts.joined(cluster, values):
        train_and_evaluate(config, workdir)


def read_command(options):
    """Returns (config, workdir) to train, checked; raises UserError."""
    config, name = command_line.read_config(options)
    workdir = Path(options.workdir or f"runs/{name}").absolute()
    if not options.process_id:  # the others do not touch it
        settings.check_workdir(config, workdir)
    data.check_splits(config)
    pretrained.resolve(config.model)
    return config, workdir


def train_and_evaluate(config, workdir):
    """Trains, from the newest checkpoint in workdir if there is one; evaluates the best one."""
    runtime.keep_freed_memory()
    config = resolve(config)
    model = create_model(config)
    optimizer, schedule = train_step.make_optimizer(config)
    score, state = make_scorer(model), train_step.create_state(config, model, optimizer)
    with held(config, workdir), checkpoint.Saver(workdir, **config.checkpoint) as saver:
        state = hosts.from_first(partial(checkpoint.restore, workdir, state), state)
        introduce(config, workdir, state)
        length, program = call_length(config, int(state.step)), None
        if int(state.step) < config.num_steps:
            train_steps = train_step.make_train_steps(config, model, optimizer)
            program = train_step.compile_steps(config, train_steps, state, length)
        with curves.Writer(workdir, int(state.step)) as writer, noting_signals():
            validate = partial(evaluate, config, score, split="validation")
            step = train_and_validate(config, program, state, schedule, validate, writer, saver)
        saver.wait()
        if SIGNALS:
            hosts.disconnect()
            exit_on_signal(SIGNALS[0], text=f"saved at step {step}; the same command resumes there")
        restore = partial(checkpoint.restore_model, workdir, "best", skip_damaged=True)
        restore_best = partial(restore, model=state.variables)
        step, variables = hosts.from_first(restore_best, (np.int64(0), state.variables))
    if config.data.source != "shapes" and config.model.head != "euclidean":
        variables = calibrate(config, workdir, int(step), score, variables)
    threshold = kept_threshold(config, workdir, int(step))
    splits = ("validation", "test")
    found = {s: evaluate(config, score, variables, s, MOST_PAIRS, threshold) for s in splits}
    write_report(config, workdir, int(step), found, score)


def calibrate(config, workdir, step, score, variables):
    """The variables with honest probabilities; keeps what was fitted in the run's folder."""
    found = evaluate(config, score, variables, "validation", MOST_PAIRS)
    scale, shift = calibration.fit(found.scores, found.pairs.weight)
    if jax.process_index() == 0:
        numbers, path = {"scale": scale, "shift": shift}, workdir / calibration.CALIBRATION
        threshold = workdir / THRESHOLD
        kept = calibration.kept(path, step, *numbers)  # another machine may round otherwise
        if threshold.exists() and not (kept and np.allclose(kept, [scale, shift], rtol=1e-3)):
            print(f"{THRESHOLD}, fitted before the calibration, is removed: fit it again")
            threshold.unlink()
        settings.write_json({"step": step} | numbers, path)
    text = f"calibrated on validation: its ECE was {found.metrics['ece']:.4f}"
    text += calibration.caution(config.data, found.pairs)
    if (scale, shift) == calibration.NONE:
        text = "not calibrated: in validation same pairs do not have higher scores"
    print(text, flush=True)
    return calibration.apply(variables, scale, shift)


def train_and_validate(config, program, state, schedule, validate, writer, saver):
    """Trains; writes curves, validates and saves where that is due. Returns the last step."""
    step = int(state.step)
    for step, current, metrics in train(config, program, state):
        update = (step - 1) // settings.accumulated_steps(config)
        metrics["learning_rate"] = float(schedule(update))
        writer.write(step, {f"train/{name}": v for name, v in metrics.items()})
        due = step % config.eval_every_steps == 0 or step == config.num_steps
        if not (due or SIGNALS):
            continue
        host_state = train_step.to_host(current)
        found = {"loss": math.inf}  # never the best
        if due:
            validation = validate(host_state.variables)
            writer.write(step, scalars("validation", validation))
            print(describe(step, "validation", validation), flush=True)
            found = validation.metrics | {"rank": rank(config, step, validation.metrics)}
        writer.flush()  # before the checkpoint: no gap in the curves after resuming
        saver.save(host_state, found)
    return step


def rank(config, step, metrics):
    """What config.eval.best makes of a step's validation: lower is better; the loss if unknown."""
    if config.eval.best == "last":
        return -step
    value = metrics[config.eval.best]
    if value is None:  # all pairs are of one kind
        return metrics["loss"]
    return -value if config.eval.best == "roc_auc" else value


@contextmanager
def held(config, workdir):
    """A context that locks the run's folder; only the first process touches it."""
    if jax.process_index():
        yield
        return
    with settings.lock(workdir):
        settings.check_workdir(config, workdir)  # again: another training may have used it since
        begun = checkpoint.steps_in(workdir / "checkpoints")
        of_files = config.data.source != "shapes"
        if of_files and begun:
            fingerprint.check(config.data, workdir)
        settings.save_config(config, workdir)
        if of_files and not begun:
            fingerprint.write(config.data, workdir)
        yield


def resolve(config):
    """A frozen copy with dtype "auto" replaced by this machine's; checks the batch size."""
    config, devices = ConfigDict(config.to_dict()), jax.device_count()
    if config.batch_size % devices:
        text = f"must be divisible by the number of devices ({devices})"
        raise UserError(f"--config.batch_size={config.batch_size}: {text}")
    if config.model.dtype == "auto":
        config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return settings.frozen(config)


def intervals(config):
    """At multiples of these steps curves or validation are due; the last is the number of steps."""
    return config.log_every_steps, config.eval_every_steps, config.num_steps


def call_length(config, start):
    """Steps of each call from step `start` on: so that a call ends wherever something is due."""
    return math.gcd(config.steps_per_execution, *intervals(config), start)


def train(config, program, state):
    """Yields (step, state, metrics) at every step where curves or validation are due.

    The program computes `call_length` steps. The next call donates the state that it returned.
    Metrics are those of the steps since the last yield; pairs per second exclude the caller's time.
    After a signal the call that runs is the last, and is yielded.
    """
    step = done = int(state.step)
    state, history, length = train_step.replicate(state), [], call_length(config, done)

    def place(first):
        steps = range(first, first + length)
        return train_step.to_devices([train_step.own_part(config, step) for step in steps])

    starts, began = range(step, config.num_steps, length), time.perf_counter()
    batches = data.prefetch(place, starts, workers=min(8, os.cpu_count()))  # threads work ahead
    for call, batch in enumerate(batches, start=1):
        state, metrics = program(state, batch)
        history.append(metrics)
        history[-2:-1] = jax.device_get(history[-2:-1])  # waits: the host is one call ahead
        # Several processes agree on a call that none has reached yet; so each must count all calls.
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(call):
            SIGNALS.append(signal.SIGTERM)
        last, step = bool(SIGNALS), step + length
        if last or any(step % interval == 0 for interval in intervals(config)):
            history = jax.device_get(history)
            rate = config.batch_size * (step - done) / (time.perf_counter() - began)
            yield step, state, summarize(history, done, rate)
            if last:
                return
            done, history, began = step, [], time.perf_counter()


def summarize(history, done, rate):
    """Prints and returns metrics of the calls since step `done`.

    Raises UserError if they are not finite.
    """
    series = {name: np.hstack([metrics[name] for metrics in history]) for name in history[0]}
    finite = np.isfinite(series["loss"] + series["gradient_norm"])
    if not finite.all():
        text = f"step {done + finite.argmin() + 1} diverged: its loss or gradient is not finite"
        raise UserError(f"{text}; {checkpoint.DIVERGED}")
    sums = {name: float(values.sum(dtype=np.float64)) for name, values in series.items()}
    loss, accuracy = (sums[name] / sums["count"] for name in ("loss", "correct"))
    text = f"loss {loss:.4f}, accuracy {accuracy:.4f}, {rate:,.0f} pairs/s"
    print(f"step {done + len(finite)}: {text}", flush=True)
    norm = sums["gradient_norm"] / len(finite)
    return {"loss": loss, "accuracy": accuracy, "gradient_norm": norm, "pairs_per_second": rate}


def introduce(config, workdir, state):
    """Prints what is trained, from which step and on which images; notes the versions."""
    step, devices = int(state.step), jax.devices()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    where = f"{config.model.dtype}, on {len(devices)} x {devices[0].device_kind}"
    begun = f"resumed at step {step}" if step else "from the start"
    text = f"{workdir}: {count:,} parameters, {where}; {begun}"
    print(text, *data.describe(config), sep="\n  ", flush=True)
    if step == config.num_steps:
        print(f"complete: all {step} steps are done; a new --workdir trains anew")
    elif jax.process_index() == 0:
        runtime.note_versions(workdir, step)


@contextmanager
def noting_signals():
    """A context in which a first signal is only noted, so that the present call completes.

    A second one exits at once. With several processes JAX handles SIGTERM and tells the others.
    """
    SIGNALS.clear()
    alone = jax.process_count() == 1
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, _):
        if alone:
            SIGNALS.append(number)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        for each in before:
            signal.signal(each, exit_on_signal)

    for number in before if alone else (signal.SIGINT,):
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_on_signal(number, _=None, text="the same command resumes from the newest checkpoint"):
    """Exits with a line and the exit code of the signal; checkpoints are whole at every moment."""
    os.write(2, f"\ninterrupted: {text}\n".encode())  # print may be in the middle of a line
    os._exit(128 + number)


if __name__ == "__main__":
    command_line.run(define_flags, main)
