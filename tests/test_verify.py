"""The command line: what it prints and writes, and when it fails."""

import os

import pytest

from sparse_tube_vit import verify
from sparse_tube_vit.datasets import manifest
from tests.datasets.preparing.test_verification import FILES
from tests.datasets.written import write_folder

CONFIG = """
from sparse_tube_vit.config import default_config, stream
def get_config():
    config = default_config()
    config.clip.update(frames=2, fps=16.0, size=16)
    config.streams.v = stream(
        kind="video", dataset="{}", head="h", batch_size=1, crop_area=(0.4, 0.6)
    )
    return config
"""


@pytest.fixture
def prepared(tmp_path):
    return write_folder(tmp_path / "data", FILES)


def run(prepared, *arguments, dataset="video_folder/clips"):
    arguments = (dataset, "--data_dir", str(prepared.parents[2]), *arguments)
    verify.main(["--workers", "0", *arguments])


def test_a_sound_data_set(prepared, capsys):
    run(prepared)
    page = prepared / "contact_sheet.html"
    out = capsys.readouterr().out
    assert out.startswith(f"video_folder/clips in {prepared}\n  3 classes")
    assert out.endswith(f"  written to {page}\n")
    assert "32 frames at 15 frames a second" in page.read_text()
    assert "each class as the default config samples it" in page.read_text()


def test_help_where_a_process_has_no_affinity(monkeypatch, capsys):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    with pytest.raises(SystemExit) as end:
        verify.main(["--help"])
    assert end.value.code == 0 and "--workers" in capsys.readouterr().out


def test_a_wrong_one_fails_with_a_page(prepared, capsys, tmp_path):
    path, page = prepared / "manifest.csv", tmp_path / "page.html"
    rows = list(manifest.read(path))
    manifest.write(path, rows[:-1])
    with pytest.raises(SystemExit) as end:
        run(prepared, "--out", str(page))
    assert end.value.code == 1
    printed = capsys.readouterr()
    place = f"{rows[-1].split} {rows[-1].id}"
    assert place in printed.out and place in page.read_text()
    assert printed.err == (
        "DatasetIsWrong: video_folder/clips is wrong in 1 places, listed above.\n"
    )


def test_sampling_by_a_config(prepared, tmp_path):
    config, page = tmp_path / "config.py", tmp_path / "page.html"
    config.write_text(CONFIG.format("video_folder/clips"))
    arguments = (f"--config={config}", "--config.clip.fps=8", "--out", str(page))
    run(prepared, *arguments)
    assert "2 frames at 8 frames a second (0.25 seconds)" in page.read_text()
    assert "crop of 40% to 60%" in page.read_text()
    assert (
        "each class as training with the given --config samples it" in page.read_text()
    )


def test_sampling_by_the_config_of_a_folder(prepared, tmp_path):
    """Which leaves open what its model decides, and names no data set."""
    page = tmp_path / "page.html"
    arguments = ("--config=configs/finetune.py", "--config.init.weights=demo")
    run(prepared, *arguments, "--out", str(page))
    assert "samples it" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=CONFIG"], "InvalidConfig: No stream of --config reads video_fold"),
        (["--config=CONFIG", "--config.clp.fps=8"], '"clip" instead of "clp"'),
        (["--out", "no/such/page.html"], "UnwritableOutput: no/such/page.html cannot"),
        (
            ["--workers", "-1"],
            "--workers: '-1' is not a whole number of at least 0",
        ),
        (["--config.clip.fps=8"], "unrecognized arguments: --config.clip.fps=8"),
    ],
)
def test_bad_arguments(prepared, tmp_path, capsys, arguments, message):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format("video_folder/others"))
    with pytest.raises(SystemExit) as end:
        run(prepared, *(a.replace("CONFIG", str(config)) for a in arguments))
    assert end.value.code not in (None, 0)
    # sys.exit with a text prints it as the process ends.
    text = end.value.code if isinstance(end.value.code, str) else ""
    assert message in text + capsys.readouterr().err
    assert not (prepared / "contact_sheet.html").exists()


def test_what_is_not_prepared(prepared, capsys):
    with pytest.raises(SystemExit) as end:
        run(prepared, dataset="video_folder/nothing")
    assert end.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("DatasetNotPrepared: ") and err.count("\n") == 1
