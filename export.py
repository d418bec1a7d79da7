"""Exports a trained network as StableHLO, which runs without this project: JAX is enough.

    python export.py                                   # the newest run under runs/
    python export.py --workdir=runs/light --step=last
    python export.py --batch=1                         # for what takes one number of images only
    python export.py --onnx                            # encoder.onnx and head.onnx, too

The encoder runs once for each image, the head compares two embeddings, on CPU or CUDA.
docs/export.md says how to use them, and what else can.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import json
import logging
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import flatbuffers  # noqa: F401 -- jax.export needs it and does not say so
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import export
from ml_collections import ConfigDict
from scipy.special import expit

import command_line
import decoding
import fingerprint
import runtime
import scoring
from model import create_model
from splits import read_fingerprint

PLATFORMS = ("cpu", "cuda")
PREPARE = Path(__file__).parent / "docs" / "prepare.py"
ONNX_BATCHES = (1, 7, 64)  # with which ONNX is checked
MOST_APART = 1e-4  # of ONNX and JAX, as a share of the largest value if that is above 1


def define_flags():
    scoring.define_run_flags()
    flags.DEFINE_integer("batch", None, "Images and pairs at once; without it any number.", 1)
    flags.DEFINE_bool("onnx", False, "Write ONNX, too; needs requirements-onnx.txt.")
    runtime.define_flags()


def main(options):
    """Checks the options and exports a run."""
    runtime.prepare(options.cache)
    config, workdir = scoring.find_run(options)
    try:
        write_export(config, workdir, options.step, options.batch, options.onnx)
    except OSError as error:
        raise UserError(f"the export cannot be written: {error}") from None


def write_export(config, workdir, which, batch=None, onnx=False):
    """Writes the programs, prepare.py and export.json into workdir/export; no ONNX unless asked."""
    if onnx:
        check_onnx()
    model = create_model(config)
    step, variables = scoring.load_variables(config, workdir, model, which)
    threshold = scoring.kept_threshold(config, workdir, step)
    encoder, head = export_parts(config, model, variables, batch)
    files = {"encoder.stablehlo": encoder.serialize(), "head.stablehlo": head.serialize()}
    if batch is None and config.data.fit == "squeeze":
        files["photos.stablehlo"] = export_photos(config, model, variables).serialize()
    files |= export_onnx(config, variables, batch) if onnx else {}
    kept = read_fingerprint(workdir)
    facts = describe(config, encoder, batch or "n") | {
        "threshold": {"logit": threshold, "probability": float(expit(threshold))},
        "step": step,
        "trained_on": kept and fingerprint.identity(kept),
        "config": config.to_dict(),
    }
    files["prepare.py"] = PREPARE.read_bytes()
    files["export.json"] = (json.dumps(facts, indent=2) + "\n").encode()
    folder = workdir / "export"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.partial").write_bytes(content)
    for name in ("encoder.onnx", "head.onnx", "photos.stablehlo"):  # of another step, perhaps
        (folder / name).unlink(missing_ok=True)
    for name in files:
        (folder / f"{name}.partial").replace(folder / name)
    print(f"wrote {folder / 'export.json'}, and beside it {', '.join([*files][:-1])}")


def describe(config, encoder, n):
    """What export.json says of images, embeddings, logits and versions; n: the batch, or "n"."""
    data, (_, width), dtype = config.data, encoder.out_avals[0].shape, encoder.out_avals[0].dtype
    mode, channels = ("L", "grey") if data.channels == 1 else ("RGB", "red, green, blue")
    rules = {"size": data.image_size, "mode": mode, "fit": data.fit}
    rules |= {"filter": "bilinear (a triangle)", "antialias": True, "white": data.white}
    rules |= {"whites": decoding.WHITES.tolist(), "channels": channels}
    versions = {name: version(name) for name in ("jax", "jaxlib")}
    shape = f"uint8 [{n}, {data.image_size}, {data.image_size}, {data.channels}]"
    return {
        "images": f"{shape}, 0 to 255, as prepare.py makes them from files; any scaling is inside",
        "prepare": rules,
        "embeddings": f"{dtype} [{n}, {width}]",
        "logits": f"float32 [{n}]; the probability of same is 1 / (1 + exp(-logit))",
        "platforms": PLATFORMS,
        "versions": versions | {"calling_convention": encoder.calling_convention_version},
    }


def export_parts(config, model, variables, batch=None):
    """(encoder, head), each a jax.export.Exported, for so many rows; None: any number n."""
    size, channels = config.data.image_size, config.data.channels
    n = batch or export.symbolic_shape("n")[0]
    images = jax.ShapeDtypeStruct((n, size, size, channels), jnp.uint8)
    # Else the files would name the folders of this project and of the packages.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")

    def exported(method, *arguments):
        function = jax.jit(partial(model.apply, variables, method=method))
        return export.export(function, platforms=PLATFORMS)(*arguments)

    encoder = exported("encode", images)
    embeddings = jax.ShapeDtypeStruct(encoder.out_avals[0].shape, encoder.out_avals[0].dtype)
    return encoder, exported("compare", embeddings, embeddings)


def export_photos(config, model, variables):
    """The encoder for decoded images of any size: a jax.export.Exported."""
    shape = export.symbolic_shape(f"n, height, width, {config.data.channels}")

    def encode(photos):
        return model.apply(variables, resize(photos, config.data.image_size), method="encode")

    like = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return export.export(jax.jit(encode), platforms=PLATFORMS)(like)


def resize(photos, size):
    """uint8 [n, height, width, channels] -> squares, nearly those of Pillow 13.

    As Pillow it rounds after each axis, and begins with the one that leaves it less to do.
    """

    def along(axis, x):
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        return jnp.floor(jax.image.resize(x, shape, "linear", antialias=True) + 0.5)

    _, height, width, _ = map(jnp.asarray, photos.shape)  # symbols, in an export
    rows_first, columns_first = (lambda x: along(2, along(1, x))), (lambda x: along(1, along(2, x)))
    is_tall, x = 2 * width < height + size, photos.astype(jnp.float32)
    return jax.lax.cond(is_tall, rows_first, columns_first, x).astype(jnp.uint8)


def check_onnx():
    """Raises UserError if a package for ONNX is missing."""
    try:
        for name in ("jax2onnx", "onnxruntime"):
            import_module(name)
    except ModuleNotFoundError as error:
        text = "is missing: pip install --no-deps -r requirements-onnx.txt"
        raise UserError(f"--onnx: the package {error.name} {text}") from None


def export_onnx(config, variables, batch=None):
    """{name: bytes} of encoder and head as ONNX, in float32 (bfloat16 does not run); UserError."""
    config = ConfigDict(config.to_dict())
    config.model.dtype = "float32"
    size, channels = config.data.image_size, config.data.channels
    apply, random = create_model(config).apply, np.random.default_rng(0)
    encode, compare = (partial(apply, variables, method=name) for name in ("encode", "compare"))
    shapes = [(n, size, size, channels) for n in ([batch] if batch else ONNX_BATCHES)]
    images = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
    embeddings = [np.asarray(jax.jit(encode)(one)) for one in images]
    pairs = [(one, one[:, ::-1]) for one in embeddings]
    found = {"encoder.onnx": to_onnx(encode, [(one,) for one in images], batch)}
    return found | {"head.onnx": to_onnx(compare, pairs, batch)}


def to_onnx(function, examples, batch):
    """A function as ONNX, bytes, for any number of rows or `batch`.

    examples: tuples of arguments. Raises UserError if its answer to one is not that of JAX, or if
    jax2onnx cannot convert it.
    """
    import jax2onnx
    import onnxruntime

    for name in ("jax2onnx", "onnx_ir"):  # pages about examples that lack their packages
        logging.getLogger(name).setLevel(logging.ERROR)
    like = [jax.ShapeDtypeStruct((batch or "n", *x.shape[1:]), x.dtype) for x in examples[0]]
    try:
        content = jax2onnx.to_onnx(function, like).SerializeToString()
    except AttributeError as error:  # it reads private parts of JAX
        text = f"jax2onnx cannot convert with JAX {jax.__version__} ({error})"
        raise UserError(f"--onnx: {text}; it can with JAX 0.10.1, of Python 3.11") from None
    session = onnxruntime.InferenceSession(content)
    names = [one.name for one in session.get_inputs()]
    for arrays in examples:
        wanted = np.asarray(jax.jit(function)(*arrays))
        found = session.run(None, dict(zip(names, arrays, strict=True)))[0]
        apart = np.abs(found - wanted).max() / max(1, np.abs(wanted).max())
        if found.shape != wanted.shape or not apart <= MOST_APART:
            text = f"the answers differ by {apart:.2g} from those of JAX, more than {MOST_APART:g}"
            raise UserError(f"--onnx: for {len(wanted)} rows {text}: nothing is written")
    return content


if __name__ == "__main__":
    command_line.run(define_flags, main)
