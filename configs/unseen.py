"""Trains on five kinds of shape and is tested on three others.

    python train.py --config=configs/unseen.py

Each test pair is about kinds that training never showed; validation has the kinds of training.
Accuracy 1.0000 in validation, 0.8153 in the test, in 96 s. README.md says on what that was
measured.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.num_steps = 1600
    config.eval_every_steps = 400
    config.data.shapes = (
        *("circle", "square", "triangle", "cross", "ellipse"),
        *("pentagon", "star", "ring"),
    )
    config.data.held_out_shapes = ("pentagon", "star", "ring")
    config.data.min_sizes = 8 * (5,)
    config.data.p_same = 0.5
    return config
