"""Steps of this package's model."""

import jax
import pytest

from sparse_tube_vit.benchmark import jax_steps
from sparse_tube_vit.benchmark.measuring import job_flops
from sparse_tube_vit.benchmark.process import rows
from sparse_tube_vit.models.variants import VARIANTS
from tests.benchmark.jobs import make_job


@pytest.fixture
def tiny(monkeypatch):
    sizes = {"depth": 1, "width": 48, "mlp_dim": 64, "heads": 2}
    monkeypatch.setitem(VARIANTS, "Ti", sizes)


@pytest.mark.parametrize(
    "direction", [pytest.param("train", marks=pytest.mark.slow), "forward"]
)
def test_our_steps(tiny, direction):
    largest = 3 if direction == "forward" else 0
    job = make_job(direction=direction, streams="video", largest=largest)
    steps = jax_steps.make_steps(job)
    measured = [*rows(job, steps)]
    assert [row["batch"] for row in measured] == [2, 3][: 1 + bool(job.largest)]
    if direction == "train":
        assert int(steps._state.step) == sum(row["steps"] + 1 for row in measured)
    for row in measured:
        assert row["compile_seconds"] > row["step_seconds"] > 0


def test_memory_of_a_gpu_is_that_of_the_compiled_plan(tiny):
    steps = jax_steps.make_steps(make_job(direction="forward", streams="video"))
    model, device = steps._model, steps.chosen

    def planned(batch):
        videos = jax.numpy.zeros((batch, 20, 32, 32, 3), "uint8")
        apply = jax.jit(lambda p, x: model.apply({"params": p}, x, "videos"))
        compiled = apply.lower(steps._state, videos).compile()
        return jax_steps._planned(compiled, device)

    clip = 20 * 32 * 32 * 3
    assert steps.fixed_bytes + clip < planned(1) < steps.fixed_bytes + 100 * clip
    assert planned(9) - planned(1) > 8 * clip


@pytest.mark.slow
def test_a_step_that_failed_does_not_keep_the_next_from_training(tiny):
    steps = jax_steps.make_steps(make_job(streams="video"))
    jax.tree.map(lambda x: x.delete(), steps._state)  # it was given away
    steps.prepare(2).run(1)
    assert int(steps._state.step) == 1


def test_flops_of_a_step(tiny):
    """Products counted by hand: 1, 1, 2 and 4 tokens of the four tubes."""
    forward = job_flops(make_job(direction="forward", streams="video"))
    video = job_flops(make_job(streams="video"))
    joint = job_flops(make_job())
    assert video == 3 * forward and joint > video
    d, m, n = 48, 64, 1 + 1 + 2 + 4
    block = n * (4 * d * d + 2 * d * m) + 2 * n * n * d
    stem = 3 * (2 * 512 * 24 + 4 * 256 * 12 + 2 * 576 * 48 + 4 * 256 * 48)
    pooling, head = (2 * n + 2) * d * d + 2 * n * d, d * 400
    assert forward == 2 * (stem + block + pooling + head)
