"""Blobs: do two images show the same blob? Each is moved, scaled and turned; test blobs are unseen.

    python train.py --config=configs/identity.py

A blob is a random smooth shape, and each of the 10,000 identities is a different one. The test has
blobs that are in no training image. The loss is over all pairs of a batch's images. What limits the
result is training time: the accuracy stays near chance for most of the run and then rises, and at
the end it is no higher in training than in the test. 639 of 10,000 test pairs wrong on seed 0;
259,154 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.batch_size = 64
    config.optimizer.nominal_batch_size = 64
    config.num_steps = 6000
    config.eval_every_steps = 1000
    config.model.loss = "all_pairs"
    config.model.stage_sizes = (1, 1, 3)
    config.model.width = 24
    config.data.same_as = "identity"
    config.data.split = "classes"
    config.data.shapes = ("blob",)
    config.data.min_sizes = (5,)
    config.data.max_size = 10
    config.data.num_identities = 10_000
    config.data.p_same = 0.5
    return config
