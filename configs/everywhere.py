"""Circles and squares wherever they fit; no image of validation or test is in training.

    python train.py --config=configs/everywhere.py

There are 7,741 images, all different: 6,177 for training, 770 for validation, 794 for the test. One
shortcut is left: no circle has the same number of lit pixels as a square. 0 of 630,436 pairs wrong
on seed 0; 172,770 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import cosine


def get_config():
    config = cosine.get_config()
    config.num_steps = 800
    config.eval_every_steps = 200
    config.data.placement = "inside"
    config.data.split = "disjoint"
    return config
