"""Preflight: its report, its advice, and, where libtpu is installed, its compiling."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from sparse_tube_vit import preflight as command
from sparse_tube_vit.datasets.catalog import OFFICIAL_CLASSES
from sparse_tube_vit.distributed import sharding
from sparse_tube_vit.models.flops import forward_flops, training_flops
from sparse_tube_vit.models.tubevit import make_model
from sparse_tube_vit.tpu import preflight, summary
from sparse_tube_vit.tpu.chips import CHIPS, GIB, Topology
from sparse_tube_vit.tpu.cost import Collective, Estimate, Operation
from sparse_tube_vit.tpu.preflight import DoesNotFit, UnknownClasses
from sparse_tube_vit.training import utilization
from sparse_tube_vit.training.utilization import read_prediction
from tests.tpu.written import found, kinetics


def test_figures_follow_from_the_estimate():
    result = found()
    seconds = result.estimate.seconds
    assert result.memory.peak == 7.75 * GIB
    assert result.mfu == pytest.approx(result.estimate.flops / seconds / 197e12)
    assert result.chip_hours == pytest.approx(8 * seconds)
    numbers = json.loads(json.dumps(summary.to_json(result)))
    assert numbers["batch"] == {"video": 32}
    assert numbers["examples_per_second"] == {"video": pytest.approx(32 / seconds)}
    parts = numbers["step_seconds"]
    assert parts.pop("all") == pytest.approx(sum(parts.values()))
    assert numbers["chip_bytes"]["peak"] == 7.75 * GIB
    times = sum(o["seconds"] for o in numbers["operations"])
    assert times == pytest.approx(seconds - parts["waiting_for_collectives"])


def by_hand():
    """A preflight of a step of 20 ms on 8 chips, 4 of them waiting, at 30% MFU."""
    up = "jit(train_step)/jvp(TubeViT)/TubeViT.features/encoder/block_{}/mlp/up/dot"
    kernel = "jit(train_step)/splash"
    operations = (
        Operation("copy.3", "", 0.4e-3, 4, 0, False),
        Operation("splash.4", kernel, 2.4e-3, 1, 118_200_000_000, True),
        Operation("fusion.1", up.format(1), 1e-3, 6, 98_500_000_000, False),
        Operation("fusion.2", up.format(2), 1e-3, 6, 98_500_000_000, False),
    )
    gather = ("all-gather", ("fsdp",), 8_000_000)
    collectives = (
        Collective("all-reduce", ("data",), 2_000_000, 1, 1e-3, 0.0, ""),
        Collective(*gather, 3, 1e-3, 1e-3, ""),
        Collective(*gather, 1, 5e-3, 1e-3, ""),
    )
    return found(
        estimate=Estimate(operations, collectives),
        batch={"video": 32, "image": 64},
        steps=3_600_000,
        model_flops=0.3 * 0.020 * 8 * 197e12,
    )


REPORT = """\
v5e:2x4: 8 chips, mesh data 2 x fsdp 4 x tensor 1; 32 video, 64 image a step; compiled \
in 1 s
Times are predictions of the TPU compiler, not measurements.

memory of a chip    GiB  share
parameters         1.00     6%
optimizer          2.00    13%
batches            0.50     3%
temporaries        4.00    25%
program            0.25     2%
peak               7.75    49%
available         15.75   100%

a step                                  ms   share
matrix products, with what is fused  12.00   60.0%
other operations                      1.60    8.0%
custom kernels, by roofline           2.40   12.0%
waiting for collectives               4.00   20.0%
all                                  20.00  100.0%

MFU 30.0%: 1.18 TFLOP a chip for the model, 1.30 computed
1,600 video/s, 3,200 image/s; 3,600,000 steps: 160 chip-hours, 20.0 hours

collectives  mesh axes    MB  times    ms  hidden
all-gather        fsdp  8.00      4  8.00     50%
all-reduce        data  2.00      1  1.00    100%

