import functools
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

import jax
import numpy as np
import pytest
from conftest import (
    ENVIRONMENT,
    ROOT,
    run,
    run_fork,
    tiny_config,
    tiny_options,
)
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import checkpoint
import settings
import train
import train_step
from errors import UserError
from model import create_model


@functools.cache
def setup(stages=(1,)):
    config = tiny_config()
    config.model.stage_sizes = stages
    model = create_model(config)
    optimizer, _ = train_step.make_optimizer(config)
    state = train_step.create_state(config, model, optimizer)
    return state, train_step.make_train_steps(config, model, optimizer)


def leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def digest(workdir):
    """SHA-256 of everything in the newest checkpoint, and its step."""
    state, _ = setup()
    restored = checkpoint.restore(workdir, state)
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(restored):
        sha.update(jax.tree_util.keystr(path).encode() + leaf.tobytes())
    return sha.hexdigest(), int(restored.step)


def curve(workdir, tag):
    """The points that TensorBoard shows: [(step, value)]."""
    events = EventAccumulator(str(workdir), tensor_size_guidance={"scalars": 0}).Reload()
    return [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)]


def test_a_run_leaves_checkpoints_config_curves_and_report(whole_run):
    workdir, printed = whole_run
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["dtype"] == "float32" and saved["num_steps"] == 8
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert steps == {4, 8}
    assert [step for step, _ in curve(workdir, "train/loss")] == [2, 4, 6, 8]
    assert [step for step, _ in curve(workdir, "validation/roc_auc")] == [4, 8]
    rates = [value for _, value in curve(workdir, "train/learning_rate")]
    cosine = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * s / 8)) / 2 for s in (1, 3, 5, 7)]
    assert rates == pytest.approx(cosine, rel=1e-5)
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert metrics["exact"] is True and metrics["pairs"] == 9216 and metrics["split"] == "test"
    assert (workdir / "evaluation" / "pairs.png").stat().st_size > 10_000
    assert "step 8: loss" in printed and "roc_auc" in printed


@pytest.mark.slow
def test_the_same_command_on_a_complete_run_says_so_and_evaluates_again(whole_run, tmp_path):
    _, printed = whole_run
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    before = digest(workdir)
    again = run("train.py", f"--workdir={workdir}", *tiny_options())
    assert again.returncode == 0
    assert "complete: all 8 steps are done" in again.stdout
    table = printed[printed.index("loss  ") : printed.index("wrote ")]
    assert table in again.stdout
    assert digest(workdir) == before


