"""Several hosts, as processes of launch/simulate_pod.sh: joint, different and lost."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sparse_tube_vit import train
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.training.reporting import read_metrics
from tests import bucket
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]


def environment(**more):
    """Returns the environment of programs of several hosts, which compile fast."""
    return os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false",
        **{name: str(value) for name, value in more.items()},
    }


class Pod:
    """A run of simulate_pod.sh, its lines of output and their times."""

    def __init__(self, *command, **variables):
        self.lines, self.times, self.pids = [], [], {}
        self.process = subprocess.Popen(
            [ROOT / "launch" / "simulate_pod.sh", *map(str, command)],
            env=environment(**variables),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, pattern):
        """Reads lines until one matches the pattern; returns the time of that line."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self.times.append(time.monotonic())
            if match := re.match(r"\[(\d+)\] process (\d+)", line):
                self.pids[int(match[1])] = int(match[2])
            if re.search(pattern, line):
                return self.times[-1]
        raise AssertionError("\n".join([f"{pattern} never came:", *self.lines]))

    def ended(self):
        """Waits; returns the exit codes of the script and of every host."""
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self.times.append(time.monotonic())
        ends = [re.match(r"\[(\d+)\] ended with (\d+)", line) for line in self.lines]
        codes = {int(end[1]): int(end[2]) for end in ends if end}
        return self.process.wait(), codes

    def __contains__(self, text):
        return any(text in line for line in self.lines)

    def __repr__(self):  # what pytest shows where a run ends otherwise
        return "\n".join(self.lines)


@pytest.fixture
def pod(data_dir, tmp_path):
    """pod(hosts, *changes): starts hosts that train the tiny run with changes to it.

    `changes` are lines of Python that may use `config` and the number `host`.
    """
    pods = []

    def start(hosts, *changes, workdir=tmp_path / "run", **variables):
        file = tmp_path / f"config_{len(pods)}.py"
        lines = [
            "import os, signal, time",
            "from sparse_tube_vit import train",
            "from sparse_tube_vit.checkpoints import run as checkpoints",
            "from sparse_tube_vit.input import pipeline",
            "from sparse_tube_vit.video.limits import UndecodableClip",
            "from tests.tiny import tiny_config",
            f"config = tiny_config({str(data_dir)!r})",
            "host = int(os.environ['JAX_PROCESS_ID'])",
            *changes,
            "get_config = lambda: config",
        ]
        file.write_text("\n".join(lines))
        pods.append(Pod(hosts, "--config", file, "--workdir", workdir, **variables))
        return pods[-1]

    yield start
    for one in pods:
        for pid in (*one.pids.values(), one.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


#: Changes that make a host do something in the middle of a step, when the others
#: already compute it with each other.
IN_STEP = """
dispatched = train.Reporter.dispatched
def interfere(self, metrics):
    dispatched(self, metrics)
    interfere.steps += 1
    if (interfere.steps, host) == ({step}, {host}):
        os.kill(os.getpid(), signal.{signal})
interfere.steps = 0
train.Reporter.dispatched = interfere
"""
#: The same while the others save step 4.
IN_CHECKPOINT = """
save = checkpoints.Checkpoints.save
def interfere(self, state):
    if (int(state.step), host) == (4, {host}):
        {before}
        os.kill(os.getpid(), signal.{signal})
    save(self, state)
checkpoints.Checkpoints.save = interfere
"""


def assert_same_run(workdir, finished, data_dir):
    """`workdir` holds the finished run, or does when one process resumes it."""
    state = train.train(tiny_config(data_dir), workdir)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        jax.device_get(state),
        jax.device_get(finished[1]),
    )
    ours, theirs = read_metrics(workdir), read_metrics(finished[0])
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        for name in ("train/loss", "train/video/loss", "evaluation/video/top1"):
            if name in expected:
                np.testing.assert_allclose(line[name], expected[name], rtol=1e-5)


