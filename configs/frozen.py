"""The light CNN with its encoder left as it was initialised; only the head on |f1 - f2| is trained.

    python train.py --config=configs/frozen.py

What random filters tell of a shape is little. 3,334, 3,304 and 2,650 of 9,216 pairs wrong on seeds
0, 1 and 2; 130,673 parameters.
README.md says how fast, and on what that was measured.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 1000
    config.eval_every_steps = 200
    config.model.frozen = True
    return config
