"""Commands at full size, and the chip-hours that they are predicted to take."""

import importlib
import re
import shlex

import pytest

from sparse_tube_vit.config import differences, flags, validate
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


class Read(Exception):
    """The arguments of a command, which its parser has read."""


@pytest.fixture
def stop_at_parsers(monkeypatch):
    """Commands raise `Read` in the place of doing what they do."""

    def parsing(method):
        parse = getattr(flags.CommandParser, method)

        def parse_and_stop(self, argv=None):
            raise Read(parse(self, argv))

        monkeypatch.setattr(flags.CommandParser, method, parse_and_stop)

    for method in ("parse_args", "parse_with_config"):
        parsing(method)


@pytest.mark.parametrize("table", [t for t in PAPER if PAPER[t].model])
def test_every_command_is_read_by_its_parser(table, stop_at_parsers):
    text = "\n".join(full_size.commands(select([table])))
    text = re.sub(r" \\\n#?\s*", " ", text)
    lines = re.findall(r"(?m)^(?:# )?(sparse-tube-vit|\./launch/tpu_vm\.sh) (.*)", text)
    trained = {}
    for program, line in lines:
        command, *argv = shlex.split(line)
        if program.endswith("tpu_vm.sh"):
            if command != "run":
                continue
            # It hands these to training on the hosts, after its NAME.
            command, argv = "train", argv[1:]
        module = importlib.import_module(f"sparse_tube_vit.{command}")
        with pytest.raises(Read) as read:
            module.main(argv)
        (found,) = read.value.args
        if command in ("train", "preflight"):
            validate(found.config)
            name = argv[argv.index("--config") + 1]
            trained.setdefault(name, []).append((command, found.config))
    assert trained
    for found in trained.values():
        commands = [command for command, _ in found]
        assert commands == ["preflight", "train", "train"]
        # They differ in what depends on the machine alone.
        one, *others = (config for _, config in found)
        for other in others:
            changed = {key for key, *_ in differences(one.to_dict(), other.to_dict())}
            assert changed <= {
                "data_dir",
                "init.weights",
                "mesh.fsdp",
                "optimizer.accumulate_steps",
            }


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
    numbers = re.findall(r"\n# ([\d,]+) chip-hours", text)
    total = re.search(r"\n# In all, a seed of 6 runs: ([\d,]+) chip-hours", text)[1]
    total, *numbers = (int(n.replace(",", "")) for n in (total, *numbers))
    assert len(numbers) == 6 and total == pytest.approx(sum(numbers), abs=3)
    stated = re.search(
        r"figure4:1_video: a seed of 300,000 .*\n# ([\d,]+) chip-hours", text
    )[1]
    assert int(stated.replace(",", "")) == pytest.approx(hours, rel=0.03)


def test_parts_of_a_batch_fit_an_h200():
    def parts(table, row):
        config = Run(table, TABLES[table].row(row), full_size.TASK, 0).config
        return full_size.accumulated(config)

    # GiB by docs/gpu.md, of a clip and an image of B and of L.
    assert parts("7a", "fixed") == 2  # 256 x 0.51 GiB
    assert parts("5", "jointly") == 2  # 256 x 0.68 GiB
    assert parts("6", "everything") == 4  # 32 blocks of 1,280: 1.2 GiB
    assert parts("6", "head") == 1  # nothing is kept of what is frozen


@pytest.mark.parametrize("table", ["finetuning", "positions", "twice", "directions"])
def test_what_is_not_the_papers_has_no_full_size(table):
    (line,) = full_size.commands(select([table]))
    assert "no full size" in line


@pytest.mark.parametrize("rows", ["6:everything", "5:inflated_3d"])
def test_what_runs_is_what_preflight_compiled_before_a_tpu_costs(rows):
    text = "\n".join(full_size.commands(select([rows])))
    commands = text.replace("\\\n", " ").splitlines()
    of_step = "--config.mesh", "--config.optimizer", "configs/"

    def steps(command):
        return [
            [word for word in shlex.split(line) if word.startswith(of_step)]
            for line in commands
            if line.startswith(command)
        ]

    run = steps("./launch/tpu_vm.sh run")
    assert len(run) == 2 and run == steps("sparse-tube-vit preflight")
    assert all("--config.mesh.fsdp=16" in words for words in run)
    parts = ["--config.optimizer.accumulate_steps=4" in words for words in run]
    assert parts == [False, rows == "5:inflated_3d"]
    last = max(i for i, line in enumerate(commands) if " preflight " in line)
    assert last < next(i for i, line in enumerate(commands) if " queue " in line)
