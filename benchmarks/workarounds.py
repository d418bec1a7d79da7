"""What each detour for speed still pays: the training step without it, in turns with the whole.

    python benchmarks/workarounds.py --config=configs/default.py --rounds=5

One process holds a compiled step for each row. A ratio above 1 says that the detour pays.
"""

import ctypes
import statistics
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import jax
from absl import app, flags
from flax import linen as nn
from jax import lax
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))

import timed

import convolution
import data
import model
import runtime
import train
from configs import default

CONFIG = config_flags.DEFINE_config_file("config", default.__file__, "Whose step.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps a turn, or as many as a second takes.")


def gradient_by_xla(which, *arguments):
    """A gradient of a convolution as XLA computes it: 0 that of x, 1 that of the kernel."""
    x, kernel, gradient, stride, pad = arguments
    options = (stride, stride), [(pad, pad)] * 2
    one = [
        lambda x: convolution.convolve_by_xla(x, kernel, *options),
        lambda kernel: convolution.convolve_by_xla(x, kernel, *options),
    ][which]
    return jax.linear_transpose(one, (x, kernel)[which])(gradient)[0]


def input_gradient(gradient, kernel, shape, stride, pad):
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return gradient_by_xla(0, x, kernel, gradient, stride, pad)


def kernel_gradient(x, gradient, kernel, stride, pad):
    return gradient_by_xla(1, x, kernel, gradient, stride, pad)


def max_pool(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


WITHOUT = {  # what stands in for the detour while its step is compiled: (module, name, value)
    "multiply_each_pixel": (convolution, "SMALL_OUTPUT", 0),
    "sum_taps": (convolution, "FEW_WEIGHTS", 0),
    "input_gradient": (convolution, "input_gradient", input_gradient),
    "kernel_gradient": (convolution, "kernel_gradient", kernel_gradient),
    "parts of a kernel's gradient": (convolution, "CACHE_BYTES", 2**60),
    "barriers": (lax, "optimization_barrier", lambda x: x),
    "all of convolution.py": (model, "convolve", convolution.convolve_by_xla),
    "max_pool": (model, "max_pool", max_pool),
    "convolve_copies": (model, "convolve_copies", convolution.convolve),
    "BatchNorm over one axis": (model, "BatchNorm", nn.BatchNorm),
    "flat gradient norm": (jax.numpy, "ravel", lambda x: x),
}


def main(_):
    runtime.prepare(None)
    runtime.keep_freed_memory()
    data.check_splits(CONFIG.value)
    config = train.resolve(CONFIG.value)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"{device}, jax {jax.__version__}, batch {config.batch_size}, {config.model.dtype}")
    whole, program = timed.prepare(config)
    steps = {"whole": whole, "keep_freed_memory": partial(give_memory_back, whole)}
    for name, (module, attribute, value) in WITHOUT.items():
        with mock.patch.object(module, attribute, value):
            jax.clear_caches()
            step, other = timed.prepare(config)
            if other.as_text() != program.as_text():  # else the detour is not in this network
                steps[name] = step
    times = {name: [] for name in steps}
    counts = {name: max(1, min(STEPS.value, int(1 / run(1)))) for name, run in steps.items()}
    for _ in range(ROUNDS.value):
        for name, run in steps.items():
            times[name].append(run(counts[name]))
    whole = times.pop("whole")
    print(f"{'whole':<30}{1000 * statistics.median(whole):8.1f} ms a step")
    for name, found in times.items():
        ratio = statistics.median(one / other for one, other in zip(found, whole, strict=True))
        print(f"without {name:<30}{ratio:6.2f}")


def give_memory_back(run, count):
    """run(count) with glibc's own settings, which give freed memory back to the kernel."""
    libc = ctypes.CDLL(None)
    libc.mallopt(runtime.M_TRIM_THRESHOLD, 128 * 1024)
    libc.mallopt(runtime.M_MMAP_MAX, 65536)
    libc.malloc_trim(0)
    try:
        return run(count)
    finally:
        runtime.keep_freed_memory()


if __name__ == "__main__":
    app.run(main)
