"""Checkpoints of a run under workdir/checkpoints (Orbax).

Each holds `model` (params and batch_stats), `training` (step and optimizer state) and `checksums`
of both. An evaluation reads only `model`. Host arrays are saved, so that a checkpoint can be
restored on any number of devices. With several processes only the first reads and writes; it sends
what it read to the others, which need no disk.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from errors import UserError

NO_SPACE = re.compile("RESOURCE_EXHAUSTED|No space left|Disk quota")
ASIDE = ".damaged"  # suffix of the name of a damaged checkpoint
WRITER, WRITING = ThreadPoolExecutor(1, "checkpoint"), []  # WRITING: futures, at most one


@contextmanager
def opened(workdir, **keep):
    """A context with the CheckpointManager of a training; None except in the first process.

    A FloatingPointError in it (training diverged) becomes a UserError with advice.
    """
    if jax.process_index():
        yield None
        return
    manager, hook = open_checkpoints(workdir, **keep), threading.excepthook
    threading.excepthook = lambda _: None  # errors of Orbax's threads are raised in `wait`
    try:
        yield manager
    except FloatingPointError as error:
        wait(manager)
        step = manager.latest_step()
        good = f"the last good checkpoint is {step}"
        good = "no checkpoint was saved before" if step is None else good
        raise UserError(
            f"{error}; {good}; a lower --config.optimizer.learning_rate, in another --workdir, "
            "may help"
        ) from None
    finally:
        try:
            wait(manager)
        finally:
            threading.excepthook = hook
            manager.close()


@contextmanager
def explained(manager):
    """A context in which an error of writing a checkpoint becomes a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = "no space left on the device" if NO_SPACE.search(str(error)) else str(error)[:200]
        raise UserError(
            f"{manager.directory}: a checkpoint cannot be written: {reason}; the ones before are "
            "whole, and the same command resumes there once this is mended"
        ) from None


def open_checkpoints(workdir, keep_latest=None, keep_best=None):
    """Returns the CheckpointManager of a run: read-only unless told how many checkpoints to keep.

    It keeps the newest and the best in validation, see `rank`. (Orbax's `max_to_keep` with
    `best_fn` would delete the newest.)
    """
    write, folder = keep_latest is not None, workdir / "checkpoints"
    if write:
        folder.mkdir(exist_ok=True)
    check_metrics(folder, write)
    policies = [
        LatestN(n=keep_latest),
        BestN(get_metric_fn=rank, reverse=True, n=keep_best),
    ]
    processes = ocp.options.MultiprocessingOptions(active_processes={0})
    options = ocp.CheckpointManagerOptions(
        best_fn=rank,
        best_mode="min",
        preservation_policy=AnyPreservationPolicy(policies) if write else None,
        cleanup_tmp_directories=write,  # half-written ones of a killed process
        read_only=not write,
        create=False,
        multiprocessing_options=processes,
    )
    # Compression would take 40 % of the time of a save and spare 7 % of its bytes.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=processes)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("model", "training"):
        handlers.add(item, ocp.args.PyTreeSave, handler)
        handlers.add(item, ocp.args.PyTreeRestore, handler)
    try:
        manager = ocp.CheckpointManager(folder, options=options, handler_registry=handlers)
        # Each save would ask JAX about SIGTERM, with a step that the training loop has passed.
        manager.reached_preemption = lambda step: False
        return manager
    except FileNotFoundError:
        if write or not folder.exists():
            raise
        return open_checkpoints(workdir)  # again: a training removed a checkpoint meanwhile


def rank(metrics):
    """What "best" compares: lower is better. Never nan: an evaluation with such answers raises."""
    return metrics.get("rank", metrics["loss"])


def save(manager, state, metrics):
    """Starts to save a TrainState of host arrays, in a thread; first waits for the save before.

    Saves nothing and raises FloatingPointError if a value is not finite, UserError if there is no
    space. Errors of the thread are raised in `wait`.
    """
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"step {state.step} left parameters that are not finite")
    if manager is None:
        return
    wait(manager)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**18
    with explained(manager):
        if shutil.disk_usage(manager.directory).free < needed:  # Orbax's error is a page
            raise OSError("No space left")
    WRITING.append(WRITER.submit(save_now, manager, state, metrics))


def save_now(manager, state, metrics):
    """The thread's part of `save`: computes checksums and calls Orbax."""
    items = jax.tree.map(np.asarray, to_items(state))  # no scalars: Orbax changes their type
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    sums = {name: {"leaves": leaves(tree), "sha256": digest(tree)} for name, tree in items.items()}
    sums = {"items": sums, "metrics": metrics}
    args |= {"checksums": ocp.args.JsonSave(sums | {"sha256": text_digest(sums)})}
    manager.save(int(state.step), args=ocp.args.Composite(**args), metrics=metrics)


def wait(manager):
    """Waits until the present save is committed; raises UserError if it failed."""
    if manager is not None:
        with explained(manager):
            while WRITING:
                WRITING.pop().result()
            manager.wait_until_finished()


def to_items(state):
    """A TrainState as the items of a checkpoint."""
    return {
        "model": {"params": state.params, "batch_stats": state.batch_stats},
        "training": {"step": state.step, "opt_state": state.opt_state},
    }


