"""Shapes wherever they fit, and no image of validation or test in training.

    python train.py --config=configs/everywhere.py

EXPECTED
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.placement = "inside"
    config.data.split = "disjoint"
    return config
