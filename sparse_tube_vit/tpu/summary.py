"""A preflight as JSON and as text: totals by collective and by operation."""

import collections
import dataclasses
import itertools
import re

from sparse_tube_vit.log import format_table
from sparse_tube_vit.tpu.chips import GIB
from sparse_tube_vit.tpu.cost import Estimate
from sparse_tube_vit.tpu.preflight import Preflight


def to_json(result: Preflight) -> dict:
    """Returns all numbers as JSON types, in bytes, FLOPs and seconds."""
    e, chip = result.estimate, result.topology.chip
    return {
        "topology": str(result.topology),
        "chip": result.topology.name,
        "chips": result.topology.chips,
        "mesh": dict(result.mesh),
        "batch": dict(result.batch),
        "compile_seconds": result.compile_seconds,
        "chip_bytes": dataclasses.asdict(result.memory) | {"peak": result.memory.peak},
        "flops": {
            "model": result.model_flops,
            "chip_executes": e.flops,
            "chip_peak_per_second": chip.peak_flops,
        },
        "step_seconds": {
            "all": e.seconds,
            "compiler_estimate": e.computing,
            "kernels_by_roofline": e.kernels,
            "waiting_for_collectives": e.exposed,
        },
        "mfu": result.mfu,
        "examples_per_second": {
            name: batch / e.seconds for name, batch in result.batch.items()
        },
        "chip_hours": result.chip_hours,
        "feeding": result.feeding and _feeding_json(result.feeding),
        "steps": result.steps,
        "config": dict(result.config),
        "collectives": collective_totals(e),
        "operations": operation_totals(e),
        "unknown_loops": e.unknown_loops,
        "unknown_kernels": e.unknown_kernels,
    }


def _feeding_json(f):
    return dataclasses.asdict(f) | {
        "cores_needed": f.needed,
        "cores_needed_transcoded": f.needed_transcoded,
        "cores_available": f.available,
        "suffices": f.suffices,
    }


def to_text(result: Preflight) -> str:
    """Returns the report: memory, time, collectives and the largest operations."""
    e, topology = result.estimate, result.topology
    axes = " x ".join(f"{axis} {size}" for axis, size in result.mesh.items())
    batch = ", ".join(f"{n} {name}" for name, n in result.batch.items())
    model_flops = result.model_flops / topology.chips
    speeds = ", ".join(f"{n / e.seconds:,.0f} {s}/s" for s, n in result.batch.items())
    lines = [
        f"{topology}: {topology.chips} chips, mesh {axes}; {batch} a step; compiled in "
        f"{result.compile_seconds:.0f} s",
        "Times are predictions of the TPU compiler, not measurements.",
        "",
        *_memory_table(result.memory),
        "",
        *_time_table(e),
        "",
        f"MFU {result.mfu:.1%}: {model_flops / 1e12:.2f} TFLOP a "
        f"chip for the model, {e.flops / 1e12:.2f} computed",
        f"{speeds}; {result.steps:,} steps: {result.chip_hours:,.0f} chip-hours, "
        f"{result.chip_hours / topology.chips:,.1f} hours",
        "",
        *_feeding_table(result.feeding),
        *_collective_table(e),
        "",
        *_operation_table(e, topology.chip.peak_flops),
    ]
    if e.unknown_loops:
        lines.append(
            "Counted once, as only the data tells how often they run: "
            f"{', '.join(e.unknown_loops)}."
        )
    if e.unknown_kernels:
        lines.append(
            "Counted by their bytes alone, as their FLOPs are unknown: "
            f"{', '.join(e.unknown_kernels)}."
        )
    return "\n".join(lines)


def _memory_table(memory):
    sizes = dataclasses.asdict(memory) | {"peak": memory.peak}
    sizes["available"] = sizes.pop("available")  # to the end
    rows = [("memory of a chip", "GiB", "share")]
    for name, size in sizes.items():
        rows.append((name, f"{size / GIB:.2f}", f"{size / memory.available:.0%}"))
    return format_table(rows)


def _time_table(e):
    products = [o for o in e.operations if o.flops and not o.roofline]
    products_seconds = sum(o.seconds * o.times for o in products)
    parts = {
        "matrix products, with what is fused": products_seconds,
        "other operations": e.computing - products_seconds,
        "custom kernels, by roofline": e.kernels,
        "waiting for collectives": e.exposed,
        "all": e.seconds,
    }
    rows = [("a step", "ms", "share")]
    rows += [(name, *_ms(part, e.seconds)) for name, part in parts.items()]
    return format_table(rows)