def restore(manager, state):
    """Returns the newest undamaged checkpoint in the form of `state`; `state` if there are none.

    Damaged ones are set aside. Raises UserError if all are damaged: training never starts from the
    beginning unasked.
    """
    folder = Path(manager.directory)
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = restore_items(manager, step, **to_items(state))
        except Damaged as error:
            set_aside(folder / str(step), error)
            manager.reload()
        else:
            return state.replace(**found["model"], **found["training"])
    aside = sorted(path.name for path in folder.glob("*" + ASIDE))
    if aside:
        raise UserError(
            f"no checkpoint in {folder} can be read ({', '.join(aside)}); delete these to start "
            "from the beginning, or name another --workdir"
        )
    return state


def restore_model(manager, which, model, skip_damaged=False):
    """Restores (step, variables) of the "best", the "last" or a numbered checkpoint.

    model: variables of the same shapes. Raises UserError if the checkpoint is missing or damaged;
    with `skip_damaged` a damaged one is set aside and the choice is made again. So it is, too, if
    a training removes the checkpoint meanwhile.
    """
    steps = manager.all_steps()
    choices = {"best": manager.best_step(), "last": manager.latest_step()}
    step = choices[which] if which in choices else int(which)
    if step is None or step not in steps:
        raise UserError(
            f"no checkpoint {which} in {manager.directory}: there are {sorted(steps) or 'none yet'}"
        )
    try:
        return step, restore_items(manager, step, model=model)["model"]
    except Damaged as error:
        path = Path(manager.directory) / str(step)
        if skip_damaged:
            set_aside(path, error)
        if is_gone(path):
            manager.reload()
            return restore_model(manager, which, model, skip_damaged)
        others = sorted(set(steps) - {step}) or "none"
        raise UserError(
            f"checkpoint {step} in {manager.directory} is damaged ({error}); others: {others}"
        ) from None


class Damaged(Exception):
    """A checkpoint cannot be read, or its bits are not those that were saved."""


def restore_items(manager, step, **targets):
    """Restores items with the shapes of `targets`; raises Damaged, or UserError if these differ."""
    sums = read(manager, step, checksums=ocp.args.JsonRestore())["checksums"]
    try:
        saved, wanted = sums["items"], {key: sums[key] for key in ("items", "metrics")}
        intact = sums["sha256"] == text_digest(wanted)
    except (KeyError, TypeError):
        intact = False
    if not intact:
        raise Damaged("its checksums")
    for name, tree in targets.items():
        wanted, found = leaves(tree), saved[name]["leaves"]
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise UserError(
                    f"checkpoint {step} has {name}{key} as {found.get(key, 'nothing')}, "
                    f"the config needs {wanted.get(key, 'nothing')}; versions.json says with "
                    "which version of this program it was trained"
                )
    args = {name: ocp.args.PyTreeRestore(blank_arrays(tree)) for name, tree in targets.items()}
    found = read(manager, step, **args)
    for name in targets:
        if digest(found[name]) != saved[name]["sha256"]:
            raise Damaged(f"{name}: the checksum is not the one that was saved")
    return found


def read(manager, step, **args):
    """Restores items with Orbax, whose many kinds of errors on bad files become Damaged."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a page for each array of a bad file
    try:
        return manager.restore(step, args=ocp.args.Composite(**args))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{type(error).__name__} while reading") from error
    except (OSError, MemoryError):  # of the machine; the files may be good
        raise
    except Exception as error:
        raise Damaged(f"{type(error).__name__} while reading") from error


def leaves(tree):
    """{path: type and shape} of a tree's arrays."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def digest(tree):
    """SHA-256 over the bytes of a tree's arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()


def text_digest(values):
    """SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def blank_arrays(tree):
    """A tree of shapes and types as the NumPy arrays that Orbax restores into."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)


def check_metrics(folder, write):
    """Sets aside checkpoints whose metrics are damaged: with one of them Orbax opens nothing.

    Without `write` it raises UserError instead.
    """
    for path in folder.glob("*/metrics"):
        if not path.parent.name.isdecimal():
            continue
        try:
            metrics = json.loads((path / "metrics").read_text())
            intact = isinstance(metrics["loss"], float)
            sums = json.loads((path.parent / "checksums" / "metadata").read_text())
            intact = intact and metrics == sums["metrics"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            intact = False
        if not intact and write:
            set_aside(path.parent, "its metrics")
        elif not intact and not is_gone(path.parent):
            raise UserError(
                f"checkpoint {path.parent} is damaged (its metrics); training sets it aside"
            )


def is_gone(path):
    """Whether a checkpoint could not be read because a training was removing it."""
    time.sleep(0.2)  # removal takes a moment
    return not path.exists()


def set_aside(path, reason):
    """Renames a damaged checkpoint, so that it is kept but not used, and warns."""
    name = path.with_name(path.name + ASIDE)
    while name.exists():
        name = name.with_name("again-" + name.name)
    path.rename(name)
    print(f"warning: checkpoint {path} is damaged ({reason}); set aside as {name.name}",
          file=sys.stderr)  # fmt: skip
