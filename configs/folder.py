"""Pairs from a folder of your own images: one folder for each class, root/class/image.

    python train.py --config=configs/folder.py --config.data.path=root

No test image is in training. With --config.data.split=classes no test class is in training either:
use it when the network must compare classes that it has never seen. It takes six classes or more.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 400
    config.optimizer.learning_rate = 1e-3
    config.data.source = "folder"
    config.data.path = ""  # named on the command line
    config.data.image_size = 64
    config.data.channels = 3
    config.data.p_same = 0.5
    config.data.split = "disjoint"
    return config
