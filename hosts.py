"""Several processes as one: they join, agree, exit together, and name the one that was lost.

They are called hosts here. `jax.distributed` connects them. When one is lost, JAX's own heartbeat
exits with a page of C++. The roll call here is faster and exits with a line that names the host.
"""

import json
import os
import platform
import re
import socket
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from threading import Event, Thread, Timer
from types import SimpleNamespace

import jax
import numpy as np
from absl import flags
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from errors import UserError

# The one private name of JAX in this project. The client that connects processes has no public one
# in 0.10.1 to 0.12.0.1: `jax.distributed` can only start, end, and say whether it has started.
try:
    from jax._src.distributed import global_state
except ImportError:  # a later JAX: one process works, several are refused (`join`)
    global_state = None

NOTICE = "notice"  # a key; its value is why a host exits, or SOMEONE_LOST
SOMEONE_LOST = "a host may be lost: all answer the roll call now"
GRACE = 5  # seconds in which every living host answers a roll call
NAMES = []  # of all hosts, by process index
EXITING, ALL_ANSWERED = Event(), Event()


def define_flags():
    """Flags about several processes that work together."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where several processes work "
                        "together; SLURM, Open MPI and Kubernetes name it themselves.")  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "How many there are.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
    flags.DEFINE_integer("join_seconds", 300, "How long they wait for each other at the start.")
    flags.DEFINE_integer("heartbeat_seconds", 100, "How long one may be silent before all exit.")


def read_cluster(options):
    """Returns how to join other processes; None where this one works alone; raises UserError.

    Fields: address (arguments of jax.distributed.initialize), join_seconds, heartbeat_seconds.
    """
    names = ("coordinator", "num_processes", "process_id")
    missing = [name for name in names if options[name].value is None]
    for name, least in (("join_seconds", 1), ("heartbeat_seconds", 10), ("num_processes", 1)):
        if options[name].value is not None and options[name].value < least:
            raise UserError(f"--{name}={options[name].value}: must be at least {least}")
    seconds = {name: options[name].value for name in ("join_seconds", "heartbeat_seconds")}
    if len(missing) == 3:
        return SimpleNamespace(address={}, **seconds) if managed(os.environ) else None
    if missing:
        raise UserError(f"{', '.join(names)} belong together: --{', --'.join(missing)} missing")
    host, _, port = options.coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"--coordinator={options.coordinator}: must be host:port, as in 10.0.0.1:4321"
        )
    if not 0 <= options.process_id < options.num_processes:
        raise UserError(
            f"--process_id={options.process_id}: must be from 0 to {options.num_processes - 1}"
        )
    address = {"coordinator_address": options.coordinator, "num_processes": options.num_processes}
    address |= {"process_id": options.process_id, "cluster_detection_method": "deactivate"}
    return SimpleNamespace(address=address, **seconds)


def managed(environment):
    """Whether SLURM, Open MPI or Kubernetes started this as one of several processes.

    JAX's own detection would say yes in an interactive step of one process, too, and use one GPU.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") != "1":
            return True
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return indexed and find_spec("kubernetes") is not None  # JAX needs that package


@contextmanager
def joined(cluster, values):
    """A context in which this process is one of several, as `read_cluster` says; or alone.

    values: {key: value}, which must be the same on all of them. At its end they wait for each
    other. Only process 0 prints, except errors. An error in it exits all of them.
    """
    if cluster is None:
        yield
        return
    join(cluster)
    agree(values, cluster.join_seconds)
    Thread(target=watch, args=(cluster.heartbeat_seconds,), daemon=True).start()
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")
    try:
        yield
        disconnect()
    except UserError as error:
        exit_all(f"error: {error}")
    except FloatingPointError as error:  # raised on every host
        if jax.process_index():
            time.sleep(cluster.heartbeat_seconds)  # host 0 exits first, after its last save
        exit_all(f"error: {error}")
    except Exception as error:  # a collective with a lost host raises many kinds
        exit_if_first_is_lost()
        tell_all(SOMEONE_LOST)
        ALL_ANSWERED.wait(cluster.heartbeat_seconds)  # `watch` exits if a host does not answer
        traceback.print_exc()
        exit_all(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]}")


