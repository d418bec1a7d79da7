"""Circles and squares that differ in nothing but their form; no test image is in training.

    python train.py --config=configs/heldout.py

Each shape has any size and place, is turned by any angle and has soft edges. Both shapes have the
same distribution of area. So no simple number gives the answer away. 0, 1 and 0 of 10,000 pairs
wrong on seeds 0, 1 and 2; 172,770 parameters.

The head matters here: with the mlp head of configs/default.py (--config.model.head=mlp) the same
800 steps left half of the answers wrong, 5,036 of 10,000.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import cosine


def get_config():
    config = cosine.get_config()
    config.num_steps = 800
    config.eval_every_steps = 200
    config.data.placement = "inside"
    config.data.continuous = True
    config.data.match_area = True
    config.data.antialias = True
    config.data.p_rotation = 1.0
    config.data.split = "disjoint"
    config.data.max_size = 11
    return config
