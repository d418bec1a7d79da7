"""Circles and squares with nothing but their form to tell them apart, and all test images unseen.

    python train.py --config=configs/heldout.py

Any size and place, turned, anti-aliased, with the same distribution of area for both.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.placement = "inside"
    config.data.continuous = True
    config.data.match_area = True
    config.data.antialias = True
    config.data.p_rotation = 1.0
    config.data.split = "disjoint"
    config.data.max_size = 11
    return config
