"""Use of the devices: model FLOPs per second, their share of the peak, and memory."""

import dataclasses
import json
import re
from collections.abc import Mapping

import jax
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from sparse_tube_vit.config import ConfigDict, differences
from sparse_tube_vit.distributed.devices import accelerator, peak_flops
from sparse_tube_vit.log import log
from sparse_tube_vit.models.flops import step_flops
from sparse_tube_vit.models.tubevit import TubeViT

#: File of a work directory with what `preflight` predicts for its run.
PREDICTION = "preflight.json"

_TIMED = re.compile(
    r"clip\.(frames|size)|model\..+|mesh\.slices|"
    r"streams\.[^.]+\.(batch_size|kind|loss|mixup)|"
    r"optimizer\.(accumulate_steps|ema_decay|first_moment_dtype|trained_layers)"
)


def timed_keys(config: ConfigDict) -> dict:
    """Returns a config's values that change the time of a step, by key.

    Sizes of the mesh are not among them: -1 in the config stands for any.
    """
    values = flatten_dict(json.loads(config.to_json()), sep=".")
    return {key: x for key, x in values.items() if _TIMED.fullmatch(key)}


@dataclasses.dataclass(frozen=True)
class PredictedStep:
    """Cost of a training step, as `preflight` predicts it.

    Attributes:
        step_seconds: Seconds of a step.
        device_bytes: Most memory of a device.
    """

    step_seconds: float
    device_bytes: float


