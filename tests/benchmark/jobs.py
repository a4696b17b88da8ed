"""Tiny jobs, for tests."""

import argparse
import dataclasses

from sparse_tube_vit.benchmark import gpu
from sparse_tube_vit.benchmark.process import Job

#: Arguments of `benchmark gpu`.
TINY = ["--variants", "Ti", "--frames", "20", "--size", "32", "--small", "2"]


def parse(out, *arguments):
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return parser.parse_args(["--out", str(out), *arguments])


def make_job(**changes):
    job = Job(
        implementation="ours",
        variant="Ti",
        frames=20,
        size=32,
        streams="joint",
        direction="train",
        small=2,
        largest=3,
        dtype="float32",
        options={},
        seconds=0.0,
    )
    return dataclasses.replace(job, **changes)
