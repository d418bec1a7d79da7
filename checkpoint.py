"""Checkpoints of a run under workdir/checkpoints (Orbax).

Each holds two items: `model` (params and batch_stats), all that an evaluation reads, and `training`
(step and optimizer state), which resuming adds. Host arrays are saved, so that a checkpoint can be
restored on any number of devices.
"""

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from settings import stop


def open_checkpoints(workdir, keep_latest=None, keep_best=None):
    """Returns the CheckpointManager of a run: read-only unless told how many checkpoints to keep.

    The newest ones are kept and those of lowest validation loss (`max_to_keep` with `best_fn` would
    throw away the newest).
    """
    write = keep_latest is not None
    policies = [
        LatestN(n=keep_latest),
        BestN(get_metric_fn=validation_loss, reverse=True, n=keep_best),
    ]
    options = ocp.CheckpointManagerOptions(
        best_fn=validation_loss,
        best_mode="min",
        preservation_policy=AnyPreservationPolicy(policies) if write else None,
        cleanup_tmp_directories=write,  # what a kill left half-written
        read_only=not write,
    )
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def validation_loss(metrics):
    """What "best" means; always finite, an evaluation with answers that are not stops the run."""
    return metrics["loss"]


def save(manager, state, metrics):
    """Starts to save a TrainState of host arrays; it is committed in the background."""
    model = {"params": state.params, "batch_stats": state.batch_stats}
    training = {"step": state.step, "opt_state": state.opt_state}
    args = ocp.args.Composite(
        model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training)
    )
    manager.save(int(state.step), args=args, metrics=metrics)


def restore(manager, state):
    """Returns the newest checkpoint in the form of `state`, or `state` where there is none."""
    step = manager.latest_step()
    if step is None:
        return state
    model = {"params": state.params, "batch_stats": state.batch_stats}
    training = {"step": state.step, "opt_state": state.opt_state}
    restored = restore_items(manager, step, model=model, training=training)
    return state.replace(**restored["model"], **restored["training"])


def restore_model(manager, which, model):
    """Restores (step, variables) of the "best", the "last" or a numbered checkpoint."""
    steps = manager.all_steps()
    choices = {"best": manager.best_step(), "last": manager.latest_step()}
    step = choices[which] if which in choices else int(which)
    if step is None or step not in steps:
        stop(
            f"no checkpoint {which} in {manager.directory}: there are {sorted(steps) or 'none yet'}"
        )
    return step, restore_items(manager, step, model=model)["model"]


def restore_items(manager, step, **targets):
    """Restores items as NumPy arrays; checks shapes and types, which Orbax does not."""
    args = {name: ocp.args.StandardRestore(to_arrays(tree)) for name, tree in targets.items()}
    restored = manager.restore(step, args=ocp.args.Composite(**args))
    for name, tree in targets.items():
        for (path, leaf), found in zip(
            jax.tree.leaves_with_path(tree), jax.tree.leaves(restored[name]), strict=True
        ):
            if (leaf.shape, leaf.dtype) != (found.shape, found.dtype):
                key = name + jax.tree_util.keystr(path)
                stop(f"checkpoint {step} has {key} as {found.dtype}{found.shape}, "
                     f"the config needs {leaf.dtype}{leaf.shape}")  # fmt: skip
    return restored


def to_arrays(tree):
    """Shapes and types as the NumPy arrays that Orbax restores into."""
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
