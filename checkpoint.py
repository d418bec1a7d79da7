"""Checkpoints of a run: the folders workdir/checkpoints/STEP, which Orbax writes and reads.

Each holds `model` (params and batch_stats), `training` (step and optimizer state) and a record:
checksums of both, and the metrics of validation. An evaluation reads only `model`. Host arrays are
saved: they fit any number of devices. Of several processes only the first reads and writes.
"""

import hashlib
import json
import logging
import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import jax
import numpy as np
import orbax.checkpoint as ocp

from errors import UserError, first_five

ASIDE = ".damaged"  # ends the name of a damaged checkpoint
TEMPORARY = ".orbax-checkpoint-tmp"  # ... of one that is being written, or removed
DIVERGED = "a lower --config.optimizer.learning_rate, in another --workdir, may help"


class Damaged(Exception):
    """A checkpoint cannot be read, or its bits are not those that were saved."""


class Saver(AbstractContextManager):
    """Saves checkpoints in a thread, one at a time; keeps the newest and the best, by `rank`.

    A context manager: at its end everything is written.
    """

    def __init__(self, workdir, keep_latest, keep_best):
        self.folder = workdir / "checkpoints"
        self.keep_latest, self.keep_best = keep_latest, keep_best
        self.thread, self.writing = ThreadPoolExecutor(1, "checkpoint"), None
        if jax.process_index() == 0:
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.glob(f"*{TEMPORARY}*"):  # of a process that was killed
                shutil.rmtree(path)

    def __exit__(self, *error):
        self.wait()

    def save(self, state, metrics):
        """Starts to save a TrainState of host arrays, once the save before is complete.

        Raises UserError instead if a value is not finite.
        """
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
            text = f"step {state.step} left parameters that are not finite, which are not saved"
            raise UserError(f"{text}; {DIVERGED}")
        self.wait()
        if jax.process_index() == 0:
            self.writing = self.thread.submit(self.write, state, metrics)

    def wait(self):
        """Waits until the present save is complete; raises UserError if it failed."""
        writing, self.writing = self.writing, None
        try:
            if writing:
                writing.result()
        except (OSError, ValueError) as error:
            text = f"{self.folder}: a checkpoint cannot be written: {str(error)[:200]}"
            raise UserError(f"{text}; the same command resumes at the one before") from None

    def write(self, state, metrics):
        """The thread's part of `save`; then removes what is not to be kept."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**18
        if shutil.disk_usage(self.folder).free < needed:  # Orbax's error is a page
            raise OSError("no space left on the device")
        items = jax.tree.map(np.asarray, to_items(state))  # no scalars: Orbax changes their type
        args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
        sums = {name: {"leaves": leaves(t), "sha256": digest(t)} for name, t in items.items()}
        record = {"items": sums, "metrics": metrics}
        args["checksums"] = ocp.args.JsonSave(record | {"sha256": text_digest(record)})
        path = self.folder / str(int(state.step))
        make_checkpointer().save(path, args=ocp.args.Composite(**args))
        steps = sorted(steps_in(self.folder))
        best = sorted((rank(self.folder, step), step) for step in steps)
        best = [step for (value, _), step in best if value > -math.inf]  # damaged ones stay
        for step in {*best[self.keep_best :]} - {*steps[-self.keep_latest :]}:
            removed = (self.folder / str(step)).rename(self.folder / f"{step}{TEMPORARY}")
            shutil.rmtree(removed)


def make_checkpointer():
    """Orbax's checkpointer, which only the first process uses."""
    processes = ocp.options.MultiprocessingOptions(active_processes={0})
    # Compression would take 40 % of the time of a save and spare 7 % of its bytes.
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=processes)
    record = ocp.JsonCheckpointHandler(multiprocessing_options=processes)
    options = ocp.CompositeOptions(multiprocessing_options=processes)
    items = {"model": arrays, "training": arrays, "checksums": record}
    handler = ocp.CompositeCheckpointHandler(composite_options=options, **items)
    return ocp.Checkpointer(handler, multiprocessing_options=processes)


def to_items(state):
    """A TrainState as the items of a checkpoint."""
    training = {"step": state.step, "opt_state": state.opt_state}
    return {"model": state.variables, "training": training}


def steps_in(folder):
    """The steps of all checkpoints: set of int."""
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