largest operations                times     ms  share  of peak
forward encoder/block/mlp/up/dot     12  12.00  60.0%      50%
splash (roofline)                     1   2.40  12.0%      25%
copy                                  4   1.60   8.0%
"""


def test_the_report_has_the_numbers_worked_out_by_hand():
    lines = summary.to_text(by_hand()).splitlines()
    assert [x.rstrip() for x in lines] == REPORT.splitlines()


def test_a_run_reads_what_the_command_wrote(tmp_path, monkeypatch, capsys):
    config = kinetics()
    monkeypatch.setattr(command, "preflight", lambda *_: found())
    monkeypatch.setattr(utilization, "accelerator", lambda kind: "v5e")
    workdir = tmp_path / "new" / "run"
    arguments = ["--config", "configs/kinetics.py", "--topology", "v5e:2x4"]
    command.main([*arguments, "--workdir", str(workdir)])
    printed = capsys.readouterr().out.splitlines()
    table = printed.index(next(x for x in printed if x.startswith("feeding a host")))
    assert " ms of a core each " in printed[table] and printed[table + 5] == ""
    assert [
        *printed[:table],
        *printed[table + 6 :],
    ] == summary.to_text(found()).splitlines()
    assert [path.name for path in workdir.iterdir()] == ["preflight.json"]
    config.mesh.update(data=2, fsdp=4)
    prediction = read_prediction(workdir, config, sharding.make_mesh(config))
    assert prediction.step_seconds == found().estimate.seconds
    assert prediction.device_bytes == found().memory.peak

    def refuse(*_):
        raise DoesNotFit("Too much.", {})

    monkeypatch.setattr(command, "preflight", refuse)
    with pytest.raises(SystemExit):
        command.main([*arguments, "--workdir", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "source, name",
    [
        (
            "jit(train_step)/jvp(TubeViT)/TubeViT.features/encoder/while/body/closed_call"
            "/Block/mlp/up/dot_general",
            "forward encoder/block/mlp/up/dot_general",
        ),
        (
            "jit(train_step)/transpose(jvp(TubeViT))/TubeViT.features/encoder/while/body"
            "/closed_call/checkpoint/rematted_computation/Block/norm_1/reduce_sum",
            "recomputed encoder/block/norm_1/reduce_sum",
        ),
        (
            "jit(train_step)/transpose(jvp(TubeViT))/TubeViT.features/encoder/block_11"
            "/attention/shard_map/vmap(static_sparsity_splash)/jit(_splash_attention)"
            "/splash_mha_dq/splash_mha_dq/pallas_call",
            "backward encoder/block/attention/splash_mha_dq",
        ),
        ("jit(train_step)/mul", "mul"),
        ("", ""),
    ],
)
def test_operations_are_named_by_pass_and_module(source, name):
    assert summary.module_and_pass(source) == name


def test_what_is_not_known_is_said():
    result = found()
    unsure = dataclasses.replace(
        result.estimate, unknown_loops=("while.3",), unknown_kernels=("mystery.1",)
    )
    text = summary.to_text(dataclasses.replace(result, estimate=unsure))
    assert "while.3" in text and "mystery.1" in text
    assert "only the data tells" not in summary.to_text(result)


def test_classes_are_official_given_or_asked_for():
    config = kinetics()
    official = {"kinetics400": 400, "imagenet": 1000}
    assert preflight.head_classes(config, {}) == official
    given = preflight.head_classes(config, {"imagenet": 1001})
    assert given == official | {"imagenet": 1001}
    config.streams.video.dataset = "video_folder/mine"
    with pytest.raises(UnknownClasses, match="--classes kinetics400=N"):
        preflight.head_classes(config, {})
    with pytest.raises(UnknownClasses, match="shapes"):
        preflight.head_classes(config, {"kinetics400": 5, "shapes": 6})


def test_classes_of_moving_shapes_are_counted():
    from sparse_tube_vit.datasets.builders import moving_shapes

    for kind, names in moving_shapes.CLASS_NAMES.items():
        assert len(names) == OFFICIAL_CLASSES[f"moving_shapes/{kind}"]


def test_training_takes_three_forward_passes_of_what_is_trained():
    config = kinetics()
    model = make_model(config, {"kinetics400": 400, "imagenet": 1000})
    video, image = config.streams.video, config.streams.image
    clip = (32, 224, 224)
    forward = forward_flops(model, clip, "kinetics400")
    assert training_flops(config, model, video) == 3 * sum(forward.values())
    picture = forward_flops(model, (1, 224, 224), "imagenet")
    assert training_flops(config, model, image) == 3 * sum(picture.values())
    config.optimizer.trained_layers = 3
    below = forward["stem"] + forward["encoder"] * 9 // 12
    assert training_flops(config, model, video) == 3 * sum(forward.values()) - 2 * below
    alone = sum(forward.values()) + 2 * (forward["pooling"] + forward["head"])
    assert training_flops(config, model, video, heads_alone=True) == alone


def test_changes_are_small_first_and_never_what_is_already_set():
    config = kinetics()
    mesh = {"data": 4, "fsdp": 2, "tensor": 1}
    changes = list(preflight.changes(config, mesh))
    assert changes[:4] == [
        {"model.remat": "full"},
        {"model.scan": True},
        {"optimizer.accumulate_steps": 2},
        {"mesh.data": 1, "mesh.fsdp": 8},
    ]
    assert changes[4] == {
        "streams.video.batch_size": 16,
        "streams.image.batch_size": 32,
    }
    assert {"model.remat": "full", "model.scan": True} in changes
    keys = [tuple(sorted(change.items())) for change in changes]
    assert len(set(keys)) == len(keys)
    for change in changes:  # at least one example a chip and part
        parts = change.get("optimizer.accumulate_steps", 1)
        videos = change.get("streams.video.batch_size", 32)
        assert videos % (8 * parts) == 0 and videos >= 8 * parts
    config.model.update(remat="full", scan=True)
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    assert next(preflight.changes(config, mesh)) == {"optimizer.accumulate_steps": 2}
    config.streams.video.batch_size = config.streams.image.batch_size = 1024
    mesh = {"data": 512, "fsdp": 1, "tensor": 1}  # 512 does not divide a width of 768
    assert {"mesh.data": 2, "mesh.fsdp": 256} in preflight.changes(config, mesh)


class Compiler:
    """Stands in for compiling: steps of a batch up to `fits` fit."""

    def __init__(self, fits):
        self.fits, self.tried = fits, []

    def __call__(self, config, topology, classes):
        self.tried.append(config.model.remat)
        if config.streams.video.batch_size > self.fits:
            mesh = {"data": 4, "fsdp": 2, "tensor": 1}
            raise DoesNotFit("A step needs 20.00 GiB.", mesh)
        return found()


def test_what_does_not_fit_ends_with_the_first_change_that_does(monkeypatch):
    def run(compiler):
        monkeypatch.setattr(preflight, "measure", compiler)
        return preflight.preflight(kinetics(), Topology.parse("v5e:2x4"), {})

    assert summary.to_text(run(Compiler(32))) == summary.to_text(found())
    compiler = Compiler(16)
    with pytest.raises(DoesNotFit) as error:
        run(compiler)
    message = str(error.value)
    assert message.startswith("A step needs 20.00 GiB. It fits with ")
    assert "--config.streams.video.batch_size=16" in message
    assert "7.75 GiB" in message
    assert compiler.tried == ["none", "full", "none", "none", "none", "none"]
    with pytest.raises(DoesNotFit, match="Nor does it"):
        run(Compiler(0))


@pytest.mark.parametrize(
    "message, gib",
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries "
            "(768.00G) exceeds available HBM (15.75G).",
            768,
        ),
        ("Ran out of memory somehow.", None),
    ],
)
def test_the_bytes_that_the_compiler_asks_for(message, gib):
    assert preflight.needed_bytes(message) == (gib and gib * GIB)


compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='no TPU compiler: pip install "jax[tpu]"',
)


@pytest.mark.slow
@compiles
def test_the_command_prints_text_or_json():
    def run(*options):
        command = [sys.executable, "-m", "sparse_tube_vit.preflight"]
        command += ["--config", "configs/moving_shapes.py", "--topology", "v5e:2x2"]
        ended = subprocess.run([*command, *options], capture_output=True, text=True)
        return ended.returncode, ended.stdout, ended.stderr

    code, out, _ = run()
    assert code == 0 and out.startswith("v5e:2x2: 4 chips, mesh data 4 x fsdp 1 x")
    code, out, _ = run("--json", "--config.mesh.fsdp=2")
    numbers = json.loads(out)
    assert code == 0 and numbers["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    code, out, error = run("--classes", "dogs=2")
    assert (code, out) == (1, "") and error.startswith("UnknownClasses: --classes nam")


@pytest.mark.slow
@compiles
def test_a_train_step_compiles_for_a_pod(monkeypatch):
    """On 4 chips, parameters sharded: what is gathered and kept is what they weigh."""
    config = kinetics()
    config.clip.update(frames=8, size=32)
    config.model.update(depth=2, width=128, mlp_dim=256, heads=2, dtype="bfloat16")
    config.model.tubes = (
        {"kernel": (4, 8, 8), "stride": (4, 8, 8)},
        {"kernel": (1, 8, 8), "stride": (4, 8, 8)},
    )
    config.mesh.update(data=1, fsdp=4)
    classes = {"kinetics400": 400, "imagenet": 1000}
    topology = Topology.parse("v5e:2x2")
    result = preflight.measure(config, topology, classes)
    assert result.mesh == {"data": 1, "fsdp": 4, "tensor": 1}
    assert not result.estimate.unknown_loops and not result.estimate.unknown_kernels
    assert 0 < result.mfu < 1
    assert result.memory.peak < GIB
    assert result.memory.optimizer == pytest.approx(
        2 * result.memory.parameters, rel=0.1
    )
    chip = result.model_flops / 4
    assert chip / 2 < result.estimate.flops < 4 * chip
    moved = [c for c in result.estimate.collectives if "fsdp" in c.axes]
    assert sum(c.bytes * c.times for c in moved) >= result.memory.parameters
    examples = [s.batch_size // 4 for s in config.streams.values()]
    frames = [8 if s.kind == "video" else 1 for s in config.streams.values()]
    pixels = sum(n * t for n, t in zip(examples, frames, strict=True)) * 32 * 32 * 3
    assert result.memory.batches == pytest.approx(2 * pixels, rel=0.05)

    # All that is known to be needed must fit, not what the compiler sees alone.
    less = dataclasses.replace(CHIPS["v5e"], memory=result.memory.peak - 1)
    monkeypatch.setitem(CHIPS, "v5e", less)
    with pytest.raises(DoesNotFit, match=r"A step needs .*, a chip of v5e has "):
        preflight.measure(config, topology, classes)
