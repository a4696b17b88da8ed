"""Trains what scaling up made: last layers, gate, pooling and heads (paper 3.6).

    python -m sparse_tube_vit.scale_up --small DIR --big DIR|FILE --workdir CREATED
    python -m sparse_tube_vit.train --config configs/scale_up.py:CREATED --workdir DIR

Streams, clips and evaluations are those of the small model; 50,000 steps are the
paper's (table 9), the warm-up is ours. Not run at this size.
"""

from sparse_tube_vit import checkpoints
from sparse_tube_vit.config import from_json


def get_config(created: str):
    config = from_json(checkpoints.read_run(*checkpoints.locate(created))["config"])
    config.init["from"] = created
    config.total_steps = 50_000
    config.optimizer.update(learning_rate=1e-5, warmup_steps=2000, weight_decay=1e-5)
    return config
