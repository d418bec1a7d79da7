"""Blobs: the same one or not, wherever it is, however large and turned; test blobs are unseen.

    python train.py --config=configs/identity.py

731 of 10,000 test pairs wrong; 218,666 parameters.
README.md says how fast, and on what that was measured.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.batch_size = 64
    config.optimizer.nominal_batch_size = 64
    config.num_steps = 6000
    config.eval_every_steps = 1000
    config.model.all_pairs_loss = True
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
