"""Compiled programs that lie beside, a preflight of one, and a config of Kinetics."""

import itertools
import pathlib

from sparse_tube_vit.config import default_config, stream
from sparse_tube_vit.tpu import hlo
from sparse_tube_vit.tpu.chips import GIB, Topology
from sparse_tube_vit.tpu.cost import Network, estimate
from sparse_tube_vit.tpu.preflight import Memory, Preflight
from sparse_tube_vit.training.utilization import timed_keys

PROGRAMS = pathlib.Path(__file__).parent / "programs"


def read(name):
    return hlo.parse((PROGRAMS / f"{name}.hlo").read_text())


def kinetics():
    config = default_config()
    config.total_steps = 1000
    config.data_dir = "/nowhere"
    config.optimizer.warmup_steps = 10
    videos = {"kind": "video", "dataset": "kinetics400", "head": "kinetics400"}
    images = {"kind": "image", "dataset": "imagenet2012", "head": "imagenet"}
    config.streams.video = stream(**videos, batch_size=32)
    config.streams.image = stream(**images, batch_size=64)
    return config


def found(**changes):
    """A preflight of the sharded program of programs/make.py."""
    topology = Topology.parse("v5e:2x4")
    axes = {"data": 2, "fsdp": 4, "tensor": 1}
    places = list(itertools.product(range(2), range(4)))
    program = read("sharded")
    values = {
        "topology": topology,
        "mesh": axes,
        "batch_shares": 2,
        "compile_seconds": 1.0,
        "memory": Memory(GIB, 2 * GIB, GIB // 2, 4 * GIB, GIB // 4, 15.75 * GIB),
        "estimate": estimate(program, Network(topology.chip, (2, 4), axes, places)),
        "model_flops": 8 * 3 * 24 * 2 * 2048**3,
        "batch": {"video": 32},
        "steps": 3600,
        "config": timed_keys(kinetics()),
    }
    return Preflight(**values | changes)