def test_two_hosts_train_and_evaluate_as_one(pod, finished, data_dir, tmp_path):
    two = pod(2)
    assert two.ended() == (0, {0: 0, 1: 0}), two
    # Only the first host logs progress.
    assert sum("step 6 of 6" in line for line in two.lines) == 1
    name = "evaluations/video_step6_2x3.json"
    ours = json.loads((tmp_path / "run" / name).read_text())
    assert ours == json.loads((finished[0] / name).read_text())
    assert_same_run(tmp_path / "run", finished, data_dir)


PROGRAM = """
import sys, time
import jax
from etils import epath
from sparse_tube_vit.distributed import hosts
from sparse_tube_vit.errors import TubeViTError, reported
from sparse_tube_vit.log import to_stderr
to_stderr()
with reported(), hosts.connected():
"""


def run_hosts(*body, count=2, only=None, late=0.0, **variables):
    """(exit code, stdout, stderr) of every host, or of one, that runs these lines."""
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    processes = []
    for host in range(count) if only is None else [only]:
        named = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": count,
            "JAX_PROCESS_ID": host,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + "".join(f"    {x}\n" for x in body)],
            env=environment(**(named | variables)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        time.sleep(late)
    texts = [process.communicate(timeout=600) for process in processes]
    return [(p.returncode, *t) for p, t in zip(processes, texts, strict=True)]


@pytest.mark.parametrize(
    "tasks, ids, devices",
    [("1", "", "all"), ("1(x2)", "0,1", "0,1"), ("8(x2)", "", "0")],
)
def test_slurms_only_process_on_a_node_uses_all_of_its_gpus(tasks, ids, devices):
    slurm = {
        "SLURM_JOB_ID": os.getpid(),  # jax makes a port of it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": 1,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "JAX_LOCAL_DEVICE_IDS": ids,
    }
    code = f"{PROGRAM}    print(jax.process_count(), CUDA_VISIBLE_DEVICES.value)"
    code = f"from jax._src.xla_bridge import CUDA_VISIBLE_DEVICES\n{code}"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**slurm),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    ).stdout
    assert printed.split() == ["1", devices]


def test_messages_arrive_at_the_same_step_and_an_error_ends_all(tmp_path):
    started = time.monotonic()
    (code_0, out_0, error_0), (code_1, out_1, error_1) = run_hosts(
        "i, messages, got = jax.process_index(), hosts.HostMessages(), []",
        "for step in range(4):",
        "    bad = {'a': 'short'} if step == 2 else {}",
        "    messages.send(stop=step + i == 2, bad=bad)",
        "    got.append(messages.receive())",
        "print([len(x) for x in got], got[1], [x['stop'] for x in got[2]])",
        "print(hosts.gather('values', f'of {i}'))",
        "from sparse_tube_vit.distributed import cores",
        "cores.jax.default_backend = lambda: 'gpu'",  # where two share a machine
        "cores.usable_cores = lambda: 20",
        "print('cores', cores.worker_cores(), cores.worker_cores())",
        "hosts.check_same({'seed': 0})",
        f"shared = epath.Path({str(tmp_path)!r})",
        "hosts.check_shared(shared)",
        "with hosts.first_host_first('data'):",
        "    time.sleep(3 * (i == 0))",
        "    print('made before', (shared / 'made').exists())",
        "    (shared / 'made').touch()",
        "if i == 1:",
        "    raise TubeViTError('the disk is full')",
        "time.sleep(300)",
    )
    messages = "[0, 1, 2, 0] [{'stop': True, 'bad': {}}] [True, False]"
    for expected in (messages, "['of 0', 'of 1']", "cores 8 8"):
        assert expected in out_0 and expected in out_1
    assert "made before False" in out_0 and "made before True" in out_1
    assert (code_0, code_1) == (1, 1) and time.monotonic() - started < 120
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert error_1.endswith("TubeViTError: the disk is full\n")
    assert "HostFailed: Another host failed" in error_0
    assert error_0.endswith("  host 1: TubeViTError: the disk is full\n")


