"""Figures of models and runs: functions from arrays to matplotlib figures.

    sparse-tube-vit figures KIND ...

writes them to files, see `__main__`.
"""

from sparse_tube_vit.figures.attention import attention
from sparse_tube_vit.figures.canvas import save
from sparse_tube_vit.figures.confusion import confusion, draw_confusions
from sparse_tube_vit.figures.curves import (
    accuracy_by_tokens,
    throughput,
    training_curves,
)
from sparse_tube_vit.figures.kernels import kernels
from sparse_tube_vit.figures.positions import position_similarity
from sparse_tube_vit.figures.timeline import timeline
from sparse_tube_vit.figures.tubes import tube_animation, tube_layout

__all__ = [
    "accuracy_by_tokens",
    "attention",
    "confusion",
    "draw_confusions",
    "kernels",
    "position_similarity",
    "save",
    "throughput",
    "timeline",
    "training_curves",
    "tube_animation",
    "tube_layout",
]
