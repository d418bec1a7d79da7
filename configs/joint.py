"""A small transformer over the patches of both images in one sequence; it is not symmetric.

    python train.py --config=configs/joint.py

0 of 9,216 pairs wrong on seeds 0, 1 and 2; 117,057 parameters.
README.md says how fast, and on what that was measured.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 1200
    config.eval_every_steps = 200
    config.optimizer.learning_rate = 1e-3
    config.model.fusion = "joint"
    config.model.encoder = "vit"
    config.model.stage_sizes = (2,)
    config.model.width = 64
    return config