def test_hosts_whose_rows_are_not_neighbours_feed_every_example_once():
    """As where a TPU's mesh goes in turns from one host's chips to another's."""
    ended = run_hosts(
        "import numpy as np",
        "from jax.sharding import NamedSharding, PartitionSpec",
        "from sparse_tube_vit.config import default_config",
        "from sparse_tube_vit.distributed import sharding",
        "a, b, c, d = jax.devices()",
        "mesh = sharding.make_mesh(default_config(), [c, a, d, b])",
        "share = sharding.batch_share(mesh)",
        "batch = np.arange(8).reshape(share.count, -1)[share.index]",
        "assert share.parts == 2",
        "batch = sharding.to_devices(np.split(batch, 2), mesh)",
        "whole = NamedSharding(mesh, PartitionSpec())",
        "batch = jax.jit(lambda x: x, out_shardings=whole)(batch)",
        "of = [x.process_index for x in mesh.devices.flat]",
        "print(of, share.index, batch.tolist())",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    # The first share belongs to the host of the first row.
    rows = [0, 1, 4, 5, 2, 3, 6, 7]
    for (code, out, error), share in zip(ended, (1, 0), strict=True):
        assert code == 0 and out.endswith(f"[1, 0, 1, 0] {share} {rows}\n"), error


def test_hosts_that_differ_say_in_what(tmp_path):
    (code_0, _, error_0), (code_1, _, error_1) = run_hosts(
        "i = jax.process_index()",
        "hosts.check_same({'config': {'seed': i, 'steps': 3}, 'versions': {'jax': 1}})",
    )
    assert (code_0, code_1) == (1, 1)
    assert "HostsDiffer" in error_1 and "\n  config.seed: 0 on host 0, 1 on " in error_1
    assert "steps" not in error_1 and "versions" not in error_1
    assert "host 1: HostsDiffer" in error_0


def test_hosts_that_read_other_weights_are_refused():
    """As where the run that they are of saves a step while the hosts start."""
    (code_0, _, error_0), (code_1, _, error_1) = run_hosts(
        "from types import SimpleNamespace",
        "import numpy as np",
        "from sparse_tube_vit.config import default_config",
        "from sparse_tube_vit.training import initialization",
        "params = {'norm': {'scale': np.full(2, jax.process_index(), np.float32)}}",
        "report = SimpleNamespace(source='step 2 of run', new={})",
        "initialization.pretrained.initial_params = lambda *_: (params, report)",
        "config, state = default_config(), SimpleNamespace(params={})",
        "config.init.weights = 'run'",
        "program = SimpleNamespace(model=None, state=state)",
        "initialization.initial_params(config, program, {})",
    )
    assert (code_0, code_1) == (1, 1)
    assert "HostsDiffer" in error_1 and "init.weights.content: " in error_1, error_1
    assert "init.weights.from" not in error_1
    assert "host 1: HostsDiffer" in error_0


def test_hosts_that_see_other_checkpoints_are_refused(tmp_path):
    for host, step in ((0, "20"), (1, "10")):
        (tmp_path / str(host) / "checkpoints" / step).mkdir(parents=True)
    (code_0, _, error_0), (code_1, _, error_1) = run_hosts(
        "from sparse_tube_vit.checkpoints import run",
        f"workdir = {str(tmp_path)!r} + '/' + str(jax.process_index())",
        "run.latest_step = lambda path: int(next(path.iterdir()).name)",
        "run.Checkpoints(workdir, 2, {})",
    )
    assert (code_0, code_1) == (1, 1)
    for error in (error_0, error_1):
        assert "does not have the same checkpoints on all hosts" in error


def test_hosts_whose_shards_are_exchanged_are_refused(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "0")
    shutil.copytree(data_dir, tmp_path / "1")
    directory = next((tmp_path / "1/moving_shapes/videos").iterdir())
    one, other, *_ = sorted(directory.glob("*train*"))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    (code_0, _, error_0), (code_1, _, error_1) = run_hosts(
        "from sparse_tube_vit.datasets.reading import open_split",
        f"data_dir = {str(tmp_path)!r} + '/' + str(jax.process_index())",
        "split = open_split('moving_shapes/videos', 'train', data_dir)",
        "other = open_split('moving_shapes/images', 'train', data_dir)",
        "hosts.check_same({}, {'streams.video': split, 'streams.image': other})",
    )
    assert (code_0, code_1) == (1, 1)
    assert "HostsDiffer" in error_1 and "data.streams.video.records: " in error_1
    assert "digest" not in error_1 and "image" not in error_1
    assert "host 1: HostsDiffer" in error_0


@pytest.mark.slow
def test_a_signal_before_training_ends_all():
    """Also a host that waits for the first."""
    started = time.monotonic()
    (code_0, _, error_0), (code_1, _, error_1) = run_hosts(
        "if jax.process_index() == 1:",
        "    import os, signal, threading",
        "    stop = os.kill, (os.getpid(), signal.SIGTERM)",
        "    threading.Timer(3, *stop).start()",
        "with hosts.first_host_first('data'):",
        "    time.sleep(300)",
    )
    assert (code_0, code_1) == (75, 75) and time.monotonic() - started < 120
    assert error_1.endswith(
        "HostStopped: Stopped by a signal where there is nothing to save.\n"
    )
    assert "host 1: HostStopped" in error_0


@pytest.mark.slow
def test_a_work_directory_on_each_host_is_refused(tmp_path):
    (tmp_path / "0").mkdir(), (tmp_path / "1").mkdir()
    (_, _, error_0), (_, _, error_1) = run_hosts(
        f"workdir = epath.Path({str(tmp_path)!r}) / str(jax.process_index())",
        "hosts.check_shared(workdir)",
    )
    assert "WorkdirNotShared" in error_1 and f"{tmp_path}/1 is not the same" in error_1
    assert "host 1: WorkdirNotShared" in error_0


@pytest.mark.slow
def test_a_host_that_starts_late_is_waited_for_and_one_that_does_not_is_missed():
    results = run_hosts("print(jax.device_count())", late=8)
    assert [(code, out[-2:]) for code, out, _ in results] == [(0, "2\n")] * 2
    for host in (0, 1):
        started = time.monotonic()
        ((code, out, error),) = run_hosts(
            "print('alone')", only=host, HOSTS_START_SECONDS=6
        )
        assert code == 1 and "alone" not in out and time.monotonic() - started < 60
        assert error.startswith("HostMissing: The hosts did not find each other within")


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"JAX_NUM_PROCESSES": ""}, "are needed"),
        ({"JAX_PROCESS_ID": "2"}, "numbered from 0"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "must be host:port of the first"),
        ({"HOSTS_START_SECONDS": "-1"}, "^HOSTS_START_SECONDS is '-1': it must be"),
        ({"HOSTS_LOST_SECONDS": "abc"}, "^HOSTS_LOST_SECONDS is 'abc': it must be"),
    ],
)
def test_an_environment_that_names_no_hosts(variables, message, monkeypatch):
    named = {"JAX_COORDINATOR_ADDRESS": "localhost:1"}
    named |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for name, value in (named | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(hosts.UnknownHosts, match=message), hosts.connected():
        pass


@pytest.mark.parametrize("platforms", ["cuda", "nonsense,cpu"])
def test_devices_that_are_not_there(platforms):
    ((code, _, error),) = run_hosts("pass", count=1, JAX_PLATFORMS=platforms)
    assert code == 1
    assert error.startswith(f"NoDevices: JAX_PLATFORMS={platforms} asks for")


def test_one_host_alone_joins_nobody(monkeypatch):
    entered = []
    with hosts.connected():  # nothing says that there are others
        entered.append(jax.distributed.is_initialized())
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with hosts.connected():
        entered.append(jax.distributed.is_initialized())
    assert entered == [False, False]


@pytest.mark.slow
def test_four_hosts_train_as_one(pod, finished, data_dir, tmp_path):
    four = pod(4)
    assert four.ended() == (0, dict.fromkeys(range(4), 0)), four
    assert_same_run(tmp_path / "run", finished, data_dir)


@pytest.mark.slow
def test_two_hosts_whose_data_and_run_are_in_a_bucket(
    pod, finished, data_dir, monkeypatch
):
    bucket.use(monkeypatch).upload(data_dir, "of-a-pod", "data")
    data, workdir = "gs://of-a-pod/data", "gs://of-a-pod/run"
    two = pod(2, f"config.data_dir = {data!r}", workdir=workdir)
    assert two.ended() == (0, {0: 0, 1: 0}), two
    assert_same_run(workdir, finished, data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices, mesh",
    [
        (2, {"data": 1, "fsdp": 2, "tensor": 2}),  # fsdp across hosts
        (1, {"data": 1, "fsdp": 1, "tensor": 2}),  # tensor: both feed the same examples
    ],
)
def test_parameters_split_over_hosts(devices, mesh, pod, finished, data_dir, tmp_path):
    two = pod(2, f"config.mesh.update({mesh})", DEVICES=devices)
    assert two.ended() == (0, {0: 0, 1: 0}), two
    assert_same_run(tmp_path / "run", finished, data_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        IN_STEP.format(step=5, host=1, signal="SIGKILL"),
        IN_STEP.format(step=5, host=0, signal="SIGKILL"),
        IN_STEP.format(step=5, host=1, signal="SIGSTOP"),
        IN_CHECKPOINT.format(host=1, signal="SIGKILL", before=""),
        IN_CHECKPOINT.format(host=1, signal="SIGKILL", before="save(self, state)"),
    ],
    ids=["step", "step_first_host", "step_frozen", "checkpoint", "checkpoint_begun"],
)
def test_a_lost_host_ends_the_others_and_the_run_resumes(
    change, pod, finished, data_dir, tmp_path
):
    two = pod(2, change, HOSTS_LOST_SECONDS=10)
    lost = 0 if ", 0)" in change else 1
    compiled = two.wait_for("step 2 of 6")
    ended = two.wait_for(rf"\[{1 - lost}\] ended with [1-9]")
    assert ended - compiled < 45, two  # of which 10 without a sign of life at most
    if "SIGSTOP" in change:
        os.kill(two.pids[lost], signal.SIGKILL)
    code, codes = two.ended()
    assert code == 1 and codes[lost] == 137, two
    assert locate(tmp_path / "run").step in (2, 4)
    assert_same_run(tmp_path / "run", finished, data_dir)


