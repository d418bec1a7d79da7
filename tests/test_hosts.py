"""Several processes on this machine, each started as a user would start it."""

import functools
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import (
    ENVIRONMENT,
    ROOT,
    assert_same_gradient,
    run,
    run_fork,
    tiny_config,
    tiny_options,
)
from test_train import curve

import checkpoint
import data
import hosts
import scoring
import settings
import train_step
from model import create_model

LONG = {"num_steps": 20, "log_every_steps": 1, "eval_every_steps": 5}
LONG |= {"model.encoder": "cnn"}  # which compiles sooner
OPTIMISED = {"xla_backend_optimization_level": 3}  # as XLA does unless `make test` says otherwise
OF_ONE_RUN = pytest.mark.xdist_group("resumed")  # in one worker, which makes that run once
WORKER = """
import sys; sys.path.insert(0, {root!r})
import json, os, signal
from functools import partial
from pathlib import Path
import jax
from ml_collections import ConfigDict
import checkpoint, command_line, hosts, runtime, settings, train, train_step
from model import create_model
options = command_line.parse(train.define_flags)
runtime.prepare(options.cache)
config, workdir = train.read_command(options)
with hosts.joined(hosts.read_cluster(options), {{}}):
    config, results = train.resolve(config), Path({results!r})
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    state = train_step.create_state(config, model, optimizer)
    workdir.mkdir(exist_ok=True)
    if jax.process_index() == 0:
        settings.save_config(config, workdir)
    with checkpoint.Saver(workdir, keep_latest=99, keep_best=1) as saver:
        state = hosts.from_first(partial(checkpoint.restore, workdir, state), state)
        found = {{"restored": checkpoint.digest(state), "losses": []}}
        config = ConfigDict(config.to_dict())
        config.num_steps = int(state.step) + {steps}
        train_steps = train_step.make_train_steps(config, model, optimizer)
        length = train.call_length(config, int(state.step))
        program = train_step.compile_steps(config, train_steps, state, length)
        for _, current, metrics in train.train(config, program, state):
            found["losses"].append(metrics["loss"])
            host_state = train_step.to_host(current)
            saver.save(host_state, {{"loss": 1.0}})
        found["left"] = checkpoint.digest(host_state)
    (results / f"{{jax.process_index()}}.json").write_text(json.dumps(found))
sys.stdout.flush()
os._exit(0)
"""


def start(count, *command, devices=1, heartbeat=30, environments=None):
    """Starts a program as so many processes, by flags or by what each environment says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for i in range(count):
        flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
        flags = [] if environments else [*flags, f"--heartbeat_seconds={heartbeat}"]
        own = environments[i] if environments else {}
        environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": ""} | own
        line = [sys.executable, *command, *flags]
        started.append(subprocess.Popen(line, env=environment, cwd=ROOT, **pipes))
    return started


def finish(processes, timeout=120):
    """[(exit code, output, errors)] once all have ended; none is left behind."""
    try:
        ended = [process.communicate(timeout=timeout) for process in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, ended, strict=True)]
    finally:
        for process in processes:
            process.kill()


def until(process, text):
    while not (printed := process.stdout.readline()).startswith(text):
        assert printed, process.stderr.read()


def work(processes, devices, steps, folder, **changes):
    """Trains some steps and returns what each process saw: digests of the state, losses."""
    code = WORKER.format(root=str(ROOT), results=str(folder), steps=steps)
    options = [f"--workdir={folder / 'run'}", *tiny_options(**LONG | changes)]
    ended = finish(start(processes, "-c", code, *options, devices=devices))
    assert [code for code, *_ in ended] == [0] * processes, ended
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(processes)]


@functools.cache
def one_process():
    """(state after one step, losses of 20 steps) of one process with one device."""
    config = tiny_config()
    config.update_from_flattened_dict(LONG)
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    train_steps = train_step.make_train_steps(config, model, optimizer)
    program, first, losses = None, None, []
    device = jax.devices()[:1]
    state = train_step.replicate(train_step.create_state(config, model, optimizer), device)
    for step in range(20):
        batches = train_step.to_devices([data.make_batch(config, "train", step)], device)
        program = program or train_steps.lower(state, batches).compile(OPTIMISED)
        state, metrics = program(state, batches)
        losses.append(metrics["loss"].item() / config.batch_size)
        first = first or train_step.to_host(state)
    return first, losses


def left(workdir):
    """(step, digest) of a run's newest checkpoint."""
    state = checkpoint.restore(workdir, one_process()[0])
    return int(state.step), checkpoint.digest(state)


