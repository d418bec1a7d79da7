"""Latency of an exported encoder: ONNX in onnxruntime beside StableHLO in JAX.

    python export.py --workdir=runs/folder --onnx
    python benchmarks/exported.py --export=runs/folder/export

The two take turns in one process; what counts is their ratio. No file of the project is needed.
"""

import statistics
import time
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from absl import app, flags

FOLDER = flags.DEFINE_string("export", None, "The folder that export.py wrote.", required=True)
ROUNDS = flags.DEFINE_integer("rounds", 40, "Rounds, in each of which both run.")


def main(_):
    folder = Path(FOLDER.value)
    exported = jax.export.deserialize((folder / "encoder.stablehlo").read_bytes())
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"))
    name, shape = session.get_inputs()[0].name, exported.in_avals[0].shape[1:]
    call = jax.jit(exported.call)
    for batch in (1, 64):
        images = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
        programs = {
            "exported.call": lambda x=images: np.asarray(exported.call(x)),
            "jax.jit(exported.call)": lambda x=images: np.asarray(call(x)),
            "onnxruntime": lambda x=images: session.run(None, {name: x})[0],
        }
        times = {key: [] for key in programs}
        for _ in range(3 + ROUNDS.value):
            for key, program in programs.items():
                began = time.perf_counter()
                program()
                times[key].append(1000 * (time.perf_counter() - began))
        medians = {key: statistics.median(values[3:]) for key, values in times.items()}
        for key, value in medians.items():
            ratio = value / medians["onnxruntime"]
            print(f"batch {batch}, {key}: {value:.2f} ms, {ratio:.2f} of onnxruntime")


if __name__ == "__main__":
    app.run(main)
