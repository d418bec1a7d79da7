"""Pretrained weights for the encoder: torchvision's ResNets as .safetensors files, or a run's own.

    python train.py --config=configs/pretrained.py                               # from Hugging Face
    python train.py --config=configs/pretrained.py --config.model.pretrained=model.safetensors
    python train.py --config=configs/light.py --workdir=runs/b --config.model.pretrained=runs/light

It needs neither torch nor pickle.
"""

import hashlib
import os
import re
from functools import partial
from pathlib import Path

import settings
from errors import UserError, first_five

FILE = "model.safetensors"  # in a Hugging Face repository
FLOATS = ("bfloat16", "float16", "float32", "float64")
UNUSED = re.compile(r"fc\.(weight|bias)|.*num_batches_tracked")  # the classifier; counters
FIRST = re.compile(r"((?:(?:module|backbone|model|encoder)\.)*)conv1\.weight")


def resolve(options):
    """Writes the weights' path and checksum into config.model; does nothing without weights.

    It downloads them if they are in a repository. Raises UserError if they cannot be found or
    have another checksum than options.pretrained_sha256.
    """
    if not options.pretrained:
        return
    path, found = (best_of_run if settings.is_run(options.pretrained) else find)(options.pretrained)
    if (wanted := options.pretrained_sha256) not in ("", found):
        raise UserError(f"model.pretrained: {path} has SHA-256 {found}, wanted is {wanted}")
    options.pretrained, options.pretrained_sha256 = str(path.absolute()), found


def best_of_run(workdir):
    """(path, checksum) of the best checkpoint of a run."""
    import checkpoint  # not at the top: a benchmark of PyTorch needs this file without JAX

    weights = settings.load_config(Path(workdir)).model.pretrained
    if weights and not settings.is_run(weights):
        text = "it began with weights that scale images in their own way; begin with these"
        raise UserError(f"model.pretrained={workdir}: {text}, {weights}")
    folder = Path(workdir, "checkpoints")
    rank = partial(checkpoint.rank, folder)
    path = folder / str(min(checkpoint.steps_in(folder), key=rank, default="none"))
    try:
        return path, checkpoint.read_record(path)["items"]["model"]["sha256"]
    except checkpoint.Damaged as error:
        text = f"its best checkpoint is missing or damaged: {path.name} ({error})"
        raise UserError(f"model.pretrained={workdir}: {text}") from None


def find(name):
    """(path, checksum) of a file, or of the weights of a Hugging Face repository."""
    path = Path(name) if os.path.isfile(name) else download(name)
    with open(path, "rb") as file:
        return path, hashlib.file_digest(file, "sha256").hexdigest()


def download(name):
    """The path of the weights of a Hugging Face repository in the local cache."""
    is_path = name.endswith(".safetensors") or os.path.isdir(name.split("/")[0])
    if is_path or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        text = "no such file or run, and no OWNER/NAME of Hugging Face"
        raise UserError(f"model.pretrained={name}: {text}")
    import huggingface_hub as hub  # not at the top: it takes half a second

    hub.logging.set_verbosity_error()  # else a line for each retry
    try:
        return Path(hub.hf_hub_download(name, FILE, local_files_only=True))
    except (OSError, ValueError):
        print(f"fetching {FILE} of {name} from Hugging Face", flush=True)
    try:
        return Path(hub.hf_hub_download(name, FILE))
    except (hub.errors.HTTPError, OSError, ValueError) as error:
        text = f"model.pretrained={name}: it cannot be fetched ({type(error).__name__}); download "
        text += f"https://huggingface.co/{name}/resolve/main/{FILE} elsewhere and name the file"
        raise UserError(f"{text}: --config.model.pretrained=PATH") from None


def load(path, variables):
    """{"params", "batch_stats"} of an encoder as float32 arrays, in the form of `variables`.

    Weights and encoder must have the same arrays with the same shapes; else UserError lists the
    differences. Of a file's 3x3 kernel only the taps that the encoder has are taken (`model.taps`).
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    wanted = {torch_name(key): (key, leaf.shape) for key, leaf in flatten_dict(variables).items()}
    of_run = settings.is_run(str(path))
    found = read_run(Path(path)) if of_run else read(path)
    wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} has no place" for name in found.keys() - wanted.keys()]
    loaded = {}
    for name in wanted.keys() & found.keys():
        array, (key, shape) = found[name], wanted[name]
        if len(shape) == 4:  # torch: [out, in, height, width], Flax: [height, width, in, out]
            shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
        cut = "conv" in name and shape[2] < 3 and not of_run
        whole = (*shape[:2], 3, 3) if cut else shape
        if array.dtype.name not in FLOATS:
            wrong.append(f"{name} is of {array.dtype}, must be of {', '.join(FLOATS)}")
        if array.shape != whole:
            wrong.append(f"{name} has shape {array.shape}, its place {whole}")
        elif cut:
            array = array[..., 1 : 1 + shape[2], 1 : 1 + shape[3]]
        array = array.astype("float32")
        loaded[key] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if wrong:
        text = f"{path} does not fit the encoder: {first_five(sorted(wrong), '; ')}"
        raise UserError(f"model.pretrained: {text}")
    return unflatten_dict(loaded)


def read_run(path):
    """As `read`, of a checkpoint of a run."""
    from flax.traverse_util import flatten_dict

    import checkpoint
    from model import create_model, variable_shapes

    workdir = path.parent.parent
    config = settings.load_config(workdir)
    target = variable_shapes(create_model(config), config)
    _, variables = checkpoint.restore_model(workdir, path.name, target)
    tree = {kind: variables[kind]["encoder"] for kind in variables}
    return {
        torch_name(key): array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for key, array in flatten_dict(tree).items()
    }


def read(path):
    """{torchvision's name: array} of a file, without a prefix such as "module.".

    Prints what is left out then; raises UserError if it cannot be read.
    """
    import jax  # and with it ml_dtypes, without which safetensors has no bfloat16
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"model.pretrained: {path} cannot be read: {error}") from None
    starts = [match[1] for match in map(FIRST.fullmatch, found) if match]
    prefix = starts[0] if len(starts) == 1 else ""  # of several none is guessed
    inside = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    arrays = {name: array for name, array in inside.items() if not UNUSED.fullmatch(name)}
    if prefix and jax.process_index() == 0:
        others = [name for name in found if not name.startswith(prefix)]
        left = f"; {len(others)} others are left out: {first_five(others)}" if others else ""
        print(f"model.pretrained: {len(arrays)} arrays under {prefix!r}{left}", flush=True)
    return arrays


def torch_name(key):
    """("params", "layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    _, *path, field = key
    fields = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join(path).replace("_", ".") + "." + fields.get(field, field)
