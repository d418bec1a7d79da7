"""Both images as two channels of one light CNN: the simple baseline.

    python train.py --config=configs/two_channel.py

It is not symmetric: pair (b, a) may get another answer than pair (a, b). Nothing can be computed
once for each image, so many comparisons are expensive. 0 of 9,216 pairs wrong on seeds 0, 1 and 2;
97,665 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 1000
    config.eval_every_steps = 200
    config.model.fusion = "two_channel"
    return config