def check_learnt(found, folder):
    """The same gradient and losses as one process; the same bits on all."""
    first, losses = one_process()
    np.testing.assert_allclose(found[-1]["losses"], losses, rtol=1e-2)
    assert len({one["left"] for one in found}) == 1
    found = checkpoint.read(folder / "run" / "checkpoints" / "1", **checkpoint.to_items(first))
    assert_same_gradient(first.opt_state, found["training"]["opt_state"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what two processes found in 20 steps without faults, their folder)."""
    folder = tmp_path_factory.mktemp("two")
    return work(2, 1, 20, folder), folder


def test_two_processes_learn_what_one_does(two):
    check_learnt(*two)


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(4, 1), (2, 2)])
def test_several_processes_learn_what_one_does(processes, devices, tmp_path):
    check_learnt(work(processes, devices, 20, tmp_path), tmp_path)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run of two processes of which one was killed: (workdir, how they ended, and at last)."""
    workdir = tmp_path_factory.mktemp("resumed") / "run"
    command = ["train.py", f"--workdir={workdir}", *tiny_options(**LONG)]
    first, second = start(2, *command)
    until(first, "step 7:")
    second.kill()
    return workdir, finish([first, second], timeout=25), finish(start(2, *command))


@pytest.mark.slow
@OF_ONE_RUN
def test_a_killed_process_ends_the_other_and_resumed_they_reach_the_same_bits(two, resumed):
    workdir, ((code, _, errors), _), ((last, printed, _), _) = resumed
    assert (code, last) == (1, 0)
    assert errors.startswith("error: host 0 (") and errors.count("\n") == 1
    lost = re.search(r"; lost (.+) \(.+\); the same command on all hosts resumes\n$", errors)
    assert lost[1] == "host 1"
    assert "on 2 x cpu; resumed at step 5" in printed
    whole = two[0][0]
    assert left(workdir) == (20, whole["left"])
    losses = [loss for _, loss in curve(workdir, "train/loss")]
    np.testing.assert_allclose(losses, whole["losses"], rtol=1e-6)


@pytest.mark.slow
@OF_ONE_RUN
def test_the_first_process_alone_writes_and_speaks(resumed):
    workdir, _, ((_, first, _), (code, second, errors)) = resumed
    assert (code, errors) == (0, "") and "roc_auc" in first and "step" not in second
    assert len(list(workdir.glob("events*"))) == 4  # two starts' marks and curves
    assert (workdir / "evaluation" / "report.html").exists()


@pytest.mark.slow
@OF_ONE_RUN
def test_several_processes_evaluate_to_the_same_numbers(resumed):
    """As four devices of one process do, of which each takes another part of the pairs."""
    workdir, *_ = resumed
    config = settings.load_config(workdir)
    model = create_model(config)
    found = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    step, variables = scoring.load_variables(config, workdir, model, str(found["step"]))
    here = scoring.evaluate(config, scoring.make_scorer(model), variables, "test").metrics
    assert step == found["step"] and here["pairs"] == found["pairs"] == 9216
    for name in ("loss", "accuracy", "roc_auc", "brier", "eer", "wrong"):
        assert here[name] == pytest.approx(found[name], rel=1e-5), name


@pytest.mark.slow
def test_sigterm_on_one_has_all_save_the_same_step(tmp_path):
    """At the end of a call of several steps, on which they agree by counting calls."""
    options = tiny_options(num_steps=3999, log_every_steps=9, eval_every_steps=3999)
    options.append("--config.steps_per_execution=3")
    processes = start(2, "train.py", f"--workdir={tmp_path / 'run'}", *options)
    until(processes[0], "step 9:")
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, *_ in ended] == [128 + signal.SIGTERM] * 2
    pattern = r"interrupted: saved at step (\d+); the same command resumes there\n"
    steps = {re.search(pattern, errors)[1] for _, _, errors in ended}
    assert steps == {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}


def test_a_host_that_fails_ends_the_others_with_its_line(tmp_path):
    options = [f"--workdir={tmp_path / 'run'}", *tiny_options(**LONG)]
    with settings.lock(tmp_path / "run"):
        ended = finish(start(2, "train.py", *options))
    for code, _, errors in ended:
        assert code == 1
        assert re.fullmatch(r"error: host 0 \(.+\): .+ is training there; .+\n", errors), errors


def test_the_watch_ends_quietly_when_its_client_is_closed():
    class Closed:
        def blocking_key_value_get(self, key, milliseconds):
            raise jax.errors.JaxRuntimeError("closed")

    hosts.watch(Closed())


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
SLURM |= {"SLURM_STEP_NUM_TASKS": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2"}


def test_slurm_is_recognised_and_another_config_is_refused_by_all(tmp_path):
    own = [SLURM | dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(i)) for i in range(2)]
    own[1] |= {"JAX_NUM_CPU_DEVICES": "2"}
    ended = finish(start(2, "train.py", f"--workdir={tmp_path / 'run'}", environments=own))
    assert [code for code, *_ in ended] == [1, 1]
    for _, _, errors in ended:
        assert re.fullmatch(
            r"error: host \d \(.+\): all hosts must be started alike: "
            r"number of devices is 1 on host 0 \(.+\), "
            r"2 on host 1 \(.+\)\n",
            errors,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --pty in an allocation for two
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # sbatch, no srun
        (OPEN_MPI, True),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
    ],
)
def test_alone_in_an_allocation_is_alone(environment, several):
    assert hosts.managed(environment) == several


