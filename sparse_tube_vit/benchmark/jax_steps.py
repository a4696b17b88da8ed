"""Steps of this package's model: with sparse tubes, or dense ones as ViViT has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sparse_tube_vit.benchmark.implementations import CLASSES, IMPLEMENTATIONS
from sparse_tube_vit.benchmark.process import Job, Step
from sparse_tube_vit.config import default_config, stream, validate
from sparse_tube_vit.distributed.sharding import make_mesh
from sparse_tube_vit.models.flops import forward_flops, training_flops
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.models.variants import VARIANTS
from sparse_tube_vit.training.program import Program


def make_config(job: Job, batch: int):
    """Returns the config of a job's training at a batch size."""
    config = default_config()
    config.total_steps = 100_000
    config.clip.update(frames=job.frames, size=job.size)
    config.model.update(**VARIANTS[job.variant], dtype=job.dtype, **job.options)
    config.model.tubes = IMPLEMENTATIONS[job.implementation].tubes
    kinds = ("video", "image") if job.streams == "joint" else ("video",)
    for kind in kinds:
        config.streams[kind] = stream(
            kind=kind, dataset="", head=f"{kind}s", batch_size=batch
        )
    validate(config)
    return config


def flops_per_clip(job: Job) -> int:
    """Returns the FLOPs of a job by formula for one clip, and one image if joint."""
    config = make_config(job, 1)
    model = make_model(config, CLASSES)
    if job.direction == "forward":
        return sum(forward_flops(model, job.clip, "videos").values())
    each = config.streams.values()
    return sum(training_flops(config, model, stream) for stream in each)


class JaxSteps:
    """Train steps as training runs them, and forward passes, on one device.

    Attributes:
        device: Name of the device and versions, for the report.
        limit_bytes: Memory that jax may use of it, or None.
        fixed_bytes: Memory of the state, or of the parameters alone.
    """

    def __init__(self, job: Job):
        self.job, self.chosen = job, jax.devices()[0]
        self.device = {
            "kind": self.chosen.device_kind,
            "platform": self.chosen.platform,
            "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        }
        self.limit_bytes = (self.chosen.memory_stats() or {}).get("bytes_limit")
        if job.direction == "train":
            program = self._program(job.small)
            self._state = program.init({})
        else:
            self._model = make_model(make_config(job, job.small), CLASSES)
            key = jax.device_put(jax.random.key(0), self.chosen)
            self._state = init_params(self._model, key, job.clip)
        self.fixed_bytes = sum(x.nbytes for x in jax.tree.leaves(self._state))

    def prepare(self, batch: int) -> Step:
        """Returns the compiled step for batches of a number of clips."""
        prepare = self._train if self.job.direction == "train" else self._forward
        return prepare(batch)

    def release(self) -> None:
        """Frees the memory of compiled steps."""
        jax.clear_caches()

    def traced(self, folder: str):
        """Writes a trace of the body for XProf and Perfetto."""
        return jax.profiler.trace(folder)

    def _program(self, batch):
        config = make_config(self.job, batch)
        return Program(config, CLASSES, make_mesh(config, [self.chosen]))

    def _train(self, batch):
        program = self._program(batch)
        if any(x.is_deleted() for x in jax.tree.leaves(self._state)):
            self._state = program.init({})  # a step that failed took it
        compiled = program.lower().compile()
        batches = jax.tree.map(_example, program.batches)

        def run(steps):
            for _ in range(steps):
                with jax.set_mesh(program.mesh):
                    self._state, metrics = compiled(self._state, batches)
            jax.block_until_ready(metrics)
            if not np.isfinite(float(metrics["loss"])):
                raise FloatingPointError("the loss is not finite")

        return Step(run, self._memory(compiled))

    def _forward(self, batch):
        shape = jax.ShapeDtypeStruct((batch, *self.job.clip, 3), jnp.uint8)
        videos = jax.device_put(_example(shape), self.chosen)

        def forward(params, videos):
            return self._model.apply({"params": params}, videos, "videos")

        compiled = jax.jit(forward).lower(self._state, videos).compile()

        def run(steps):
            for _ in range(steps):
                logits = compiled(self._state, videos)
            jax.block_until_ready(logits)

        return Step(run, self._memory(compiled))

    def _memory(self, compiled):
        # On CPUs, XLA's plan leaves out what its libraries allocate themselves.
        on_cpu = self.chosen.platform == "cpu"
        return None if on_cpu else functools.partial(_planned, compiled, self.chosen)


make_steps = JaxSteps


def _example(shape):
    """Returns a batch of one random clip many times, or of ones, on the device."""
    each = np.ones(shape.shape[1:], shape.dtype)
    if shape.dtype == jnp.uint8:
        each = np.random.default_rng(0).integers(0, 256, each.shape, np.uint8)
    repeat = functools.partial(jnp.broadcast_to, shape=shape.shape)
    return jax.jit(repeat, out_shardings=shape.sharding)(each)


def _planned(compiled, device):
    """Returns the bytes that a program holds at most by XLA's plan.

    Where a program of the cache has no plan, the most that the process held so far.
    """
    plan = compiled.memory_analysis()
    if plan is None or not plan.temp_size_in_bytes:
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    arguments = plan.argument_size_in_bytes - plan.alias_size_in_bytes
    return arguments + plan.output_size_in_bytes + plan.temp_size_in_bytes
