"""Commands at full size, and the chip-hours that they are predicted to take."""

import re

import pytest

from sparse_tube_vit.config import flags, validate
from sparse_tube_vit.reproduction import full_size
from sparse_tube_vit.reproduction.runs import Run
from sparse_tube_vit.reproduction.tables import PAPER, TABLES, select


def test_every_row_has_its_command_after_those_that_it_needs():
    text = "\n".join(full_size.commands(select(["5", "6", "9", "8"])))
    made = []
    for command in re.split(r"\n(?=\./launch|sparse-tube-vit)", text):
        command = command.replace("\\\n", " ")
        for needed in re.findall(r"(?:--small|weights=)\s?gs://BUCKET/(\S+)", command):
            assert needed in made or needed.endswith(".npz"), needed
        # Those on one H200 are comments.
        command = "\n".join(x for x in command.splitlines() if not x.startswith("#"))
        made += re.findall(r"--workdir gs://BUCKET/(\S+)", command)
    assert {"5_jointly", "5_images_first", "6_last_8_gate", "9_1_layer", "8_8"} <= {
        *made
    }
    assert len(made) == len({*made})
    assert text.count("sparse-tube-vit scale_up") == 2  # H and B, each for several rows


@pytest.mark.parametrize("table", PAPER)
def test_commands_name_configs_that_work(table):
    lines = (
        "\n".join(full_size.commands(select([table]))).replace("\\\n", " ").splitlines()
    )
    for line in lines:
        if line.startswith("./launch/tpu_vm.sh run"):
            found = re.search(r"--config (\S+)", line)[1]
            validate(flags.read([f"--config={found}"]))


def test_chip_hours_by_hand():
    """B's 300,000 steps of 256 videos alone, by 6 FLOPs a parameter and token."""
    row = TABLES["figure4"].row("1_video")
    run = Run("figure4", row, full_size.TASK, 0)
    by_parameters = 300_000 * 256 * 6 * 85e6 * 1176
    attention = 300_000 * 256 * 3 * 12 * 4 * 1176**2 * 768
    expected = by_parameters + attention
    assert run.flops == pytest.approx(expected, rel=0.03)
    hours = expected / 3600 / full_size.MFU / 197e12
    text = "\n".join(full_size.commands(select(["figure4"])))
    stated = re.search(
        r"figure4:1_video: a seed of 300,000 .*\n# ([\d,]+) chip-hours", text
    )[1]
    assert int(stated.replace(",", "")) == pytest.approx(hours, rel=0.03)


def test_parts_of_a_batch_fit_an_h200():
    def kept(table, row):
        """GiB of a batch by docs/gpu.md, of a clip and an image of B and of L."""
        config = Run(table, TABLES[table].row(row), full_size.TASK, 0).config
        return full_size.accumulated(config)

    assert kept("7a", "fixed") == 2  # 256 x 0.51 GiB
    assert kept("5", "jointly") == 2  # 256 x 0.68 GiB
    assert kept("6", "everything") == 4  # 32 blocks of 1,280: 1.2 GiB
    assert kept("6", "head") == 1  # nothing is kept of what is frozen


@pytest.mark.parametrize("table", ["finetuning", "positions", "twice"])
def test_what_is_not_the_papers_has_no_full_size(table):
    (line,) = full_size.commands(select([table]))
    assert "no full size" in line


def test_what_runs_is_what_preflight_compiled():
    text = "\n".join(full_size.commands(select(["6:everything"])))
    commands = text.replace("\\\n", " ").splitlines()
    run, check = (
        [c for c in commands if command in c]
        for command in ("tpu_vm.sh run", "sparse-tube-vit preflight")
    )
    assert len(run) == 2 and check
    assert all("--config.mesh.fsdp=16" in command for command in run + check)
