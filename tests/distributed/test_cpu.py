"""CPU cores, by affinity and the quotas of control groups."""

import os

import pytest

from sparse_tube_vit.distributed import cpu


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Writes the control groups of this process: files by path, and its own paths."""
    monkeypatch.setattr(cpu, "_affine_cores", lambda: 16)
    monkeypatch.setattr(cpu, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cpu, "_MOUNTS", tmp_path / "fs")

    def write(own, **files):
        (tmp_path / "cgroup").write_text(own)
        for path, text in files.items():
            file = tmp_path / "fs" / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return write


def test_the_cores_here():
    assert 1 <= cpu.usable_cores() <= os.cpu_count()
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cpu.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu_dot_max": "650000 100000\n"}, 6),
        ("0::/\n", {"cpu_dot_max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a__cpu_dot_max": "300000 100000\n"}, 3),
        (
            "0::/a/b\n",
            {"a__cpu_dot_max": "800000 100000", "a__b__cpu_dot_max": "400000 100000"},
            4,
        ),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/f00\n",
            {
                "cpu__cpu_dot_cfs_quota_us": "500000\n",
                "cpu__cpu_dot_cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            "3:cpu,cpuacct:/\n",
            {
                "cpu__cpu_dot_cfs_quota_us": "-1\n",
                "cpu__cpu_dot_cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_quotas_of_control_groups(groups, own, files, expected):
    groups(own, **files)
    assert cpu.usable_cores() == expected
