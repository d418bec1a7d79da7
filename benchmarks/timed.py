"""A compiled training step on one batch that lies on the device, to be timed."""

import time

import jax

import data
import train_step
from model import create_model


def prepare(config):
    """Compiles the step: (run(count) -> seconds a step, the compiled program)."""
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    held = [train_step.create_state(config, model, optimizer)]
    train_steps = train_step.make_train_steps(config, model, optimizer)
    step = train_step.compile_steps(config, train_steps, held[0])
    batch = train_step.to_devices([data.make_batch(config, "train", 0)])
    held[0] = train_step.replicate(held[0])

    def run(count):
        began = time.perf_counter()
        for _ in range(count):
            held[0], metrics = step(held[0], batch)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / count

    return run, step
