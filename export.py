"""Exports a trained network as StableHLO, which runs without this project: JAX is enough.

    python export.py                                   # the newest run under runs/
    python export.py --workdir=runs/light --step=last

The encoder runs once for each image, the head compares two embeddings, on CPU or CUDA. To use them
(`pip install jax flatbuffers`; a JAX that is older than the one in export.json may refuse them):

    from pathlib import Path
    from jax import export

    folder = Path("runs/light/export")
    encoder, head = (
        export.deserialize((folder / f"{name}.stablehlo").read_bytes())
        for name in ("encoder", "head")
    )
    logits = head.call(encoder.call(images1), encoder.call(images2))  # uint8 [n, 32, 32, 1]
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import json
from functools import partial

import flatbuffers  # noqa: F401 -- jax.export needs it and does not say so
import jax
import jax.numpy as jnp
from jax import export
from scipy.special import expit

import command_line
import fingerprint
import runtime
import scoring
from model import create_model
from splits import read_fingerprint

PLATFORMS = ("cpu", "cuda")


def define_flags():
    scoring.define_run_flags()
    runtime.define_flags()


def main(options):
    """Checks the options and exports a run."""
    runtime.prepare(options.cache)
    config, workdir = scoring.find_run(options)
    try:
        write_export(config, workdir, options.step)
    except OSError as error:
        raise UserError(f"the export cannot be written: {error}") from None


def write_export(config, workdir, which):
    """Writes encoder.stablehlo, head.stablehlo and export.json into workdir/export."""
    model = create_model(config)
    step, variables = scoring.load_variables(config, workdir, model, which)
    threshold = scoring.kept_threshold(config, workdir, step)
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
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {folder / 'export.json'}, encoder.stablehlo and head.stablehlo beside it")


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


if __name__ == "__main__":
    command_line.run(define_flags, main)
