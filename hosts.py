"""Several processes as one: they join, agree, end together, and say which of them was lost.

The engine is `jax.distributed`. Beside it runs a roll call through its coordination service: JAX's
own heartbeat ends a process with a page of C++, the roll call with a line that names the host.
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
from threading import Event, Thread, Timer

import jax
import numpy as np
from jax._src.distributed import global_state  # its client has no public name; Orbax does the same
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils

from settings import stop

TROUBLE = "trouble"  # the key under which a host tells the others what it ends of
GRACE = 5  # seconds in which every host that lives answers a roll call
NAMES, ENDING, COMPLETE = [], Event(), Event()


@contextmanager
def joined(cluster, values):
    """A context in which this process is one of several, as `settings.cluster` says; or alone.

    `values`, {key: value}, must be the same on all of them. All leave it together. Output of
    others than process 0 is dropped, but for errors.
    """
    if cluster is None:
        try:
            yield
        except SystemExit as error:
            print(error.code, file=sys.stderr)
            finish(1)
        return
    join(cluster)
    agree(values, cluster.join_seconds)
    Thread(target=watch, args=(cluster.heartbeat_seconds,), daemon=True).start()
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")
    try:
        yield
        part()
    except SystemExit as error:
        fail(error.code)
    except FloatingPointError as error:  # which every host meets
        if jax.process_index():
            time.sleep(cluster.heartbeat_seconds)  # host 0 says it once its checkpoints are whole
        fail(f"error: {error}")
    except Exception as error:  # of a collective with a lost host, of many kinds
        find_coordinator()
        tell("")
        COMPLETE.wait(cluster.heartbeat_seconds)  # a roll call ends this process if a host is lost
        traceback.print_exc()
        fail(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]}")


def finish(code=0):
    """Ends a program that is alone, or has parted, without taking JAX and TensorFlow apart.

    That takes 2 s, and aborts while a thread still imports TensorFlow or waits for a host.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join(cluster):
    """Connects to the other processes; ends the program where that takes too long."""
    where = cluster.address.get("coordinator_address", "named by the environment")
    text = (
        f"error: not all processes joined the coordinator ({where}) in {cluster.join_seconds} s: "
        "start each of them, where it reaches that address, or allow more --join_seconds"
    )
    late = Timer(cluster.join_seconds, end, [text])  # JAX would abort with a page
    late.start()
    try:
        jax.distributed.initialize(
            **cluster.address,
            initialization_timeout=cluster.join_seconds + GRACE,
            heartbeat_timeout_seconds=cluster.heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        stop(f"cannot join other processes: {error}")
    finally:
        late.cancel()


def agree(values, seconds):
    """Ends the program on all hosts, naming the keys, unless they were started with the same."""
    client, count = global_state.client, jax.process_count()
    values = values | {"jax": jax.__version__, "backend": jax.default_backend()}
    values |= {"number of devices": jax.local_device_count()}
    client.key_value_set(f"host/{jax.process_index()}", json.dumps([platform.node(), values]))
    found = [
        json.loads(client.blocking_key_value_get(f"host/{i}", 1000 * seconds)) for i in range(count)
    ]
    NAMES[:] = [f"host {i} ({name})" for i, (name, _) in enumerate(found)]
    first = found[0][1]
    for name, (_, other) in zip(NAMES, found, strict=True):
        keys = [k for k in sorted({*first, *other}) if first.get(k) != other.get(k)]
        if keys:
            texts = (f"{k} is {first.get(k)} on {NAMES[0]}, {other.get(k)} on {name}" for k in keys)
            stop(f"all hosts must be started alike: {'; '.join(texts)}")


def watch(seconds):
    """Ends this process when a host says why it ends, or has not answered for so many seconds."""
    client = global_state.client
    while not ENDING.is_set():
        try:
            text = client.blocking_key_value_get(TROUBLE, 200 * seconds)
        except JaxRuntimeError as error:
            text = None if "DEADLINE" in str(error) else lost(error)  # the rule: nothing happened
        if text:
            end(text)
        try:
            wait = 1000 * GRACE if text == "" else 600 * seconds
            client.wait_at_barrier("roll call", wait)
            if text == "":
                COMPLETE.set()
        except JaxRuntimeError as error:
            end(lost(error))


def find_coordinator():
    """Ends this process if host 0 is lost: it can tell nobody, and JAX is about to abort."""
    host, _, port = global_state.coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), port), timeout=GRACE).close()
    except OSError as error:
        end(lost(error))


def lost(error):
    """Which hosts a roll call missed, in a line; host 0 where it could not be held."""
    found = re.search(r"timed out task names:\s*((?:\d+\s+)+)", str(error))
    names = [NAMES[int(i)] for i in found[1].split()] if found else NAMES[:1]
    return f"error: lost {', '.join(names)}; the same command on all hosts resumes"


def part():
    """Waits until all hosts are here, as long as they live, and leaves them; nothing if alone."""
    if global_state.client:
        global_state.client.wait_at_barrier("end", 2**31 - 1)  # reports take their time
        ENDING.set()
        jax.distributed.shutdown()


def fail(text):
    """Ends this process with a line, and the others with the same."""
    tell(f"error: {NAMES[jax.process_index()]} ended: {str(text).removeprefix('error: ')}")
    sys.stdout.flush()
    if not ENDING.is_set():
        ENDING.set()
        os.write(2, f"{text}\n".encode())
    time.sleep(1)  # the others ask host 0
    os._exit(1)


def tell(text):
    with suppress(JaxRuntimeError):  # of a host that is lost itself
        # No text only has the roll called: it takes the place of none.
        global_state.client.key_value_set(TROUBLE, text, allow_overwrite=bool(text))


def end(text):
    """Ends this process from a thread, once."""
    if not ENDING.is_set():
        ENDING.set()
        os.write(2, f"{text}\n".encode())
        os._exit(1)


def from_first(function, like):
    """What function() returns on host 0 on every host, bit by bit: arrays in a tree as `like`."""
    if jax.process_count() == 1:
        return function()
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    found = blank if jax.process_index() else function()

    def as_bytes(leaf, one):
        return np.atleast_1d(np.asarray(one, leaf.dtype)).view(np.uint8)

    bits = multihost_utils.broadcast_one_to_all(jax.tree.map(as_bytes, blank, found))
    return jax.tree.map(lambda leaf, one: one.view(leaf.dtype).reshape(leaf.shape), blank, bits)
