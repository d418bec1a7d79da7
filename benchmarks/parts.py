"""Which parts a training step has, by JAX's profiler, and how long it takes without it.

    python benchmarks/parts.py --config=configs/default.py --config.batch_size=4096

On one batch that lies on the device: the mean time of a step, the most memory that the device held,
and the operations on which its time was spent. On CPU that is time of all threads together. Where
training images change at random, also the time of a step without that.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))

import timed

import data
import runtime
import train
from configs import default

CONFIG = config_flags.DEFINE_config_file("config", default.__file__, "Whose step.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps to measure.")
SHOWN = 12  # operations


def main(_):
    runtime.prepare(None)
    runtime.keep_freed_memory()
    data.check_splits(CONFIG.value)
    config = train.resolve(CONFIG.value)
    run, milliseconds = measure(config)
    device = jax.devices()[0]
    rate = 1000 * config.batch_size / milliseconds
    print(f"{device.device_kind}, batch {config.batch_size}, {config.model.dtype}")
    print(f"{milliseconds:.2f} ms a step, {rate:,.0f} pairs/s")
    memory = device.memory_stats() or {}
    if any(config.augment.values()):
        unchanged = ConfigDict(config.to_dict())
        unchanged.augment.update({key: 0.0 for key in unchanged.augment})
        _, without = measure(train.resolve(unchanged))
        print(f"{without:.2f} ms without the random changes of the images")
    if "peak_bytes_in_use" in memory:
        print(f"most memory on the device: {memory['peak_bytes_in_use'] / 1e6:,.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(STEPS.value)
        (path,) = Path(folder).rglob("*.xplane.pb")
        report(jax.profiler.ProfileData.from_file(str(path)))


def measure(config):
    """(a function that trains so many steps, milliseconds of a step)."""
    run, _ = timed.prepare(config)
    run(5)  # warms up
    return run, 1000 * run(STEPS.value)


def report(profile):
    """Prints the operations of a profile that took longest, in milliseconds of a step."""
    spent, count = Counter(), Counter()
    for plane in profile.planes:
        for line in plane.lines:
            if "Stream" in line.name or "XLAEigen" in line.name or "XLAPjRt" in line.name:
                for event in line.events:
                    if event.name.startswith("ThunkExecutor"):  # the whole, and waiting
                        continue
                    spent[event.name] += event.duration_ns / 1e6 / STEPS.value
                    count[event.name] += 1 / STEPS.value
    print(f"{sum(spent.values()):9.3f} ms of {sum(count.values()):,.0f} operations")
    for name, milliseconds in spent.most_common(SHOWN):
        print(f"{milliseconds:9.3f} ms {count[name]:7.1f} x  {name[:70]}")


if __name__ == "__main__":
    app.run(main)
