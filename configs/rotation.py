"""The founding data with every shape turned by a random angle, and a larger smallest size.

    python train.py --config=configs/rotation.py

A small turned square looks almost like a circle, so the smallest sizes are larger here. A large
square must have room to turn within the image, so the largest sizes are smaller. 0 of 10,000 pairs
wrong on seed 0; 172,770 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import cosine


def get_config():
    config = cosine.get_config()
    config.num_steps = 400
    config.eval_every_steps = 100
    config.data.p_rotation = 1.0
    config.data.min_sizes = (6, 5)
    config.data.max_size = 11
    return config
