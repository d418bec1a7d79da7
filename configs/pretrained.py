"""The founding experiment, starting from ImageNet weights (torchvision's, 47 MB, fetched once).

    python train.py --config=configs/pretrained.py
    python train.py --config=configs/pretrained.py --config.model.frozen=True    # only the head

model.pretrained names a Hugging Face repository, or a .safetensors file with torchvision's names.
Arrays must fit in name and shape; at 32x32 pixels some kernels are cut to the weights that meet a
pixel. Images are normalised as for ImageNet, and grey is copied to three channels. The run keeps
the file's SHA-256. What this config reaches was not measured, because the weights could not be
fetched where it was written.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 400
    config.model.pretrained = "timm/resnet18.tv_in1k"
    config.optimizer.learning_rate = 1e-4
    return config
