"""Pairs that a file lists, as verification data sets do.

    python train.py --config=configs/pairs.py --config.data.path=pairs.csv

A CSV file has the columns image1, image2 and label, which is 1 for "same" and 0 for "different".
Image paths are relative to the file. A fourth column, split, may say train, validation or test.
Without it no image is in two splits: pairs that are connected by common images stay together, and
each such group is in one split. Where one group has nearly all pairs, it is cut: then about a third
of the pairs, which join images of two splits, is left out, and validation and test keep about 1 %
each. The first lines that are printed say so. Give the column then. Instead of it a column fold may
have the numbers 0, 1, 2 and so on: the last fold is the test, the one before the validation.

The pairs.txt of "Labeled Faces in the Wild" is read as it is, in the folder of its people. Of its
ten folds the last is the test, the one before the validation.

The recipe is that of configs/folder.py, but for what takes classes: pairs are drawn one by one, and
the loss is of these pairs.
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.data.source = "pairs"
    config.data.p_same = 0.0
    config.data.images_per_class = 0
    config.data.turned_classes = 1
    config.data.overlaid_classes = 0.0
    config.model.loss = "pairs"
    return config
