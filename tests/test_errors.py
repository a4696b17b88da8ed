"""Commands end with an error's message, and leave nothing behind."""

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import weakref

import pytest

from sparse_tube_vit.errors import TRAIN, TubeViTError, reported


class Batch:
    pass


def test_what_failed_holds_nothing_until_the_process_ends(capsys):
    held = []

    def fail():
        batch = Batch()
        held.append(weakref.ref(batch))
        raise TubeViTError("It failed.")

    with pytest.raises(SystemExit) as ended, reported():
        fail()
    assert ended.value.code == 1 and held[0]() is None
    assert capsys.readouterr().err == "TubeViTError: It failed.\n"


def test_ctrl_c_is_no_trace(capsys):
    with pytest.raises(SystemExit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.fixture
def run_without(tmp_path):
    """Runs a command where packages cannot be found; returns exit code and stderr."""

    def run(packages, command):
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.abc, sys\n"
            "class Absent(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name.partition('.')[0] in {packages!r}:\n"
            "            text = f'No module named {name!r}'\n"
            "            raise ModuleNotFoundError(text, name=name)\n"
            "sys.meta_path.insert(0, Absent())\n"
        )
        paths = [str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-m", *command.split(), "--help"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    "command",
    [
        *("sparse_tube_vit.train", "sparse_tube_vit.figures"),
        *("sparse_tube_vit.report", "sparse_tube_vit evaluate"),
    ],
)
def test_the_core_alone_names_the_extra(run_without, command):
    code, said = run_without(TRAIN, command)
    assert code == 1
    assert said.startswith("MissingPackage: This needs ") and '".[train]"' in said
    assert said.count("\n") == 1


def test_packages_of_no_extra_and_bugs_keep_their_trace(run_without):
    code, said = run_without(("jax",), "sparse_tube_vit.train")
    assert code == 1 and "Traceback" in said and "MissingPackage" not in said


def test_what_is_imported_late_names_the_extra_too(capsys):
    with pytest.raises(SystemExit), reported():
        raise ModuleNotFoundError("No module named 'clu'", name="clu.metric_writers")
    assert "MissingPackage: This needs clu, " in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError), reported():
        raise ModuleNotFoundError("No module named 'jaks'", name="jaks")


def test_the_extra_brings_all_of_its_packages(monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    runpy.run_path("setup.py")
    names = [re.match(r"[\w-]+", text)[0] for text in given["extras_require"]["train"]]
    provided = importlib.metadata.packages_distributions()
    wanted = {name.replace("_", "-").lower() for name in names}
    for package in TRAIN:
        by = {name.replace("_", "-").lower() for name in provided[package]}
        assert by & wanted, package


def test_a_reader_may_end_before_all_is_printed():
    code = """if True:
        from sparse_tube_vit.errors import reported
        with reported():
            for _ in range(100_000):
                print("a line", flush=True)
    """
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_other_broken_pipes_are_no_end_of_the_output():
    with pytest.raises(BrokenPipeError), reported():
        raise BrokenPipeError("a worker's")
