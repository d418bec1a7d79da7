"""Trains on five kinds of shape and on blobs; is tested on three kinds that it never saw.

    python train.py --config=configs/unseen.py

The test shows pentagons, stars and rings. Training and validation show circles, squares, triangles,
crosses, ellipses and 10,000 different blobs (random smooth shapes). Each blob is a class of its
own, and half of the images show a blob.

Without the blobs every network that was tried learnt to separate only the five kinds of training,
and called a star and a ring the same. The blobs give it a reason to tell all forms apart. The loss
over all pairs of a batch's images is needed too. The last stage has three layers. 4, 4 and 31 of
10,000 test pairs wrong on seeds 0, 1 and 2; 115,426 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.batch_size = 64
    config.optimizer.nominal_batch_size = 64
    config.num_steps = 4000
    config.eval_every_steps = 1000
    config.model.loss = "all_pairs"
    config.model.stage_sizes = (1, 1, 3)
    config.data.shapes = (
        *("circle", "square", "triangle", "cross", "ellipse"),
        *("pentagon", "star", "ring", "blob"),
    )
    config.data.held_out_shapes = ("pentagon", "star", "ring")
    config.data.min_sizes = 9 * (5,)
    config.data.same_as = "identity"
    config.data.num_identities = 10_000
    config.data.split = "shared"
    config.data.p_same = 0.5
    return config
