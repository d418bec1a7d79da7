"""Several processes as one: they join, agree, and exit together with one line.

They are called hosts here. docs/cluster.md tells what happens where one fails or is lost.
"""

import json
import os
import platform
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from threading import Lock, Thread, Timer

import jax
import numpy as np
from absl import flags

# The one private name of JAX in this project: the client has no public one in 0.10.1 to 0.12.0.1.
from jax._src.distributed import global_state
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from errors import UserError

FOREVER = 2**31 - 1  # milliseconds
CALL, NOTICE = "call", "notice"  # keys: who is there? and the line with which a host exits
NAMES = []  # of all hosts
EXITING = Lock()  # never released: who holds it ends this process


def define_flags():
    """Flags about several processes that work together."""
    text = "host:port of process 0 of several; SLURM and Open MPI name it themselves."
    flags.DEFINE_string("coordinator", None, text)
    flags.DEFINE_integer("num_processes", None, "How many there are.", 1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.", 0)
    flags.DEFINE_integer("join_seconds", 300, "How long they wait for each other at the start.", 1)
    flags.DEFINE_integer("heartbeat_seconds", 100, "How long one may be silent; then all exit.", 10)


def read_cluster(options):
    """The arguments of jax.distributed.initialize; None where this process works alone."""
    address, count, index = options.coordinator, options.num_processes, options.process_id
    cluster = {"initialization_timeout": options.join_seconds}
    cluster["heartbeat_timeout_seconds"] = options.heartbeat_seconds
    if (address, count, index) == (None, None, None):
        return cluster if managed(os.environ) else None
    if None in (address, count, index):
        raise UserError("--coordinator, --num_processes and --process_id: give all three or none")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={address}: must be host:port, as in 10.0.0.1:4321")
    if index >= count:
        raise UserError(f"--process_id={index}: must be from 0 to {count - 1}")
    cluster |= {"coordinator_address": address, "num_processes": count, "process_id": index}
    return cluster | {"cluster_detection_method": "deactivate"}


def managed(environment):
    """Whether SLURM or Open MPI started this as one of several processes.

    JAX's own detection would say yes in an interactive step of one process, too, and use one GPU.
    """
    names = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    return any(environment.get(name, "1") != "1" for name in names)


@contextmanager
def joined(cluster, values):
    """A context in which this process is one of several, as `read_cluster` says; or alone.

    values: {key: value}, the same on all of them. At its end they wait for each other. Only process
    0 prints, except errors. An error in it exits all of them.
    """
    if cluster is None:
        yield
        return
    join(cluster)
    client = global_state.client
    meet(client)
    Thread(target=watch, args=(client,), daemon=True).start()
    try:
        agree(client, values, cluster["initialization_timeout"])
        if jax.process_index():
            sys.stdout = open(os.devnull, "w")
        yield
        disconnect()
    except UserError as error:
        exit_all(error)
    except Exception as error:
        lost = call_all(client)
        if not lost:  # else the error is that of a collective with a host that is lost
            traceback.print_exc()
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        who = f"lost {', '.join(lost)}" if lost else "all hosts answer"
        exit_all(f"{text}; {who}; the same command on all hosts resumes")


def join(cluster):
    """Connects to the other processes; exits if that takes over join_seconds."""
    seconds = cluster["initialization_timeout"]
    where = cluster.get("coordinator_address", "named by the environment")
    text = f"error: not all processes joined the coordinator ({where}) in {seconds} s: "
    text += "start each of them, where it reaches that address, or allow more --join_seconds"
    late = Timer(seconds, exit_now, [text])  # later JAX would abort with a page of C++
    late.start()
    try:
        jax.distributed.initialize(**cluster | {"initialization_timeout": seconds + 5})
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join other processes: {error}") from None
    finally:
        late.cancel()


def meet(client):
    """Learns the names of all hosts; exits if one is lost. JAX's backends would wait for it."""
    own = global_state.process_id  # jax.process_index would start the backends
    client.key_value_set(f"name/{own}", f"host {own} ({platform.node()})")
    for i in range(global_state.num_processes):
        try:
            NAMES.append(client.blocking_key_value_get(f"name/{i}", 60_000))
        except JaxRuntimeError:
            text = "which had joined; the same command on all hosts resumes"
            exit_now(f"error: lost host {i}, {text}")


def agree(client, values, seconds):
    """Raises UserError, which names the keys, unless `values` are the same on all hosts."""
    values = values | {"jax": jax.__version__, "backend": jax.default_backend()}
    values |= {"number of devices": jax.local_device_count()}
    client.key_value_set(f"values/{jax.process_index()}", json.dumps(values))
    first = json.loads(client.blocking_key_value_get("values/0", 1000 * seconds))
    for i, name in enumerate(NAMES):
        other = json.loads(client.blocking_key_value_get(f"values/{i}", 1000 * seconds))
        texts = [
            f"{key} is {first.get(key)} on {NAMES[0]}, {other.get(key)} on {name}"
            for key in sorted({*first, *other})
            if first.get(key) != other.get(key)
        ]
        if texts:
            raise UserError(f"all hosts must be started alike: {'; '.join(texts)}")


def watch(client):
    """Answers when a host calls, and exits this process when one gives notice. Runs in a thread."""
    with suppress(JaxRuntimeError):  # this process has disconnected; or host 0 is lost, JAX exits
        client.blocking_key_value_get(CALL, FOREVER)
        client.key_value_set(f"here/{global_state.process_id}", NAMES[global_state.process_id])
        exit_now(client.blocking_key_value_get(NOTICE, FOREVER))


def call_all(client):
    """Calls all hosts: the names of those that do not answer within 3 s."""
    try:
        client.key_value_set(CALL, "", allow_overwrite=True)
        time.sleep(3)
        here = [name for _, name in client.key_value_dir_get("here/")]
        return [name for name in NAMES if name not in here]
    except JaxRuntimeError:
        return NAMES[:1]  # which keeps the answers


def disconnect():
    """Waits for all hosts as long as they live, then disconnects; does nothing if alone."""
    if jax.distributed.is_initialized():
        global_state.client.wait_at_barrier("end", FOREVER)  # writing the report takes a while
        EXITING.acquire()
        with suppress(JaxRuntimeError):  # of a host that is lost now
            jax.distributed.shutdown()


def exit_all(message):
    """Exits this process with a line, and the other hosts with the same line."""
    notice = f"error: {NAMES[global_state.process_id]}: {message}"
    with suppress(JaxRuntimeError):  # another one was faster, or host 0, which keeps it, is lost
        global_state.client.key_value_set(NOTICE, notice)
        global_state.client.key_value_set(CALL, "", allow_overwrite=True)
    sys.stdout.flush()
    exit_now(notice)


def exit_now(message):
    """Exits this process with a line, from any thread; the first call counts."""
    EXITING.acquire()
    os.write(2, f"{message}\n".encode())
    # The others still read from host 0, and JAX aborts them where it is gone: it exits last.
    time.sleep(1 if global_state.process_id else 2)
    os._exit(1)


def from_first(function, like):
    """function() of host 0, on every host, with the same bits; like: arrays of the same shapes."""
    if jax.process_count() == 1:
        return function()
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    found = blank if jax.process_index() else function()
    found = jax.tree.map(lambda leaf, one: np.asarray(one, leaf.dtype), blank, found)
    bits = jax.tree.map(lambda one: np.atleast_1d(one).view(np.uint8), found)
    bits = multihost_utils.broadcast_one_to_all(bits)  # of floats it would keep no -0.0
    return jax.tree.map(lambda leaf, one: one.view(leaf.dtype).reshape(leaf.shape), blank, bits)
