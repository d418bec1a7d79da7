"""The founding experiment: a circle or a square in each image, siamese ResNet18, 200 steps.

    python train.py --config=configs/default.py

0 of 9,216 pairs wrong on seeds 0, 1 and 2; 4,361,281 parameters.
README.md says how fast, and on what that was measured.
"""

from ml_collections import ConfigDict


def get_config():
    """Returns every key there is; a variant is this config plus a few lines."""
    config = ConfigDict()
    config.seed = 0  # of the weights and of every pair ever drawn
    config.batch_size = 32  # pairs per step, over all devices
    config.num_steps = 200  # batches to train on
    config.log_every_steps = 20  # steps between two points of the training curves
    config.eval_every_steps = 40  # steps between two validations, each followed by a checkpoint
    config.steps_per_execution = 1  # computed by one call; lowered to divide the three above

    config.data = data_config()

    config.model = ConfigDict()
    config.model.fusion = "siamese"  # stack: both along the channels; joint: one sequence (vit)
    config.model.encoder = "resnet18"  # resnet18_small: 3x3 stem, no pool; cnn: plain layers; vit
    config.model.frozen = False  # whether the encoder stays as it is and only the head is trained
    config.model.pretrained = ""  # .safetensors file or Hugging Face repository, for resnet18
    config.model.pretrained_sha256 = ""  # of that file; empty: any, and the run keeps which
    config.model.stage_sizes = (2, 2, 2, 2)  # blocks, or layers of a cnn, per stage; a vit has one
    config.model.patch_size = 16  # pixels, of a vit
    config.model.width = 64  # channels of the first stage, doubled by every further one
    config.model.head = "mlp"  # on |f1 - f2|; cosine; euclidean: with contrastive loss
    config.model.head_features = 256  # units of the mlp's hidden layer
    config.model.all_pairs_loss = False  # loss over all pairs of a batch's images, not the drawn
    config.model.margin = 1.0  # distance that the contrastive loss wants between different images
    config.model.dtype = "auto"  # of computation: float32, bfloat16, or auto: bfloat16 off CPU

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # adam or sgd (Nesterov)
    config.optimizer.learning_rate = 5e-4  # at the first step
    config.optimizer.final_learning_rate = 1e-5  # where its cosine over all updates ends
    config.optimizer.momentum = 0.937  # of SGD; the first beta of Adam
    config.optimizer.beta2 = 0.999  # of Adam's second moment
    config.optimizer.weight_decay = 5e-4  # L2: times the parameters, added to the gradient
    config.optimizer.nominal_batch_size = 32  # pairs; smaller batches accumulate up to it

    config.eval = ConfigDict()
    config.eval.threshold = 0.5  # "same" where the probability reaches it
    config.eval.num_pairs = 10_000  # pairs sampled where the space is too large to enumerate

    config.checkpoint = ConfigDict()
    config.checkpoint.keep_latest = 2  # newest checkpoints kept
    config.checkpoint.keep_best = 5  # checkpoints of lowest validation loss kept
    return config


def data_config():
    """The images: config.data."""
    data = ConfigDict()
    data.source = "shapes"  # or files: folder (class/image), pairs (CSV), tfds
    data.path = ""  # of the folder or CSV file; name or folder of a tfds set
    data.image_size = 32  # pixels, height and width
    data.channels = 1  # 1: grey, 3: colour, for files alone
    data.same_as = "class"  # kind of shape; picture: pixels; identity: of a blob
    data.p_same = 0.0  # probability of "same"; 0: two images drawn independently
    data.split = "shared"  # one distribution; disjoint: no image in two; classes: no class

    data.shapes = ("circle", "square")  # each with the same probability
    data.held_out_shapes = ()  # of these, drawn by test and by no other split
    data.num_identities = 1  # how many different blobs
    data.min_sizes = (4, 2)  # pixels, per shape: smallest radius or half side
    data.max_size = 15  # pixels: sizes stay below it
    data.placement = "margin"  # centres: max_size off the border; inside: where it fits; centre
    data.continuous = False  # sizes and centres: real numbers instead of whole ones
    data.match_area = False  # the same distribution of lit area for all shapes
    data.antialias = False  # grey edges; otherwise a pixel is lit or not
    data.p_rotation = 0.0  # probability of a turn about the shape's own centre
    data.max_angle = 180.0  # degrees: turns are uniform from -max_angle to max_angle
    data.p_mirror = 0.0  # probability that left and right are exchanged
    data.p_outline = 0.0  # probability of an outline instead of a filled shape
    data.outline_width = 2.0  # pixels
    data.foreground_greys = (255, 255)  # lowest and highest grey level of the shape
    data.background_greys = (0, 0)  # the same of the ground
    data.noise = 0.0  # grey levels: standard deviation of each pixel
    return data