def rank(folder, step):
    """A key to sort steps by: the best first, of equals the newest; unreadable ones before all."""
    try:
        metrics = read_record(folder / str(step))["metrics"]
    except Damaged:
        return -math.inf, -step
    return metrics.get("rank", metrics["loss"]), -step


def restore(workdir, state):
    """Returns the newest whole checkpoint in the form of `state`; `state` if there are none.

    Damaged ones are set aside. If all are damaged it raises UserError.
    """
    folder = workdir / "checkpoints"
    steps = sorted(steps_in(folder), reverse=True)
    _, found = read_first(folder, steps, skip_damaged=True, **to_items(state))
    if found:
        return state.replace(**found["model"], **found["training"])
    if aside := sorted(path.name for path in folder.glob("*" + ASIDE)):
        text = f"no checkpoint in {folder} can be read ({', '.join(aside)})"
        raise UserError(f"{text}; delete these to start anew, or name another --workdir")
    return state


def restore_model(workdir, which, model, skip_damaged=False):
    """Restores (step, variables) of the "best", the "last" or a numbered checkpoint.

    model: variables of the same shapes. Raises UserError if the checkpoint is missing or damaged.
    With `skip_damaged`, for a training, a damaged one is set aside for the next.
    """
    folder = workdir / "checkpoints"
    steps = sorted(steps_in(folder), reverse=True)
    if which == "best":
        steps.sort(key=lambda step: rank(folder, step))
    elif which != "last":
        steps = [step for step in steps if str(step) == which]
    step, found = read_first(folder, steps, skip_damaged, model=model)
    if found is None:
        there = sorted(steps_in(folder)) or "none"
        raise UserError(f"no checkpoint {which} in {folder} can be read: there are {there}")
    return step, found["model"]


def read_first(folder, steps, skip_damaged, **targets):
    """(step, items) of the first of these checkpoints that is whole; (None, None) if none is.

    A damaged one is set aside with `skip_damaged`, and a UserError without.
    """
    for step in steps:
        path = folder / str(step)
        try:
            return step, read(path, **targets)
        except Damaged as error:
            if skip_damaged:  # it is kept, but not used
                aside = path.with_name(path.name + ASIDE)
                shutil.rmtree(aside, ignore_errors=True)  # of the same step, earlier
                path.rename(aside)
                text = f"checkpoint {path} is damaged ({error}); set aside as {aside.name}"
                print(f"warning: {text}", file=sys.stderr)
            elif path.exists():  # else a training has removed it meanwhile
                others = sorted(steps_in(folder) - {step}) or "none"
                text = f"checkpoint {step} in {folder} is damaged ({error}); others: {others}"
                raise UserError(text) from None
    return None, None


def read(path, **targets):
    """Restores items with the shapes of `targets`; raises Damaged, or UserError if these differ."""
    saved = read_record(path)["items"]
    for name, tree in targets.items():
        if differ := sorted(leaves(tree).items() ^ saved[name]["leaves"].items()):
            texts = first_five([f"{name}{key} {kind}" for key, kind in differ])
            text = f"checkpoint {path} is not of this program's network; they differ in {texts}"
            text = f"{text}; versions.json names the program that trained it"
            raise UserError(f"{text}; train anew in another --workdir")
    blank = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), targets)
    args = {name: ocp.args.PyTreeRestore(tree) for name, tree in blank.items()}
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a page for each array of a bad file
    try:
        found = make_checkpointer().restore(path, args=ocp.args.Composite(**args))
    except Exception as error:  # Orbax raises many kinds on bad files
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if isinstance(error, (OSError, MemoryError)) and not missing:
            raise  # an error of the machine; the files may be good
        raise Damaged(f"{type(error).__name__} while reading") from error
    for name in targets:
        if digest(found[name]) != saved[name]["sha256"]:
            raise Damaged(f"{name}: the checksum is not the one that was saved")
    return found


def read_record(path):
    """What `Saver.write` noted of a checkpoint: {"items", "metrics"}; raises Damaged."""
    try:
        record = json.loads((path / "checksums" / "metadata").read_text())
        intact = record.pop("sha256") == text_digest(record)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise Damaged("its checksums")
    return record


def leaves(tree):
    """{path: type and shape} of a tree's arrays."""
    found = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in found}


def digest(tree):
    """SHA-256 over the bytes of a tree's arrays."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()


def text_digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
