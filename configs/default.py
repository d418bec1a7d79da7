"""The founding experiment: a circle or a square in each image, siamese ResNet18, 200 steps.

    python train.py --config=configs/default.py

This file has every key there is. There are only 96 different images, and the test repeats the
training: `python audit.py` shows it. 0 of 9,216 pairs wrong on seeds 0, 1 and 2; 4,361,281
parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from ml_collections import ConfigDict


def get_config():
    """Returns every key there is; a variant is this config plus a few lines."""
    config = ConfigDict()
    config.seed = 0  # of the initial weights and of every pair that is drawn
    config.batch_size = 32  # pairs per step, over all devices
    config.num_steps = 200  # batches to train on
    config.log_every_steps = 20  # steps between two points of the training curves
    config.eval_every_steps = 40  # steps between two validations, each followed by a checkpoint
    config.steps_per_execution = 1  # steps computed by one call; lowered to divide the three above

    config.data = data_config()
    config.augment = augment_config()

    config.model = ConfigDict()
    config.model.encoder = "resnet18"  # resnet18_small: 3x3 stem, no pool; cnn: plain layers
    config.model.frozen = False  # True: the encoder is not trained, only the head
    config.model.pretrained = ""  # a run; of resnet18 also a .safetensors file or a repository
    config.model.pretrained_sha256 = ""  # of these weights; empty: any, whose checksum is saved
    config.model.stage_sizes = (2, 2, 2, 2)  # blocks per stage; of a cnn: layers
    config.model.width = 64  # channels of the first stage; each later stage has twice as many
    config.model.views = 1  # 3: except in training steps, embeddings are means over moved copies
    config.model.head = "mlp"  # hidden layer on |e1 - e2|; cosine; euclidean: contrastive loss
    config.model.head_features = 256  # units of the mlp head's hidden layer
    config.model.loss = "pairs"  # of the drawn pairs; all_pairs: of every two images of a batch;
    # supcon: shapes embeddings, then whitens them (model.py); for a cosine head, not frozen
    config.model.margin = 1.0  # distance of "different" embeddings where the contrastive loss is 0
    config.model.dtype = "auto"  # of computation: float32, bfloat16; auto: bfloat16 except on CPU

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam, adamw or sgd (Nesterov)
    config.optimizer.learning_rate = 5e-4  # at the first step after the warm-up
    config.optimizer.warmup = 0.0  # share of the steps in which the learning rate rises from 0
    config.optimizer.final_learning_rate = 1e-5  # at the last step, after a cosine schedule
    config.optimizer.momentum = 0.937  # of sgd; of adam and adamw the first beta
    config.optimizer.beta2 = 0.999  # of adam and adamw: decay rate of the second moment
    config.optimizer.weight_decay = 5e-4  # L2: this times the parameters is added to the gradient;
    # of adamw: kernels shrink by this times the learning rate, whatever their gradient
    config.optimizer.nominal_batch_size = 32  # pairs per update; smaller batches add up to it

    config.eval = ConfigDict()
    config.eval.threshold = 0.5  # probability from which on the answer is "same"
    config.eval.best = "loss"  # best checkpoint: by loss, eer or roc_auc of validation; or last
    config.eval.num_pairs = 10_000  # pairs to sample where there are too many to evaluate all

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_latest = 2  # newest checkpoints to keep
    config.checkpoint.keep_best = 5  # checkpoints to keep that are the best by eval.best
    return config


def data_config():
    """The images: config.data."""
    data = ConfigDict()
    data.source = "shapes"  # drawn; or from files: folder (class/image), pairs (CSV), tfds
    data.path = ""  # of the folder or CSV file; name or folder of a tfds set; shapes: empty
    data.image_size = 32  # pixels: height and width; of files 0: found from the images
    data.channels = 1  # 1: grey; of files also 3: colour, or 0: found from the images
    data.same_as = "class"  # what "same" means: class: kind of shape; identity: which blob
    data.p_same = 0.0  # probability of a "same" pair; 0: both images are drawn independently
    data.images_per_class = 0  # of a training batch, an even number; 0: pairs are drawn one by one
    data.turned_classes = 1  # 4: quarter turns of a class are further classes; 8: mirrors, too
    data.overlaid_classes = 0.0  # share of the classes of a batch that are two laid over each other
    data.split = "shared"  # all splits draw alike; disjoint: no common image; classes: no class;
    # groups, of files: no class, and of the test no group (the class's path but its last part)
    data.update(file_keys())
    data.update(shape_keys())
    return data


def file_keys():
    """The part of config.data that only files use."""
    data = ConfigDict()
    data.class_level = 0  # 0: the class is the folder of an image; 1: the first folder of its path
    data.fit = "squeeze"  # into the square: squeeze; pad: with the ground; crop: the middle
    data.white = 0  # the value of white in images of over 8 bits; 0: found from the whole set
    data.folds = 0  # equal parts of the images, classes or groups: one is the test; 0: none
    data.fold = 0  # which of them, from 0 to data.folds - 1; folds.py trains with each
    data.splits_of = ""  # folder of a run whose images keep the split that they have there
    return data


def shape_keys():
    """The part of config.data that only drawn shapes use."""
    data = ConfigDict()
    data.shapes = ("circle", "square")  # each with the same probability
    data.held_out_shapes = ()  # those of data.shapes that only the test shows
    data.num_identities = 1  # number of different blobs
    data.min_sizes = (4, 2)  # pixels, for each shape: smallest radius or half side
    data.max_size = 15  # pixels: all sizes are below it
    data.placement = "margin"  # centre >= max_size from the border; inside: where it fits
    data.continuous = False  # True: sizes and centres are real numbers; False: whole numbers
    data.match_area = False  # True: all shapes have the same distribution of lit area
    data.antialias = False  # True: soft edges; False: a pixel is lit or not
    data.p_rotation = 0.0  # probability that a shape is turned about its own centre, by any angle
    return data


def augment_config():
    """How training images are changed at random in each step: config.augment. All 0: not at all."""
    augment = ConfigDict()
    augment.rotation = 0.0  # degrees: angles are uniform from -rotation to rotation
    augment.scale = 0.0  # height and width are each multiplied by e**(-scale) to e**scale
    augment.shear = 0.0  # tangent of the angle by which vertical lines lean, in either direction
    augment.shift = 0.0  # share of the side: largest shift along each axis
    augment.p_flip = 0.0  # probability that left and right are exchanged
    augment.blur = 0.0  # pixels: largest standard deviation of a Gaussian blur
    augment.contrast = 0.0  # contrast is multiplied by e**(-contrast) to e**contrast
    augment.brightness = 0.0  # grey levels: at most so many are added to all pixels, or subtracted
    augment.noise = 0.0  # grey levels: largest standard deviation of the noise of each pixel
    augment.p_erase = 0.0  # probability that a rectangle is filled with the mean colour
    augment.p_unchanged = 0.0  # probability that none of this is done to an image
    return augment
