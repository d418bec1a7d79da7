"""The founding experiment from ImageNet's weights (torchvision's, 47 MB, fetched once).

    python train.py --config=configs/pretrained.py
    python train.py --config=configs/pretrained.py --config.model.frozen=True    # the head alone

What it reaches is not written here: its authors had no network to fetch the weights.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 400
    config.model.pretrained = "timm/resnet18.tv_in1k"
    config.optimizer.learning_rate = 1e-4
    return config
