"""The assignment that this project redoes, at its full length: 20 epochs of 313 steps.

    python train.py --config=configs/seed.py

The learning rate is the assignment's, too. 0 of 9,216 pairs wrong on seed 0, at every validation
from step 313 on; 4,361,281 parameters. It took 12 min 52 s on two CPU cores beside other work.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 20 * 313
    config.eval_every_steps = 313
    config.optimizer.learning_rate = 1e-3
    return config