def test_where_the_others_are_missing_one_line_says_so(tmp_path):
    flags = ["--coordinator=127.0.0.1:1025", "--num_processes=2", "--process_id=1"]
    options = [f"--workdir={tmp_path / 'run'}", *tiny_options(), *flags, "--join_seconds=1"]
    refused = run("train.py", *options)
    assert refused.returncode == 1 and not (tmp_path / "run").exists()
    assert "not all processes joined the coordinator (127.0.0.1:1025) in 1 s" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flags, text",
    [
        ("--process_id=0", "--coordinator, --num_processes and --process_id: give all three"),
        ("--coordinator=a --num_processes=2 --process_id=0", "must be host:port"),
        ("--coordinator=a:65536 --num_processes=2 --process_id=0", "must be host:port"),
        ("--coordinator=a:1 --num_processes=2 --process_id=2", "must be from 0 to 1"),
        ("--coordinator=a:1 --num_processes=0 --process_id=0", "0 is not a positive integer"),
        ("--heartbeat_seconds=9", "9 is not integer >= 10"),
    ],
)
def test_wrong_flags_are_one_line(flags, text, tmp_path):
    refused = run_fork("train.py", f"--workdir={tmp_path / 'run'}", *flags.split())
    assert refused.returncode == 1 and not (tmp_path / "run").exists()
    assert text in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.slow
@OF_ONE_RUN
def test_evaluate_over_two_processes_of_two_devices(resumed):
    workdir, *_ = resumed
    options = ["evaluate.py", f"--workdir={workdir}", "--split=validation"]
    assert run(*options).returncode == 0
    one = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert [code for code, *_ in finish(start(2, *options, devices=2))] == [0, 0]
    several = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert several.keys() == one.keys() and several["confusion"] == one["confusion"]
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-6)


@pytest.mark.slow
def test_checkpoints_move_between_numbers_of_processes_and_devices(tmp_path):
    """Each shape takes over the bits that the one before it left, on every process."""
    before = None
    for shape in [(1, 1), (2, 2), (4, 1), (1, 4), (1, 1)]:
        found = work(*shape, 2, tmp_path)
        assert before is None or {one["restored"] for one in found} == {before}, shape
        (before,) = {one["left"] for one in found}
        print(shape, before[:8])


@pytest.mark.slow
@OF_ONE_RUN
def test_whichever_process_is_killed_whenever_no_bit_is_lost(resumed, tmp_path):
    command = ["train.py", f"--workdir={tmp_path / 'run'}", *tiny_options(**LONG)]
    command += ["--join_seconds=20"]
    seed = time.time_ns()
    print(f"random.Random({seed})")
    chance, kills, rounds = random.Random(seed), 0, 0
    while kills < 4:
        rounds += 1
        if (tmp_path / "run" / "checkpoints" / "20").exists():
            assert left(tmp_path / "run") == left(resumed[0])
            (tmp_path / "run").rename(tmp_path / f"complete {rounds}")
        processes = start(2, *command)
        time.sleep(chance.uniform(0, 12))
        victim = chance.randrange(2)
        killed = processes[victim].poll() is None
        processes[victim].kill()
        began = time.monotonic()
        code, _, errors = finish(processes)[1 - victim]
        kills, seconds = kills + killed, time.monotonic() - began
        print(f"host {victim} killed: the other ended with {code} after {seconds:.1f} s")
        print(errors[-300:])
        assert not killed or (code != 0 and seconds < 35)  # the heartbeat, and some
    assert finish(start(2, *command))[0][0] == 0
    assert left(tmp_path / "run") == left(resumed[0])


def test_a_host_that_is_lost_before_it_has_said_its_name_is_named(monkeypatch):
    class Client:
        def key_value_set(self, key, value):
            assert key == "name/0" and value.startswith("host 0 (")

        def blocking_key_value_get(self, key, milliseconds):
            if key == "name/1":
                raise jax.errors.JaxRuntimeError("timed out")
            return "host"

    said = []
    monkeypatch.setattr(hosts, "exit_now", said.append)
    monkeypatch.setattr(hosts, "NAMES", [])
    state = SimpleNamespace(process_id=0, num_processes=2)
    monkeypatch.setattr(hosts, "global_state", state)
    hosts.meet(Client())
    assert said == ["error: lost host 1, which had joined; the same command on all hosts resumes"]
