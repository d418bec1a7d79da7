"""The light CNN with the Euclidean distance of two embeddings as its answer, and contrastive loss.

    python train.py --config=configs/contrastive.py

The loss pulls the embeddings of "same" pairs together. It pushes those of "different" pairs apart
until their distance reaches model.margin (Hadsell et al. 2006). The answer is "same" below half of
the margin. 0 of 9,216 pairs wrong on seeds 0, 1 and 2; 172,768 parameters.
benchmarks/README.md says how long it takes and on which machine.
"""

from configs import light


def get_config():
    config = light.get_config()
    config.num_steps = 400
    config.eval_every_steps = 80
    config.model.head = "euclidean"
    return config
