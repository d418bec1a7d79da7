"""Both images along the channels of one light CNN: the simple baseline; it is not symmetric.

    python train.py --config=configs/two_channel.py

0 of 9,216 pairs wrong on seeds 0, 1 and 2; 97,665 parameters.
README.md says how fast, and on what that was measured.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 1000
    config.eval_every_steps = 200
    config.model.fusion = "two_channel"
    return config
