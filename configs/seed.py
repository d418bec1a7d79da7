"""The assignment that this project redoes, at its length, 20 epochs of 313 batches, and its rate.

python train.py --config=configs/seed.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 20 * 313
    config.eval_every_steps = 313
    config.optimizer.learning_rate = 1e-3
    return config
