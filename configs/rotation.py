"""The founding data turned by any angle, with a larger smallest size.

    python train.py --config=configs/rotation.py

A small turned square is almost a circle; a large one must turn within the image.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.p_rotation = 1.0
    config.data.min_sizes = (6, 5)
    config.data.max_size = 11
    return config
