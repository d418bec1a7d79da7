"""Exports a trained network, to run it without this project: StableHLO, and arrays for NumPy.

    python export.py                               # the newest run under runs/
    python export.py --workdir=runs/light --numpy

There are two parts: the encoder, which runs once for each image, and the head, which compares two
embeddings. docs/export.md shows how to load both.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import json
from functools import partial

import flatbuffers  # noqa: F401 -- jax.export needs it and does not say so
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export
from scipy.special import expit

import command_line
import fingerprint
import runtime
import settings
from model import create_model
from scoring import kept_threshold, load_variables
from splits import read_fingerprint

PLATFORMS = ("cpu", "cuda")


def define_flags():
    flags.DEFINE_string("workdir", None, "The run's folder; by default the newest under runs/.")
    flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")
    flags.DEFINE_bool("numpy", False, "Also arrays for NumPy alone, of a cnn.")
    runtime.define_flags()


def main(options):
    """Checks the options and exports a run."""
    runtime.prepare(options.cache)
    workdir = settings.chosen_run(options.workdir)
    config = settings.load_config(workdir)
    if options.numpy and config.model.encoder != "cnn":
        text = f"for a cnn, this is a {config.model.encoder}; leave the option out"
        raise UserError(f"--numpy: {text}")
    settings.check_writable(workdir / "export", f"--workdir={workdir}")
    write_export(config, workdir, options.step, options.numpy)


def write_export(config, workdir, which, for_numpy):
    """Writes workdir/export: *.stablehlo, export.json, and with `for_numpy` weights.npz."""
    model = create_model(config)
    step, variables = load_variables(config, workdir, model, which)
    threshold = kept_threshold(config, workdir, step)
    encoder, head = export_parts(config, model, variables)
    (_, width), dtype = encoder.out_avals[0].shape, encoder.out_avals[0].dtype
    size, channels = config.data.image_size, config.data.channels
    kept = read_fingerprint(workdir)
    facts = {
        "images": f"uint8 [n, {size}, {size}, {channels}], 0 to 255; any scaling is inside",
        "fit": f"{config.data.fit}: how an image became a square, see configs/default.py",
        "embeddings": f"{dtype} [n, {width}]",
        "logits": "float32 [n]; the probability of same is 1 / (1 + exp(-logit))",
        "threshold": {"logit": threshold, "probability": float(expit(threshold))},
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "step": step,
        "trained_on": kept and fingerprint.identity(kept),
        "config": config.to_dict(),
    }
    folder = workdir / "export"
    folder.mkdir(exist_ok=True)
    (folder / "encoder.stablehlo").write_bytes(encoder.serialize())
    (folder / "head.stablehlo").write_bytes(head.serialize())
    (folder / "weights.npz").unlink(missing_ok=True)  # of another step
    if for_numpy:
        np.savez(folder / "weights.npz", **to_arrays(config, variables))
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
    names = "encoder.stablehlo", "head.stablehlo", *["weights.npz"] * for_numpy, "export.json"
    for name in names:
        print(f"wrote {folder / name}: {(folder / name).stat().st_size:,} bytes")
    print(f"an embedding has {width * dtype.itemsize:,} bytes")


def export_parts(config, model, variables):
    """(encoder, head), each a jax.export.Exported for any number n of rows."""
    size, channels = config.data.image_size, config.data.channels
    (n,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, size, size, channels), jnp.uint8)

    def exported(method, *arguments):
        function = jax.jit(partial(model.apply, variables, method=method))
        return export.export(function, platforms=PLATFORMS)(*arguments)

    encoder = exported("encode", images)
    embeddings = jax.ShapeDtypeStruct(encoder.out_avals[0].shape, encoder.out_avals[0].dtype)
    return encoder, exported("compare", embeddings, embeddings)


def to_arrays(config, variables):
    """A network with a CNN as {name: array}, with BatchNorm folded into kernels and biases."""
    params, statistics = (variables[kind].get("encoder", {}) for kind in ("params", "batch_stats"))
    strides = [2 if i == 0 else 1 for depth in config.model.stage_sizes for i in range(depth)]
    arrays = {"strides": np.array(strides)}
    for i in range(len(strides)):
        norm, seen = params[f"BatchNorm_{i}"], statistics[f"BatchNorm_{i}"]
        factor = norm["scale"] / np.sqrt(seen["var"] + 1e-5)
        arrays[f"kernel{i}"] = params[f"Conv_{i}"]["kernel"] * factor
        arrays[f"bias{i}"] = norm["bias"] - seen["mean"] * factor
    head = variables["params"].get("head", {})
    if config.model.head == "mlp":
        for name in ("hidden", "logit"):
            arrays |= {f"{name}_{part}": array for part, array in head[name].items()}
    elif config.model.head == "cosine":
        arrays |= head
    else:
        arrays["margin"] = np.float32(config.model.margin)
    return arrays


if __name__ == "__main__":
    command_line.run(define_flags, main)
