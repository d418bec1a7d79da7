"""The light CNN with an untrained encoder: only the head on |e1 - e2| is trained.

    python train.py --config=configs/frozen.py

The encoder keeps its random initial weights. It shows how little random filters tell about a shape.
3,210, 3,206 and 3,102 of 9,216 pairs wrong on seeds 0, 1 and 2; 206,049 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 1000
    config.eval_every_steps = 200
    config.model.frozen = True
    return config
