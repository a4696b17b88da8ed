"""README.md: every command and every line of Python runs as it is written.

Only what its capitals and example names stand for is filled in.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparse_tube_vit as stv
from sparse_tube_vit.datasets.builders import moving_shapes
from tests import hub as stand_in
from tests.datasets.builders import test_imagenet, test_kinetics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

#: In the place of one of the Hub.
IMAGE_VIT = ROOT / "tests/golden/image_vits/hugging_face_dinov2"

#: Commands that no test can run, each with the reason.
NOT_RUN = {
    "./launch/local.sh": "minutes of training, which its own command shows",
    "./launch/test.sh": "runs this test",
    "source .venv/bin/activate": "the environment is the test's own",
    "sparse-tube-vit scale_up": "needs the weights of a ViT-H; see test_scaling.py",
    "./launch/gpu_benchmark.sh": "needs a GPU; see tests/launch/test_gpu_benchmark.py",
    "sparse-tube-vit preflight": "needs the TPU compiler; see tests/tpu",
}


#: Runs of full length are cut short.
FEW_STEPS = " --config.total_steps=2 --config.optimizer.warmup_steps=1"


def blocks(language):
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", README)


def commands():
    """Every command of the README, without its comment."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) < 250
    assert len(commands()) > 20 and len(blocks("python")) >= 3
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    assert any("--push hf://user/name" in command for command in commands())
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in commands()), start


def write_clip(file, index, repeat=1):
    _, frames = moving_shapes.render("videos", "test", index)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(moving_shapes.encode_mp4(np.concatenate([frames] * repeat)))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tree, with the files that the README names."""
    root = tmp_path_factory.mktemp("readme") / "clone"
    ignored = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "data",
        "runs",
        "build",
        "*.egg-info",
        "__pycache__",
        ".*cache",
    )
    shutil.copytree(ROOT, root, ignore=ignored)
    write_clip(root / "clip.mp4", 0)
    write_clip(root / "long.mp4", 1, repeat=4)
    for i in range(40):
        write_clip(
            root / "folder" / ("left", "right")[i % 2] / f"{i}.mp4", 4 * i + i % 2
        )
    _, frames = moving_shapes.render("images", "test", 0)
    (root / "photo.jpg").write_bytes(moving_shapes.encode_jpeg(frames))
    release = root / "kinetics"
    release.mkdir()
    for name, lines in test_kinetics.LISTS.items():
        (release / name).write_text("\n".join(lines))
    test_kinetics.official.write_clips(release / "videos", *test_kinetics.CLIPS)
    test_imagenet.write_images(
        root / "ILSVRC/Data/CLS-LOC", f"train/{test_imagenet.TENCH}/a.jpg"
    )
    return root


@pytest.fixture(scope="module")
def environment(clone):
    """Variables that make a new environment the active one, with the core alone."""
    venv = clone.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    given = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")
    }
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    given |= {"VIRTUAL_ENV": str(venv), "PATH": path, "JAX_PLATFORMS": "cpu"}
    install(".", clone, given)
    return given


def install(what, clone, environment):
    pip = ["python", "-m", "pip", "install", "--quiet", what]
    if subprocess.run(pip, cwd=clone, env=environment, check=False).returncode:
        pytest.skip("packages cannot be fetched")


def run(command, clone, environment):
    done = subprocess.run(
        command, cwd=clone, env=environment, shell=True, capture_output=True, text=True
    )
    assert not done.returncode, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_first_lines_run_with_the_core_alone(clone, environment):
    python = next(x for x in commands() if "predict --model demo" in x)
    assert "star right" in run(python, clone, environment)
    code = "\n".join(blocks("python")[:2])
    code += "\nprint(logits.shape, tubevit.predict(clip, top=1))"
    done = run(f"python -c {shlex.quote(code)}", clone, environment)
    assert "(1, 24)" in done and "ring left" in done


def test_the_config_that_it_shows_is_valid():
    from sparse_tube_vit.config import default_config, stream, validate
    from sparse_tube_vit.models.variants import VARIANTS

    (code,) = [x for x in blocks("python") if "default_config" in x]
    names = {"default_config": default_config, "stream": stream, "VARIANTS": VARIANTS}
    exec(code, names)
    validate(names["config"])


@pytest.mark.slow
def test_every_command_runs(clone, environment, monkeypatch, tmp_path):
    install(".[train,probe,hub]", clone, environment)
    local = "sparse-tube-vit train --config moving_shapes --workdir runs/moving_shapes"
    run(local + FEW_STEPS, clone, environment)  # in the place of launch/local.sh
    with stand_in.running(monkeypatch, tmp_path / "cache") as hub:
        given = environment | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "NO_PROXY": "127.0.0.1",
        }
        hub.repositories["facebook/dinov2-small"] = {
            path.name: path.read_bytes() for path in IMAGE_VIT.iterdir()
        }
        for number, command in enumerate(commands()):
            if command.startswith((*NOT_RUN, "pip install")):
                continue
            run(filled_in(command, number), clone, given)
        assert "user/name" in hub.repositories
        loaded = f"import {stv.__name__} as stv; print(stv.load('hf://user/name'))"
        assert "hf://user/name" in run(f'python -c "{loaded}"', clone, given)


def filled_in(command, number):
    """Puts the clone's files in the place of the names that stand for the reader's."""
    if "configs/" in command and "describe" not in command:
        command += FEW_STEPS
    for name, value in {
        "--videos DIR": "--videos kinetics/videos",
        "--annotations DIR": "--annotations kinetics",
        "DIR": f"out/{number}",
        "MODEL": "demo",
        "CLIPS": "folder",
        "configs/X.py": "configs/moving_shapes.py",
        "--step 700": "--step 2",
    }.items():
        command = re.sub(rf"(?<![\w/]){name}\b", value, command)
    return command
