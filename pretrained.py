"""Pretrained weights for the encoder: torchvision's ResNets, as .safetensors files.

    python train.py --config=configs/pretrained.py                               # from Hugging Face
    python train.py --config=configs/pretrained.py --config.model.pretrained=model.safetensors

It needs neither torch nor pickle. Only `load` imports JAX.
"""

import hashlib
import os
import re
from pathlib import Path

from errors import UserError, first_five

FILE = "model.safetensors"  # in a Hugging Face repository
FLOATS = ("bfloat16", "float16", "float32", "float64")
UNUSED = re.compile(r"fc\.(weight|bias)|.*num_batches_tracked")  # the classifier; counters


def resolve(options):
    """Writes the weights' path and checksum into config.model; does nothing without weights.

    It downloads them if they are in a repository. Raises UserError if they cannot be found or
    have another checksum than options.pretrained_sha256.
    """
    if not options.pretrained:
        return
    path = find(options.pretrained)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if options.pretrained_sha256 not in ("", found):
        raise UserError(
            f"model.pretrained: {path} has SHA-256 {found}, wanted is {options.pretrained_sha256}"
        )
    options.pretrained, options.pretrained_sha256 = str(path.absolute()), found


def find(name):
    """The path of a file, or of the weights of a Hugging Face repository in the local cache."""
    if os.path.isfile(name):  # not Path's, which raises for a name that no file can have
        return Path(name)
    if name.endswith(".safetensors") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"model.pretrained={name}: no such file, and no OWNER/NAME of Hugging Face")
    import huggingface_hub as hub  # not at the top: it takes half a second

    hub.logging.set_verbosity_error()  # else a line for each retry
    try:
        return Path(hub.hf_hub_download(name, FILE, local_files_only=True))
    except (OSError, ValueError):
        print(f"fetching {FILE} of {name} from Hugging Face", flush=True)
    try:
        return Path(hub.hf_hub_download(name, FILE))
    except (hub.errors.HTTPError, OSError, ValueError) as error:
        source = f"https://huggingface.co/{name}/resolve/main/{FILE}"
        raise UserError(
            f"model.pretrained={name}: it cannot be fetched ({type(error).__name__}); download "
            f"{source} elsewhere and name the file: --config.model.pretrained=PATH"
        ) from None


def load(path, variables):
    """{"params", "batch_stats"} of an encoder as float32 arrays, in the form of `variables`.

    File and encoder must have the same arrays with the same shapes; else UserError lists the
    differences. Of a 3x3 kernel only the taps that the encoder has are taken (`model.taps`).
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    wanted = flatten_dict(variables)
    names = {torch_name(key): key for key in wanted}
    found = read(path)
    wrong = [f"{name} is missing" for name in names.keys() - found.keys()]
    wrong += [f"{name} has no place" for name in found.keys() - names.keys()]
    loaded = {}
    for name in names.keys() & found.keys():
        array, shape = found[name].astype("float32"), wanted[names[name]].shape
        if len(shape) == 4:  # torch: [out, in, height, width], Flax: [height, width, in, out]
            shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
        cut = "conv" in name and shape[2] < 3
        whole = (*shape[:2], 3, 3) if cut else shape
        if array.shape != whole:
            wrong.append(f"{name} has shape {array.shape}, its place {whole}")
        elif cut:
            array = array[..., 1 : 1 + shape[2], 1 : 1 + shape[3]]
        loaded[names[name]] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if wrong:
        text = f"{path} does not fit the encoder: {first_five(sorted(wrong), '; ')}"
        raise UserError(f"model.pretrained: {text}")
    return unflatten_dict(loaded)


def read(path):
    """The arrays of a file by their names; raises UserError if it is damaged or of another type."""
    import ml_dtypes  # noqa: F401  safetensors needs it for bfloat16
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError) as error:
        text = f"{path} cannot be read as safetensors of {', '.join(FLOATS)}: {error}"
        raise UserError(f"model.pretrained: {text}") from None
    arrays = {name: array for name, array in found.items() if not UNUSED.fullmatch(name)}
    if unread := {array.dtype.name for array in arrays.values()} - {*FLOATS}:
        text = f"{path} has {', '.join(sorted(unread))}, must be of {', '.join(FLOATS)}"
        raise UserError(f"model.pretrained: {text}")
    return arrays


def torch_name(key):
    """("params", "layer1_0", "conv1", "kernel") -> "layer1.0.conv1.weight"."""
    _, *path, field = key
    fields = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join(path).replace("_", ".") + "." + fields.get(field, field)
