"""Timing of a step that trains the last layers, beside one that trains all."""

import statistics
import time

import jax
import numpy as np

from sparse_tube_vit.checkpoints.scaling import scale_config
from sparse_tube_vit.config import default_config, stream, validate
from sparse_tube_vit.distributed.cpu import usable_cores
from sparse_tube_vit.models.flops import step_flops
from sparse_tube_vit.models.tubes import Tube, count_tokens
from sparse_tube_vit.models.tubevit import init_params, make_model
from sparse_tube_vit.models.variants import VARIANTS
from sparse_tube_vit.training.optimizer import make_optimizer
from sparse_tube_vit.training.state import TrainState
from sparse_tube_vit.training.step import make_train_step


def time_scale_up(args) -> None:
    """Prints the time of a step that trains the last layers, and of one for all.

    The model is that of scaling up (paper, section 3.6), with one stream of videos.
    """
    config = default_config()
    config.total_steps = 100_000
    config.clip.update(frames=args.frames, size=args.size)
    config.model.update(**VARIANTS[args.small], tubes=args.tubes, dtype=args.dtype)
    config.streams.video = stream(
        kind="video", dataset="", head="head", batch_size=args.batch
    )
    side = 14 if args.big == "H" else 16  # H's image ViTs have patches of 14x14
    patches = Tube(kernel=(1, side, side), stride=(1, side, side))
    scale_config(config, VARIANTS[args.big], patches, args.trained_layers)
    validate(config)
    trained = config.optimizer.trained_layers
    model = make_model(config, {"head": 400})
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (args.batch, *model.clip, 3), np.uint8),
        "label": np.zeros(args.batch, np.int32),
        "weight": np.ones(args.batch, np.float32),
    }

    def make_run(trained_layers):
        """Returns a function that takes the next step, and the FLOPs of a step."""
        config.optimizer.trained_layers = trained_layers
        optimizer = make_optimizer(config)
        params = init_params(model, jax.random.key(0), model.clip)
        state = TrainState.create(params, optimizer, config)
        batches = {"video": jax.device_put(batch)}
        step = jax.jit(make_train_step(model, optimizer, config), donate_argnums=0)
        step = step.lower(state, batches).compile()

        def run():
            nonlocal state
            state, metrics = step(state, batches)
            return state, metrics

        return run, step_flops(config, model)

    (everything, all_flops), (last, last_flops) = make_run(None), make_run(trained)
    # In turns, so that a change of the machine's speed affects both alike.
    pairs = [(_seconds(everything), _seconds(last)) for _ in range(args.runs)]
    whole, part = (statistics.median(column) for column in zip(*pairs, strict=True))
    saving = 1 - statistics.median(b / a for a, b in pairs)
    shape, depth = "x".join(map(str, model.clip)), model.options.depth
    print(
        f"{args.small} to {args.big}, {shape} ({count_tokens(model.tubes, model.clip)} "
        f"tokens), {args.dtype}, batch {args.batch}, {jax.device_count()} "
        f"{jax.devices()[0].device_kind}, {usable_cores()} CPU cores: a step of all "
        f"{depth} layers {whole:.3f} s, of the last {trained} and the gate "
        f"{part:.3f} s; saved {saving:.0%} (paper 43%), of FLOPs "
        f"{1 - last_flops / all_flops:.0%}"
    )


def _seconds(step):
    """Returns the time of a step in seconds, after one to warm up."""
    jax.block_until_ready(step())
    started = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - started
