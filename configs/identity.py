"""Blobs: the same one or not, wherever it is, however large and turned; test blobs are unseen.

    python train.py --config=configs/identity.py

Accuracy 0.8939 over 10,000 test pairs, in 5 min. README.md says on what that was measured.
"""

from configs.heldout import get_config as heldout


def get_config():
    config = heldout()
    config.num_steps = 3200
    config.eval_every_steps = 800
    config.model.width = 32
    config.data.same_as = "identity"
    config.data.split = "classes"
    config.data.shapes = ("blob",)
    config.data.min_sizes = (5,)
    config.data.max_size = 10
    config.data.num_identities = 10_000
    config.data.p_same = 0.5
    return config
