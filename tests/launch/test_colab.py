"""The notebook, executed from top to bottom as in Colab, installation included."""

import ast
import json
import os
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

import sparse_tube_vit

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_clean_and_installs_this_version(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in cells)
    source = cells[0].source
    assert f'REVISION = "v{sparse_tube_vit.__version__}"' in source
    assert "--constraint=code/requirements.txt" in source


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
    """This tree, with what is not committed, as a repository of one tagged commit."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "data", "runs", "tests", "*.egg-info", "__pycache__", ".*cache"
    )
    shutil.copytree(ROOT, directory, ignore=ignored)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["init", "--quiet"],
        ["add", "--all", "--force"],
        [*who, "commit", "--quiet", "--message=test"],
        ["tag", f"v{sparse_tube_vit.__version__}"],
    ):
        subprocess.run(["git", "-C", directory, *command], check=True)
    return directory


def environment(directory):
    """A virtual environment that has this one's packages but not sparse_tube_vit."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", directory], check=True
    )
    python = directory / "bin" / "python"
    (packages,) = (directory / "lib").glob("python*/site-packages")
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()))
    kernel = directory / "share" / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    arguments = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": [str(python), *arguments], "display_name": "fresh"})
    )
    return directory, packages


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    outer, packages = environment(tmp_path / "venv")
    monkeypatch.setenv("JUPYTER_PATH", str(outer / "share" / "jupyter"))
    monkeypatch.setenv("SPARSE_TUBE_VIT", str(repository(tmp_path / "repository")))
    # Packages are there already: nothing is fetched, what is pinned must fit.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip negates it: off
    for name in ("PYTHONPATH", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    colab = tmp_path / "content"
    colab.mkdir()
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="fresh",
        resources={"metadata": {"path": str(colab)}},
    )
    client.execute()
    assert (packages / "sparse_tube_vit").is_dir(), os.listdir(packages)

    said = [
        "".join(o.get("text", "") for o in cell.get("outputs", []))
        for cell in notebook.cells
    ]
    pictures = [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 4
    assert any("96 clips of down left right up" in text for text in said)
    *_, accuracy = re.findall(r"Top-1 (\d+\.\d)%", "".join(said))
    assert float(accuracy) > 25  # four classes
    with zipfile.ZipFile(colab / "release.zip") as release:
        assert {"model.safetensors", "config.json"} <= {*release.namelist()}
