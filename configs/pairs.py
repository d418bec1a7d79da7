"""Pairs that are given, as verification sets give them: a CSV of image1, image2, label.

    python train.py --config=configs/pairs.py --config.data.path=pairs.csv

A label is 1 or 0, same or different; image paths are relative to the CSV file. A further column,
split, says train, validation or test; without it images are divided by a hash of their pixels, and
pairs across that division are left out.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 400
    config.optimizer.learning_rate = 1e-3
    config.data.source = "pairs"
    config.data.path = ""  # named on the command line
    config.data.image_size = 64
    config.data.channels = 3
    config.data.split = "disjoint"
    return config