def read_prediction(
    workdir: epath.Path, config: ConfigDict, mesh: Mesh
) -> PredictedStep | None:
    """Returns what `preflight` wrote to a work directory, None if it did not.

    A prediction for other devices, another mesh or other `timed_keys` is left out with
    a warning.

    Args:
        workdir: The work directory of the run.
        config: The config of the run.
        mesh: The mesh of the run.
    """
    if not (path := epath.Path(workdir) / PREDICTION).exists():
        return None
    kind = mesh.devices.flat[0].device_kind
    ours = timed_keys(config) | {"mesh": dict(mesh.shape)}
    try:
        predicted = json.loads(path.read_text())
        theirs = predicted["config"] | {"mesh": predicted["mesh"]}
        problems = [
            f"{key} is {before!r} there, {now!r} here"
            for key, before, now in differences(theirs, ours)
        ]
        if accelerator(kind) != predicted["chip"]:
            problems.insert(0, f"it is for {predicted['topology']}, not for {kind}")
        prediction = PredictedStep(
            float(predicted["step_seconds"]["all"]),
            float(predicted["chip_bytes"]["peak"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problems = [f"`preflight --workdir` did not write it so ({error!r})"]
    if problems:
        log.warning("%s is left out: %s.", path, "; ".join(problems))
        return None
    return prediction


class Utilization:
    """Rates of training: examples and model FLOPs per second, MFU, memory.

    FLOPs are those of the model's matrix products, forward and backward, without what
    rematerialization computes again (`step_flops`). MFU, model FLOPs utilization, is
    their share of the devices' peak: `config.peak_flops`, or that of bfloat16 where
    the kind of device is known.

    Args:
        config: The config of the run.
        model: Its model.
        mesh: The mesh over all devices.
        prediction: What `preflight` predicts of a step, shown beside what is measured.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: TubeViT,
        mesh: Mesh,
        prediction: PredictedStep | None = None,
    ):
        device = mesh.devices.flat[0]
        self.peak = config.peak_flops or peak_flops(device.device_kind)
        self._batches = {name: s.batch_size for name, s in config.streams.items()}
        self._head_steps = config.optimizer.head_steps
        self._flops = {
            heads_alone: step_flops(config, model, heads_alone) / mesh.devices.size
            for heads_alone in (False, True)
        }
        self._prediction = prediction
        text = f"A step takes {in_flops(self._flops[False])} of the model on a device"
        if self.peak:
            text += f", whose peak is {in_flops(self.peak)}/s"
        elif device.platform != "cpu":
            text += (
                f"; the peak of {device.device_kind} is not known: for the MFU, give "
                "it by --config.peak_flops"
            )
        log.info("%s", text)
        if prediction:
            log.info("preflight predicts %.3g s a step", prediction.step_seconds)

    def rates(self, step: int, seconds: float) -> dict[str, float]:
        """Returns the rates of a step by name, for metrics.

        The first `optimizer.head_steps` steps are counted by their own FLOPs, and have
        no prediction.

        Args:
            step: The step, counted from 1.
            seconds: Its time.
        """
        heads_alone = step <= self._head_steps
        flops = self._flops[heads_alone] / seconds
        rates = {
            f"{name}/examples_per_second": size / seconds
            for name, size in self._batches.items()
        }
        rates["flops_per_second_per_device"] = flops
        if self.peak:
            rates["mfu"] = flops / self.peak
        rates |= {f"device_bytes/{name}": x for name, x in _memory().items()}
        if (predicted := self._prediction) and not heads_alone:
            rates["predicted/step_seconds"] = predicted.step_seconds
            if self.peak:
                predicted_flops = self._flops[False] / predicted.step_seconds
                rates["predicted/mfu"] = predicted_flops / self.peak
            rates["predicted/device_bytes"] = predicted.device_bytes
        return rates


def _memory():
    """Returns the largest memory statistics of local devices, where jax has them.

    Bytes "in_use" now, at their "peak" since the process began, and their "limit".
    """
    keys = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use"}
    keys["limit"] = "bytes_limit"
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    most = {name: max(x.get(key, 0) for x in devices) for name, key in keys.items()}
    return {name: size for name, size in most.items() if size > 0}  # -1: not told


def rates_in_words(rates: Mapping[str, float]) -> str:
    """Returns rates of training in words, predictions in brackets.

    Args:
        rates: "step_seconds", and the rates that `Utilization.rates` returns.
    """

    def predicted(name, in_words):
        value = rates.get(f"predicted/{name}")
        return "" if value is None else f" ({in_words(value)} predicted)"

    seconds, percent = "{:.3g}".format, "{:.1%}".format
    words = [f"{seconds(rates['step_seconds'])} s a step"]
    words[0] += predicted("step_seconds", seconds)
    words += [f"{x:,.1f} {name}/s" for name, x in examples_per_second(rates).items()]
    if (flops := rates.get("flops_per_second_per_device")) is not None:
        words.append(f"{in_flops(flops)}/s a device")
    if (mfu := rates.get("mfu")) is not None:
        words.append(f"MFU {percent(mfu)}{predicted('mfu', percent)}")
    if (size := rates.get("device_bytes/in_use")) is not None:
        words.append(f"{in_gib(size)} in use")
    if (size := rates.get("device_bytes/peak")) is not None:
        words.append(f"peak {in_gib(size)}{predicted('device_bytes', in_gib)}")
    return ", ".join(words)


def examples_per_second(rates: Mapping[str, float]) -> dict[str, float]:
    """Returns the examples per second by stream.

    Args:
        rates: Rates by name.
    """
    return {
        name.removesuffix("/examples_per_second"): value
        for name, value in rates.items()
        if name.endswith("/examples_per_second")
    }


def in_flops(number: float) -> str:
    """Returns a number of FLOPs, or of FLOPs per second, as "98.5 TFLOP"."""
    units = {1e15: "P", 1e12: "T", 1e9: "G"}
    unit = next((unit for unit in units if number >= unit), 1e6)
    value, prefix = number / unit, units.get(unit, "M")
    digits = "3.0f" if value >= 100 else ".3g"
    return f"{value:{digits}} {prefix}FLOP"


def in_gib(size: float) -> str:
    """Returns a number of bytes as "1.25 GiB"."""
    return f"{size / 2**30:.2f} GiB"
