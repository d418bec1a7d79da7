"""The founding data turned by any angle, with a larger smallest size.

    python train.py --config=configs/rotation.py

A small turned square is almost a circle; a large one must turn within the image. 0 of 10,000 pairs
wrong; 97,394 parameters.
README.md says how fast, and on what that was measured.
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