def _feeding_table(f):
    if f is None:
        return []
    rows = [("feeding a host", "examples a step", "ms of a core each", "cores")]
    for name, s in f.streams.items():
        each = f"{s.source} {1e3 * s.seconds:.1f}"
        cores = s.examples * s.seconds / f.step_seconds
        rows.append((name, f"{s.examples:g}", each, f"{cores:.1f}"))
    lines = [*format_table(rows), f"{f.hosts} hosts. {f.verdict()}"]
    if any(s.source == "estimated" for s in f.streams.values()):
        lines.append(
            "Estimates: docs/measurements.md, files as they come; with transcoded "
            f"videos {f.needed_transcoded:.1f} cores. `benchmark input` measures "
            "yours, for --example_ms."
        )
    return [*lines, ""]


def _collective_table(e):
    rows = [("collectives", "mesh axes", "MB", "times", "ms", "hidden")]
    for c in collective_totals(e):
        hidden = 1 - c["waiting_seconds"] / c["seconds"] if c["seconds"] else 1
        size, took = f"{c['bytes'] / 1e6:.2f}", f"{c['seconds'] * 1e3:.2f}"
        axes = ",".join(c["axes"])
        rows.append((c["kind"], axes, size, c["times"], took, f"{hidden:.0%}"))
    return format_table(rows)


def _operation_table(e, peak):
    rows = [("largest operations", "times", "ms", "share", "of peak")]
    for o in operation_totals(e)[:10]:
        name = o["name"] + (" (roofline)" if o["by_roofline"] else "")
        rate = f"{o['flops'] / o['seconds'] / peak:.0%}" if o["flops"] else ""
        rows.append((name, o["times"], *_ms(o["seconds"], e.seconds), rate))
    return format_table(rows)


def _ms(seconds, whole):
    return f"{1e3 * seconds:.2f}", f"{seconds / whole:.1%}"


def collective_totals(e: Estimate) -> list[dict]:
    """Returns a step's collectives, summed by kind, axes and size, longest first."""
    groups = collections.defaultdict(list)
    for c in e.collectives:
        groups[c.kind, c.axes, c.bytes].append(c)
    rows = [
        {
            "kind": kind,
            "axes": axes,
            "bytes": size,
            "times": sum(c.times for c in group),
            "seconds": sum(c.seconds * c.times for c in group),
            "waiting_seconds": sum(c.exposed * c.times for c in group),
            "source": group[0].source,
        }
        for (kind, axes, size), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def operation_totals(e: Estimate) -> list[dict]:
    """Returns a step's operations, summed by module and pass, longest first.

    Operations that the compiler added go by their own names.
    """
    groups = collections.defaultdict(list)
    for o in e.operations:
        name = module_and_pass(o.source) or re.sub(r"[.\d]+$", "", o.name)
        groups[name, o.roofline].append(o)
    rows = [
        {
            "name": name,
            "times": sum(o.times for o in group),
            "seconds": sum(o.seconds * o.times for o in group),
            "flops": sum(o.flops * o.times for o in group),
            "by_roofline": roofline,
            "source": group[0].source,
        }
        for (name, roofline), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


# Parts of jax's operation names that are transformations, not modules.
_TRANSFORMATIONS = re.compile(
    r"(jit|jvp|vmap|transpose)\(.*|while|body|closed_call|checkpoint|cond|shard_map|"
    r"rematted_computation|pallas_call|Tube[vV]i[tT]\.features|TubeViT"
)


def module_and_pass(source: str) -> str:
    """Returns the module and the pass of an operation of the model, for its totals.

    Args:
        source: jax's name of the operation.

    Returns:
        As "forward encoder/block/mlp/up/dot_general": all blocks are one module.
    """
    parts = [s for s in source.split("/") if not _TRANSFORMATIONS.fullmatch(s)]
    parts = [re.sub(r"^(new_)?block_\d+$", "block", s).lower() for s in parts]
    if not parts:
        return ""
    backward = "transpose(" in source
    again = "rematted_computation" in source
    phase = "recomputed" if again else "backward" if backward else "forward"
    path = "/".join(part for part, _ in itertools.groupby(parts))
    return f"{phase} {path}" if "TubeViT" in source else path
