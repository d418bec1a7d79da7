"""Handwritten characters of 50 alphabets (Lake et al. 2015): the same character or not?

    python -c "import tensorflow_datasets as tfds; tfds.builder(
        'omniglot', file_format='array_record').download_and_prepare()"
    python train.py --config=configs/omniglot.py

The first command downloads and prepares the images once. Test characters are in no training image.
Any other image classification set of tensorflow_datasets works in the same way:
--config.data.path=NAME. All splits of a set are put together, and divided anew. An image that is in
two of them, as those of small1 and small2 here, is taken once. The recipe is that of
configs/folder.py.
"""

from configs import folder


def get_config():
    config = folder.get_config()
    config.data.source = "tfds"
    config.data.path = "omniglot"
    config.data.split = "classes"
    return config
