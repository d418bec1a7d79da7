"""The full length of the assignment that this project redoes: 20 epochs of 313 batches.

python train.py --config=configs/seed.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 20 * 313
    config.eval_every_steps = 313
    return config