def join(cluster):
    """Connects to the other processes; exits if that takes over join_seconds."""
    if global_state is None:
        text = f"several processes cannot work together with jax {jax.__version__}: start one, or"
        raise UserError(f"{text} install the version that requirements-cpu.txt names")
    where = cluster.address.get("coordinator_address", "named by the environment")
    text = (
        f"error: not all processes joined the coordinator ({where}) in {cluster.join_seconds} s: "
        "start each of them, where it reaches that address, or allow more --join_seconds"
    )
    late = Timer(cluster.join_seconds, exit_now, [text])  # JAX would abort with a page of C++
    late.start()
    try:
        jax.distributed.initialize(
            **cluster.address,
            initialization_timeout=cluster.join_seconds + GRACE,
            heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join other processes: {error}") from None
    finally:
        late.cancel()


def agree(values, seconds):
    """Exits all hosts, with a line that names the keys, unless `values` are the same on all."""
    client, count = global_state.client, jax.process_count()
    values = values | {"jax": jax.__version__, "backend": jax.default_backend()}
    values |= {"number of devices": jax.local_device_count()}
    client.key_value_set(f"host/{jax.process_index()}", json.dumps([platform.node(), values]))
    answers = [client.blocking_key_value_get(f"host/{i}", 1000 * seconds) for i in range(count)]
    found = [json.loads(answer) for answer in answers]
    NAMES[:] = [f"host {i} ({name})" for i, (name, _) in enumerate(found)]
    first = found[0][1]
    for name, (_, other) in zip(NAMES, found, strict=True):
        keys = [k for k in sorted({*first, *other}) if first.get(k) != other.get(k)]
        if keys:
            texts = (f"{k} is {first.get(k)} on {NAMES[0]}, {other.get(k)} on {name}" for k in keys)
            exit_all(f"error: all hosts must be started alike: {'; '.join(texts)}")


def watch(seconds):
    """Exits this process when another host gives notice or is lost. Runs in a thread.

    Each round waits 0.2 * seconds for a notice and then calls the roll: a barrier that every host
    must reach within 0.6 * seconds, or within GRACE if a host suspects a loss.
    """
    while not EXITING.is_set():
        notice = read_notice(0.2 * seconds)
        if notice not in (None, SOMEONE_LOST):
            exit_now(notice)
        call_roll(GRACE if notice else 0.6 * seconds)
        if notice:
            ALL_ANSWERED.set()


def read_notice(seconds):
    """A host's notice, SOMEONE_LOST or a line; None if there is none in time."""
    try:
        return global_state.client.blocking_key_value_get(NOTICE, int(1000 * seconds))
    except JaxRuntimeError as error:
        return None if "DEADLINE" in str(error) else lost(error)


def call_roll(seconds):
    """Returns when every host has answered; exits this process if one does not in time."""
    client = global_state.client
    if client is None:  # this process has disconnected since the last notice was read
        return
    try:
        client.wait_at_barrier("roll call", int(1000 * seconds))
    except JaxRuntimeError as error:
        exit_now(lost(error))


def tell_all(notice):
    """Gives notice to the other hosts. A reason to exit replaces SOMEONE_LOST, not the reverse.

    It does nothing if this host has lost its connection.
    """
    with suppress(JaxRuntimeError):
        replace = notice != SOMEONE_LOST
        global_state.client.key_value_set(NOTICE, notice, allow_overwrite=replace)


def lost(error):
    """The line that names the hosts missing in a roll call; host 0 if it could not take place."""
    found = re.search(r"timed out task names:\s*((?:\d+\s+)+)", str(error))
    names = [NAMES[int(i)] for i in found[1].split()] if found else NAMES[:1]
    return f"error: lost {', '.join(names)}; the same command on all hosts resumes"


def disconnect():
    """Waits for all hosts as long as they live, then disconnects; does nothing if alone."""
    if jax.distributed.is_initialized():
        global_state.client.wait_at_barrier("end", 2**31 - 1)  # writing the report takes a while
        EXITING.set()
        jax.distributed.shutdown()


def exit_all(message):
    """Exits this process with a line, and the other hosts with the same line."""
    tell_all(f"error: {NAMES[jax.process_index()]} exited: {message.removeprefix('error: ')}")
    sys.stdout.flush()
    if not EXITING.is_set():
        EXITING.set()
        os.write(2, f"{message}\n".encode())
    time.sleep(1)  # if this is host 0, the others still read the notice from it
    os._exit(1)


def exit_now(message):
    """Exits this process with a line, from a thread, unless it exits already."""
    if not EXITING.is_set():
        EXITING.set()
        os.write(2, f"{message}\n".encode())
        os._exit(1)


def exit_if_first_is_lost():
    """Exits this process if host 0, which keeps the notice, is lost: JAX is about to abort."""
    host, _, port = global_state.coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), port), timeout=GRACE).close()
    except OSError as error:
        exit_now(lost(error))


def from_first(function, like):
    """function() of host 0, on every host, with the same bits; like: arrays of the same shapes."""
    if jax.process_count() == 1:
        return function()
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    found = blank if jax.process_index() else function()

    def as_bytes(leaf, one):
        return np.atleast_1d(np.asarray(one, leaf.dtype)).view(np.uint8)

    bits = multihost_utils.broadcast_one_to_all(jax.tree.map(as_bytes, blank, found))
    return jax.tree.map(lambda leaf, one: one.view(leaf.dtype).reshape(leaf.shape), blank, bits)
