"""Pairs from a folder of your own images: one folder for each class, root/class/image.

    python train.py --config=configs/folder.py --config.data.path=root

The class of an image is the path of its folder: root/Greek/character01/1.png is of the class
Greek/character01. --config.data.class_level=1 takes the first folder of the path instead, for sets
as root/person/session/image. Folders root/train, root/val and root/test are the splits. Names that
begin with a dot are skipped, and classes of one image left out.

Size and colours are found from the images: half of their median shorter side, a multiple of 16 from
32 to 64 pixels; --config.data.image_size=96 sees finer detail, and takes longer.
--config.data.fit says how an image becomes a square: squeeze, pad (with the median of its border)
or crop (the middle). Images of over 8 bits, as of microscopes, have one white for the whole set:
the smallest of 255, 1,023, 4,095, 16,383 and 65,535 that no value exceeds, or --config.data.white.

No test image is in training. With --config.data.split=classes no test class is in training either
(it takes six classes or more), with groups no group of classes, such as an alphabet: use these when
the network must compare classes that it has never seen.

The recipe is the same for all sets. A batch has 32 classes with 4 images of each. Three in four
images are turned, scaled, leant and moved a little. Quarter turns of a class and its mirror image
are classes of their own, and 3 classes in 10 are two laid over each other: a network that compares
classes it has never seen needs many to learn from. Where things lie in any direction, as under a
microscope, say --config.data.turned_classes=1 and --config.augment.rotation=180. The embeddings
learn by the supervised contrastive loss. Except in a training step, an embedding is the mean of
three, of the image and of two copies moved a little, and it is whitened: directions in which images
of one class differ much count less. The best checkpoint is the last: with split=disjoint,
validation has images of the classes of training, which says little of new classes.
--config.eval.best=eer chooses by validation.
benchmarks/README.md says how good and how fast it is.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 64  # pairs: 32 classes of 4 images
    config.optimizer.nominal_batch_size = 64
    config.num_steps = 1500
    config.log_every_steps = 50
    config.eval_every_steps = 300
    config.data.source = "folder"
    config.data.path = ""  # named on the command line
    config.data.image_size = 0
    config.data.channels = 0
    config.data.p_same = 0.5
    config.data.split = "disjoint"
    config.data.images_per_class = 4
    config.data.turned_classes = 8
    config.data.overlaid_classes = 0.3
    config.augment.rotation = 15.0
    config.augment.scale = 0.2
    config.augment.shear = 0.2
    config.augment.shift = 0.1
    config.augment.p_unchanged = 0.25
    config.model.encoder = "cnn"
    config.model.stage_sizes = (2, 2, 2)
    config.model.width = 24
    config.model.views = 3
    config.model.head = "cosine"
    config.model.loss = "supcon"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup = 0.03
    config.optimizer.weight_decay = 2.0
    config.optimizer.momentum = 0.9
    config.optimizer.beta2 = 0.99
    config.eval.best = "last"
    return config
