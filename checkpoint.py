"""Checkpoints of a run under workdir/checkpoints (Orbax).

Each holds `model` (params and batch_stats), all that an evaluation reads; `training` (step and
optimizer state), which resuming adds; and `checksums` of both. Host arrays are saved, so
that a checkpoint can be restored on any number of devices. Of several processes the first alone
reads and writes, and judges what is damaged; the others get the bits from it and need no disk.
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
ASIDE = ".damaged"  # what the name of a checkpoint that cannot be used ends with
WRITER, WRITING = ThreadPoolExecutor(1, "checkpoint"), []  # the one that is being written, if any


@contextmanager
def opened(workdir, **keep):
    """A context with the CheckpointManager of a run that is trained, in the first process alone.

    Ends the program where numbers that are not finite come up in it: training diverged.
    """
    if jax.process_index():
        yield None
        return
    manager, hook = open_checkpoints(workdir, **keep), threading.excepthook
    threading.excepthook = lambda _: None  # what Orbax's threads die of is raised here again
    try:
        yield manager
    except FloatingPointError as error:
        wait(manager)
        good = "no checkpoint was saved before" if manager.latest_step() is None else (
            f"the last good checkpoint is {manager.latest_step()}")  # fmt: skip
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
    """Ends the program with one line where a checkpoint cannot be written, now or in background."""
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

    The newest ones are kept and those of lowest validation loss (`max_to_keep` with `best_fn` would
    throw away the newest).
    """
    write, folder = keep_latest is not None, workdir / "checkpoints"
    if write:
        folder.mkdir(exist_ok=True)
    check_metrics(folder, write)
    policies = [
        LatestN(n=keep_latest),
        BestN(get_metric_fn=validation_loss, reverse=True, n=keep_best),
    ]
    processes = ocp.options.MultiprocessingOptions(active_processes={0})
    options = ocp.CheckpointManagerOptions(
        best_fn=validation_loss,
        best_mode="min",
        preservation_policy=AnyPreservationPolicy(policies) if write else None,
        cleanup_tmp_directories=write,  # what a kill left half-written
        read_only=not write,
        create=False,
        multiprocessing_options=processes,
    )
    # Compressing takes two fifths of a save's work, for 7 % of its bytes.
    plainly = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=processes)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("model", "training"):
        handlers.add(item, ocp.args.PyTreeSave, plainly)
        handlers.add(item, ocp.args.PyTreeRestore, plainly)
    try:
        manager = ocp.CheckpointManager(folder, options=options, handler_registry=handlers)
        # Asking, at each save, it would tell JAX of a step that the loop has left behind.
        manager.reached_preemption = lambda step: False
        return manager
    except FileNotFoundError:
        if write or not folder.exists():
            raise
        return open_checkpoints(workdir)  # a training beside has removed a checkpoint meanwhile


def validation_loss(metrics):
    """What "best" means: never nan, an evaluation with answers that are not finite ends the run."""
    return metrics["loss"]


def save(manager, state, metrics):
    """Starts to save a TrainState of host arrays, once the one before is committed.

    Before it returns it looks whether there is room and whether all is finite: if not it raises
    FloatingPointError and saves nothing. The rest is a thread's, whose errors come up in `wait`.
    """
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"step {state.step} left parameters that are not finite")
    if manager is None:
        return
    wait(manager)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**18
    with explained(manager):
        if shutil.disk_usage(manager.directory).free < needed:  # Orbax would fail with a page
            raise OSError("No space left")
    WRITING.append(WRITER.submit(save_now, manager, state, metrics))


def save_now(manager, state, metrics):
    """The thread's part: checksums, and all of Orbax."""
    items = jax.tree.map(np.asarray, split(state))  # a number would come back as another type
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    sums = {name: {"leaves": leaves(tree), "sha256": digest(tree)} for name, tree in items.items()}
    sums = {"items": sums, "metrics": metrics}
    args |= {"checksums": ocp.args.JsonSave(sums | {"sha256": text_digest(sums)})}
    manager.save(int(state.step), args=ocp.args.Composite(**args), metrics=metrics)


def wait(manager):
    """Waits until what is being saved is committed."""
    if manager is not None:
        with explained(manager):
            while WRITING:
                WRITING.pop().result()
            manager.wait_until_finished()


def split(state):
    """A TrainState as the items of a checkpoint."""
    return {
        "model": {"params": state.params, "batch_stats": state.batch_stats},
        "training": {"step": state.step, "opt_state": state.opt_state},
    }


def restore(manager, state):
    """Returns the newest whole checkpoint in the form of `state`, or `state` where there is none.

    Damaged ones are set aside. If there are no others the program ends: it never starts again
    unasked.
    """
    folder = Path(manager.directory)
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = restore_items(manager, step, **split(state))
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

    Raises UserError if it is damaged; with `skip_damaged` it is set aside and the next is taken,
    as is one that a training beside removes meanwhile.
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
    """A checkpoint that cannot be read, or holds other bits than were saved."""


def restore_items(manager, step, **targets):
    """Restores items as NumPy arrays and checks each bit of them against the checksums."""
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
    args = {name: ocp.args.PyTreeRestore(to_arrays(tree)) for name, tree in targets.items()}
    found = read(manager, step, **args)
    for name in targets:
        if digest(found[name]) != saved[name]["sha256"]:
            raise Damaged(f"{name}: the checksum is not the one that was saved")
    return found


def read(manager, step, **args):
    """Restores items as Orbax does; what it raises of bad files, of many kinds, becomes Damaged."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a page for each array of a bad file
    try:
        return manager.restore(step, args=ocp.args.Composite(**args))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{type(error).__name__} while reading") from error
    except (OSError, MemoryError):  # of the machine: the files may be good
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


def to_arrays(tree):
    """Shapes and types as the NumPy arrays that Orbax restores into."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)


def check_metrics(folder, write):
    """Sets aside checkpoints whose metrics cannot be read: Orbax could not even be opened.

    Where nothing may be written the program ends.
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
    """Whether a checkpoint that could not be read is there no more a moment later."""
    time.sleep(0.2)  # removing takes a while
    return not path.exists()


def set_aside(path, reason):
    """Renames a checkpoint so that it is kept and not used, and says so."""
    name = path.with_name(path.name + ASIDE)
    while name.exists():
        name = name.with_name("again-" + name.name)
    path.rename(name)
    print(f"warning: checkpoint {path} is damaged ({reason}); set aside as {name.name}",
          file=sys.stderr)  # fmt: skip
