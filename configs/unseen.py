"""Trains on five kinds of shape and on blobs, and is tested on three other kinds.

    python train.py --config=configs/unseen.py

Each test pair is about kinds that training never showed: pentagons, stars and rings. Validation has
the classes of training: the five kinds, and 10,000 blobs of which each is one. Without blobs, or
with a loss of the drawn pairs alone, the network learns to tell no more than the kinds it saw. 2,
12 and 51 of 10,000 test pairs wrong on seeds 0, 1 and 2; 97,394 parameters.
README.md says how fast, and on what that was measured.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.batch_size = 64
    config.optimizer.nominal_batch_size = 64
    config.num_steps = 4000
    config.eval_every_steps = 1000
    config.model.all_pairs_loss = True
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
