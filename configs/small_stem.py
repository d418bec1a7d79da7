"""ResNet18 with a 3x3 stem of stride 1 and no max-pool, as is usual for small images; 16 channels.

    python train.py --config=configs/small_stem.py

0 of 9,216 pairs wrong on seeds 0, 1 and 2; 733,457 parameters.
README.md says how fast, and on what that was measured.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.encoder = "resnet18_small"
    config.model.width = 16
    return config