@pytest.mark.slow
def test_a_signal_to_one_host_saves_the_same_step_on_all(
    pod, finished, data_dir, tmp_path
):
    two = pod(2, IN_STEP.format(step=3, host=1, signal="SIGTERM"))
    assert two.ended() == (1, {0: 75, 1: 75}), two
    for host in (0, 1):
        assert f"[{host}] Interrupted: Stopped by a signal. Step 4 is saved in" in two
    assert locate(tmp_path / "run").step == 4
    again = pod(4)
    assert again.ended() == (0, dict.fromkeys(range(4), 0)), again
    assert "Resumed from step 4" in again
    assert_same_run(tmp_path / "run", finished, data_dir)


@pytest.mark.slow
def test_a_signal_to_the_script_stops_all_hosts(pod, tmp_path):
    two = pod(2, "config.total_steps = 3000", "config.checkpoint.every_steps = 10_000")
    two.wait_for("step 4 of 3000")
    two.process.terminate()
    assert two.ended() == (1, {0: 75, 1: 75}), two
    step = locate(tmp_path / "run").step
    assert f"[1] Interrupted: Stopped by a signal. Step {step} is saved in" in two


@pytest.mark.slow
def test_what_does_not_decode_counts_over_all_hosts(pod, tmp_path):
    """Two examples of 24 on each host, of which all may have three."""
    damage = """
read, damaged = pipeline.TrainingExample.read, []
def damage(self, encoded, rng):
    if self.kind == "image" and (encoded in damaged or len(damaged) < 2):
        damaged.append(encoded)
        raise UndecodableClip(f"damaged on {host}")
    return read(self, encoded, rng)
pipeline.TrainingExample.read = damage
config.loader.update(threads=1, prefetch=1, max_undecodable=3 / 24)
"""
    two = pod(2, damage)
    assert two.ended() == (1, {0: 1, 1: 1}), two
    for host in (0, 1):
        message = "TooManyUndecodable: 4 of the 24 examples of moving_shapes/images"
        assert f"[{host}] {message}" in two, two
        assert sum(f"[{host}]   " in x and "damaged on" in x for x in two.lines) == 4
    listed = json.loads((tmp_path / "run" / "undecodable.json").read_text())
    assert len(listed["image"]) == 4
    assert f"is saved in {tmp_path / 'run'}" in two
