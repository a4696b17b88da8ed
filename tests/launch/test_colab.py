"""The notebook, executed from top to bottom as in Colab, installation included."""

import ast
import json
import pydoc
import re
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_clean_and_asks_for_its_address(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in cells)
    assert cells[0].source.count('\nREPOSITORY = ""\n') == 1


def test_every_name_that_it_takes_from_the_package_exists(notebook):
    """What running it finds out too, in minutes."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(re.sub(r"(?m)^[%!].*", "", cell) for cell in cells))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sparse_tube"):
            for name in node.names:
                found = pydoc.locate(f"{node.module}.{name.name}")
                assert found is not None, f"{node.module}.{name.name}"
                modules[name.asname or name.name] = found
    used = [
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    used = [(name, attribute) for name, attribute in used if name in modules]
    assert used and all(hasattr(modules[name], attribute) for name, attribute in used)


def repository(directory):
    """This tree, with what is not committed, as a repository of one commit."""
    ignored = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "data",
        "runs",
        "tests",
        "*.egg-info",
        "__pycache__",
        ".*cache",
    )
    shutil.copytree(ROOT, directory, ignore=ignored)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all", "--force"],
        [*who, "commit", "--quiet", "--message=test"],
    ):
        subprocess.run(["git", "-C", directory, *command], check=True)
    return directory


def environment_of_this_python(directory, monkeypatch):
    """A virtual environment with this one's packages; nothing is fetched."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", directory], check=True
    )
    (packages,) = (directory / "lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip negates it: off


#: As in Colab: other versions than those of requirements.txt.
COLAB = (
    *("jax==0.9.0.1", "flax==0.12.0", "optax==0.2.6", "orbax-checkpoint==0.11.36"),
    *("numpy==2.0.2", "protobuf==5.29.5", "tensorflow-cpu==2.19.1"),
    *("tensorflow-datasets==4.9.9", "tensorflow-metadata==1.17.3"),
    *("tensorboard==2.19.0", "matplotlib==3.10.0", "pillow==11.3.0"),
    *("opencv-python-headless==4.12.0.88", "absl-py==1.4.0", "ipykernel"),
)


def environment_like_colab(directory, monkeypatch):
    """A virtual environment of Python 3.12 with the packages that Colab brings."""
    python = shutil.which("python3.12")
    if not python or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip("there is no python3.12")
    subprocess.run([python, "-m", "venv", directory], check=True)
    pip = [directory / "bin" / "python", "-m", "pip", "--quiet"]
    if subprocess.run([*pip, "install", *COLAB], check=False).returncode:
        pytest.skip("packages cannot be fetched")


def versions(directory):
    """Names and versions of the packages of an environment."""
    listing = (
        "import importlib.metadata as m\n"
        "for d in m.distributions(): print(d.name, d.version)"
    )
    python = directory / "bin" / "python"
    done = subprocess.run([python, "-c", listing], capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("make", [environment_of_this_python, environment_like_colab])
def test_every_cell_runs_and_no_package_of_the_runtime_is_replaced(
    make, notebook, tmp_path, monkeypatch
):
    outer = tmp_path / "venv"
    make(outer, monkeypatch)
    kernel = outer / "share" / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    python = str(outer / "bin" / "python")
    arguments = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": arguments, "display_name": "fresh"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(outer / "share" / "jupyter"))
    for name in ("PYTHONPATH", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    colab = tmp_path / "content"
    colab.mkdir()
    address = f'REPOSITORY = "{repository(tmp_path / "repository")}"'
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = first.source.replace('REPOSITORY = ""', address)
    chosen = next(cell for cell in notebook.cells if "\nWEIGHTS = " in cell.source)
    chosen.source = re.sub("WEIGHTS = .*", 'WEIGHTS = "demo"', chosen.source)

    before = versions(outer)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="fresh",
        resources={"metadata": {"path": str(colab)}},
    )
    client.execute()
    after = versions(outer)
    assert "sparse_tube_vit" in after
    stay = ("jax", "jaxlib", "numpy", "protobuf", "tensorflow_cpu", "tensorflow-cpu")
    assert "jax" in before
    assert all(after[name] == before[name] for name in stay if name in before)

    said = [
        "".join(o.get("text", "") for o in cell.get("outputs", []))
        for cell in notebook.cells
    ]
    shown = [
        "".join(map(str, o.get("data", {}).get("text/plain", "")))
        for cell in notebook.cells
        for o in cell.get("outputs", [])
    ]
    assert max(map(len, said + shown)) < 20_000
    pictures = [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 4
    assert any("No GPU or TPU is used" in text for text in said)
    assert any(re.search(r"ring_left.mp4\n +9\d\.\d%  ring left", x) for x in said)
    assert any("96 clips of down left right up" in text for text in said)
    *_, accuracy = re.findall(r"Top-1 (\d+\.\d)%", "".join(said))
    assert float(accuracy) > 90  # four classes, of clips that the model can tell apart
    with zipfile.ZipFile(colab / "release.zip") as release:
        assert {"model.safetensors", "config.json"} <= {*release.namelist()}