def test_killed_and_resumed_is_the_same_bits_and_one_curve(whole_run, tmp_path):
    """As another run, too: what was killed and resumed equals one that was not.

    And nothing is unpickled meanwhile, no file written elsewhere, nothing asked of a network.
    """
    workdir = tmp_path / "a run with spaces"
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={workdir}", *tiny_options()]
    seed = time.time_ns()
    print(f"delays of random.Random({seed})")
    chance = random.Random(seed)
    for line in ("step 2:", "step 6:"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True)
        while not (printed := process.stdout.readline()).startswith(line):
            assert printed, "ended before it was killed"
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    (tmp_path / "temporary").mkdir()
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path / "temporary")}
    watched = [sys.executable, str(ROOT / "tests" / "watched.py"), "train.py", *command[2:]]
    finished = subprocess.run(watched, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert digest(workdir) == digest(whole_run[0])
    for tag in ("train/loss", "validation/loss"):
        assert curve(workdir, tag) == curve(whole_run[0], tag)


def test_another_config_is_refused_key_by_key(whole_run):
    workdir, _ = whole_run
    before = (workdir / "config.json").read_bytes()
    options = tiny_options(seed=3, optimizer__weight_decay=0.1, log_every_steps=1)
    refused = run_fork("train.py", f"--workdir={workdir}", *options)
    assert refused.returncode == 1
    assert "seed is 0 there, 3 now" in refused.stderr
    assert "optimizer.weight_decay is 0.0005 there, 0.1 now" in refused.stderr
    assert "log_every_steps" not in refused.stderr and refused.stderr.count("\n") == 1
    assert (workdir / "config.json").read_bytes() == before


CNN = {"model.encoder": "cnn", "model.head": "cosine", "model.loss": "supcon"}
CNN |= {"data.images_per_class": 4, "augment.rotation": 20.0, "augment.noise": 9.0}
CNN |= {"optimizer.name": "adamw", "optimizer.warmup": 0.25}
ACCUMULATED = {"batch_size": 4}  # of nominal 8
MORE = [pytest.param(changes, marks=pytest.mark.slow) for changes in ({}, ACCUMULATED)]


@pytest.mark.parametrize("changes", [CNN, *MORE])
def test_calls_of_several_steps_are_the_same_bits_as_of_one(changes, tiny):
    """And so where a run goes on from a step between two calls."""
    tiny.update_from_flattened_dict(changes | {"num_steps": 12, "log_every_steps": 4})
    model, (optimizer, _) = create_model(tiny), train_step.make_optimizer(tiny)
    state = train_step.create_state(tiny, model, optimizer)
    train_steps = train_step.make_train_steps(tiny, model, optimizer)

    def run_from(state, most, length):
        tiny.steps_per_execution = most
        assert train.call_length(tiny, int(state.step)) == length
        program = train_step.compile_steps(tiny, train_steps, state, length)
        found = train.train(tiny, program, state)
        return [(step, train_step.to_host(now), metrics) for step, now, metrics in found]

    ones, twos = run_from(state, 1, 1), run_from(state, 2, 2)
    assert [step for step, *_ in ones] == [4, 8, 12]
    for (step, one, metrics), (other_step, other, others) in zip(ones, twos, strict=True):
        assert step == other_step == one.step
        assert metrics | {"pairs_per_second": others["pairs_per_second"]} == others
        assert all((a == b).all() for a, b in leaves(one, other))
    tiny.log_every_steps = 1
    _, state, _ = run_from(state, 1, 1)[0]
    tiny.log_every_steps = 4
    _, resumed, _ = run_from(state, 2, 1)[-1]
    assert all((a == b).all() for a, b in leaves(ones[-1][1], resumed))


@pytest.mark.parametrize("seed", range(20))
def test_calls_end_where_something_is_due_and_so_after_a_resume(seed, tiny):
    chance = random.Random(seed)
    most, log, validate, num, start = (chance.randint(1, 12) for _ in range(5))
    tiny.steps_per_execution = 2 * most
    tiny.log_every_steps, tiny.eval_every_steps, tiny.num_steps = most * log, validate, most * num
    numbers = [2 * most, most * log, validate, most * num]
    for first in (0, start):
        divisors = [n for n in range(1, 25) if all(number % n == 0 for number in [*numbers, first])]
        assert train.call_length(tiny, first) == max(divisors)


def test_a_loss_that_is_not_finite_names_the_step():
    names = ("loss", "correct", "count", "gradient_norm")
    calls = [dict(zip(names, np.outer([1.0, 4, 8, 1], np.ones(n)), strict=True)) for n in (1, 3)]
    found = train.summarize(calls, 40, 100.0)
    assert found["accuracy"] == 0.5 and found["loss"] == 0.125 and found["gradient_norm"] == 1
    for name in ("loss", "gradient_norm"):
        with pytest.raises(UserError, match=r"step 43 diverged: .*; a lower"):
            bad = calls[1] | {name: np.array([1, math.nan, math.nan])}
            train.summarize([calls[0], bad], 40, 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 4])
def test_a_diverging_run_ends_with_one_line(interval, tmp_path):
    changes = {"optimizer.learning_rate": 1e9, "optimizer.name": "sgd", "model.encoder": "cnn"}
    changes |= {"optimizer.weight_decay": 255.0}  # numbers too large for float32 at once
    options = tiny_options(**changes, eval_every_steps=interval)
    finished = run("train.py", f"--workdir={tmp_path / 'run'}", *options)
    assert finished.returncode == 1
    assert "diverged" in finished.stderr and finished.stderr.count("\n") == 1
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_second_training_of_a_run_is_refused(whole_run):
    workdir, _ = whole_run
    before = (workdir / "config.json").read_bytes()
    with settings.lock(workdir):
        refused = run("train.py", f"--workdir={workdir}", *tiny_options(log_every_steps=1))
    assert (workdir / "config.json").read_bytes() == before
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "another process is training there" in refused.stderr


