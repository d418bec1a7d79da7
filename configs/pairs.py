"""Pairs that a CSV file lists, as verification data sets do: columns image1, image2, label.

    python train.py --config=configs/pairs.py --config.data.path=pairs.csv

The label is 1 for "same" and 0 for "different". Image paths are relative to the CSV file. A fourth
column, split, may say train, validation or test. Without it a hash of the pixels puts each image
into one split. Then a pair of images from two splits cannot be used: about a third of all pairs is
lost, and validation and test keep about 1 % each. So give the column if you can.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_steps = 400
    config.optimizer.learning_rate = 1e-3
    config.data.source = "pairs"
    config.data.path = ""  # named on the command line
    config.data.image_size = 64
    config.data.channels = 3
    config.data.split = "disjoint"
    return config