@pytest.mark.slow
def test_of_two_trainings_at_once_one_trains(whole_run, tmp_path):
    """Three times, and three more while the first is training: then at once."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["env"] = ENVIRONMENT
    for turn in range(3):
        command = [sys.executable, str(ROOT / "train.py"), f"--workdir={tmp_path / str(turn)}"]
        command += tiny_options()
        both = [subprocess.Popen(command, **pipes) for _ in range(2)]
        answers = [process.communicate()[1] for process in both]
        if both[1].returncode == 0:
            both, answers = both[::-1], answers[::-1]
        assert [process.returncode for process in both] == [0, 1], answers
        assert "is training there" in answers[1] and answers[1].count("\n") == 1
        assert digest(tmp_path / str(turn)) == digest(whole_run[0])
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={tmp_path / 'long'}"]
    command += tiny_options(num_steps=10**6)
    first = subprocess.Popen(command, **pipes)
    assert "from the start" in first.stdout.readline()
    for _ in range(3):
        began = time.monotonic()
        second = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert time.monotonic() - began < 10  # two trainings share the processor
        assert second.returncode == 1 and "is training there" in second.stderr
    first.kill()  # what is left of its lock does not keep another one out
    third = subprocess.Popen(command, **pipes)
    assert "parameters" in third.stdout.readline()
    third.kill()
    for process in (first, third):
        process.communicate()


@pytest.mark.slow
def test_an_evaluation_may_read_beside_a_training(tmp_path):
    """Which saves and removes checkpoints all the time meanwhile; its bits are what they are."""
    options = [f"--workdir={tmp_path / 'run'}", *tiny_options(num_steps=2000, eval_every_steps=2)]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    while "step 20: validation" not in process.stdout.readline():
        assert process.poll() is None
    reader = Thread(target=process.stdout.read)
    reader.start()
    target = checkpoint.to_items(setup()[0])["model"]
    for evaluation in range(100):
        which = "last" if evaluation % 2 else "best"
        step, _ = checkpoint.restore_model(tmp_path / "run", which, target)
        assert step % 2 == 0
    evaluated = run("evaluate.py", f"--workdir={tmp_path / 'run'}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert process.poll() is None, "training ended too early to say anything"
    process.send_signal(signal.SIGTERM)
    reader.join()
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGTERM


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 700 kB; a function that mounts it with other options."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield (
        tmp_path,
        lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(tmp_path)], check=True
        ),
    )
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(small_disk, tmp_path_factory):
    disk, remount = small_disk
    options = tiny_options(num_steps=24)
    for turn in range(2):
        stopped = run("train.py", f"--workdir={disk / 'run'}", *options)
        assert stopped.returncode == 1
        *_, line = stopped.stderr.strip().splitlines()
        assert "no space left on" in line.lower()
        assert "Traceback" not in stopped.stderr
        if turn == 0:  # then not a byte is free
            with suppress(OSError):
                (disk / "other").write_bytes(bytes(2**20))
    (disk / "other").unlink()
    remount("ro")
    stopped = run("train.py", f"--workdir={disk / 'run'}", *options)
    assert stopped.returncode == 1 and "not a folder that can be written to" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    remount("rw,size=20m")
    finished = run("train.py", f"--workdir={disk / 'run'}", *options)
    assert finished.returncode == 0 and "resumed at step" in finished.stdout
    whole = tmp_path_factory.mktemp("whole") / "run"
    assert run("train.py", f"--workdir={whole}", *options).returncode == 0
    assert digest(disk / "run") == digest(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_the_step_finished_and_saved(number, whole_run, tmp_path):
    """And the run ends with the bits of one that was not interrupted."""
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={tmp_path / 'run'}"]
    command += tiny_options(log_every_steps=1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
    while not process.stdout.readline().startswith("step 1:"):
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    (step,) = re.fullmatch(
        r"\ninterrupted: saved at step (\d); the same command resumes there\n", errors
    ).groups()
    saved = tmp_path / "run" / "checkpoints" / step
    if int(step) % 4:  # no validation was due: this checkpoint is never the best
        assert checkpoint.read_record(saved)["metrics"]["loss"] == math.inf
    assert saved.exists()
    finished = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert f"resumed at step {step}" in finished.stdout
    assert digest(tmp_path / "run") == digest(whole_run[0])


def test_a_second_signal_exits_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(train, "exit_on_signal", lambda number, text: left.append(number))
    with train.noting_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert (train.SIGNALS, left) == ([signal.SIGTERM], [])
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [signal.SIGINT]


def test_a_signal_before_the_first_step_exits_at_once(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        [*command, *tiny_options()], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b"from the start" in process.stdout.readline()  # it compiles now
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"interrupted: the same command resumes" in errors


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    options = tiny_options(batch_size=9, optimizer__nominal_batch_size=9)
    refused = run("train.py", f"--workdir={tmp_path / 'run'}", *options, devices=2)
    assert refused.returncode == 1 and not (tmp_path / "run").exists()
    assert "must be divisible by the number of devices (2)" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_builds_the_step_needs_no_tensorflow():
    code = "import sys, train; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_best_checkpoint_is_by_the_metric_that_the_config_names(tiny):
    metrics = {"loss": 0.4, "eer": 0.1, "roc_auc": 0.9}
    for best, expected in (("loss", 0.4), ("eer", 0.1), ("last", -3), ("roc_auc", -0.9)):
        tiny.eval.best = best
        assert train.rank(tiny, 3, metrics) == expected
    assert train.rank(tiny, 3, metrics | {"roc_auc": None}) == 0.4  # of pairs of one kind
