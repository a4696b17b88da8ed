"""tpu_vm.sh with a cloud that is this process and this machine: tests.launch.cloud."""

import importlib.metadata
import math
import re
import shlex
import shutil
import subprocess
import time

import pytest

from tests.launch.cloud import executable, switch_off
from tests.launch.conftest import ROOT, commit
from tests.processes import alive, group

POD = ("pod", "--accelerator_type", "v5litepod-16")
CONFIG = ("--config", "configs/kinetics.py:variant=L")
RUN = (*CONFIG, "--workdir", "gs://bucket/a run", "--config.total_steps=7")
#: What train.py gets of RUN: resuming compiles nothing again.
CACHE = "--config.compilation_cache=gs://bucket/a run/compiled"
TRAIN = (*RUN[:4], CACHE, *RUN[4:])
WHERE = ["--zone=us-west4-a", "--project=mine"]


def becomes(cloud, state):
    """The event that the queued resource gets into another state."""

    def event():
        cloud.queued["pod"][0] = state

    return event


def preempted(cloud):
    def event():
        for home in cloud.homes:
            switch_off(home)
        cloud.queued["pod"][0] = "SUSPENDED"

    return event


def end(home, code):
    (home / "ends").write_text(str(code))
    wait_for((home / "sparse_tube_vit/exit_code").exists)
    wait_for(lambda: not alive((home / "sparse_tube_vit/pid").read_text().strip()))
    (home / "ends").unlink()  # the next one trains


def ended(cloud, code):
    """The event that the run ends on all workers."""
    return lambda: [end(home, code) for home in cloud.homes]


def calls_of(text):
    """The commands that a dry run printed, but for its notes and other programs."""
    lines = [shlex.split(line) for line in text.splitlines() if line[0] != "#"]
    return [line for line in lines if line[0] == "gcloud"]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ready(cloud, slices=1):
    """A pod as setup leaves it, and a slice of another, which is none of ours."""
    cloud.slices["pod-7"] = ["PREEMPTED", []]
    names = [f"pod-{i}" for i in range(slices)] if slices > 1 else ["pod"]
    cloud.queued["pod"] = ["ACTIVE", names]
    cloud.make(*names)
    head = ["git", "rev-parse", "HEAD^{tree}"]
    tree = subprocess.run(head, cwd=cloud.repository, capture_output=True, check=True)
    for home in cloud.homes:
        there = home / "sparse_tube_vit"
        shutil.copytree(cloud.repository / "launch", there / "code/launch")
        (there / "tree").write_bytes(tree.stdout)
        (there / "venv/bin").mkdir(parents=True)
        shutil.copy(cloud.path / "on_workers/train", there / "venv/bin/python")


def test_create_asks_for_a_vm_with_what_was_given(cloud):
    (call,) = cloud.does(
        "create", *POD, *CONFIG, "--spot", "--create_flag=--description=my first pod"
    )
    assert call == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "pod", *WHERE),
        *("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"),
        *("--spot", "--description=my first pod"),
    ]


def test_queue_asks_for_slices_and_waits_until_they_are_there(cloud):
    cloud.state = "WAITING_FOR_RESOURCES"
    cloud.events = [becomes(cloud, "PROVISIONING"), None, becomes(cloud, "ACTIVE")]
    create, *looks = cloud.does("queue", *POD, *CONFIG, "--slices=3", "--wait")
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "pod", *WHERE),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"),
        *("--node-count=3", "--node-prefix=pod"),
    ]
    assert len(looks) == 4
    assert cloud.sleeps == [60, 60, 60]


def test_a_request_that_fails_in_the_queue_is_told(cloud):
    cloud.state = "FAILED"
    done = cloud.launch("queue", *POD, *CONFIG, "--wait")
    assert done.returncode == 1
    assert '"state": "FAILED"' in done.stderr  # what describe says
    assert "QueueFailed: the request for pod is FAILED" in done.stderr


SIZES = {
    "v4": [8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 4096],
    "v5litepod": [1, 4, 8, 16, 32, 64, 128, 256],
    "v5p": [8, 32, 384, 640, 768, 1536, 8192, 12288],
    "v6e": [1, 4, 8, 16, 32, 64, 128, 256],
}


def test_preflight_gets_the_topology_of_the_accelerator(cloud):
    chips = {}
    for kind, sizes in SIZES.items():
        for size in sizes:
            done = cloud.launch(
                *("create", "pod", "--accelerator_type", f"{kind}-{size}"),
                *(*CONFIG, "--dry_run"),
            )
            topology = re.search(r"--topology (\w+):([\dx]+)", done.stdout)
            assert topology[1] == {"v5litepod": "v5e"}.get(kind, kind)
            chips[kind, size] = math.prod(map(int, topology[2].split("x")))
    # On v4 and v5p the name counts cores, two a chip.
    assert chips == {
        (kind, size): size // 2 if kind in ("v4", "v5p") else size
        for kind, size in chips
    }


def test_preflight_compiles_the_config_as_it_would_run(cloud):
    classes = "--preflight_flag=--classes=a=2"
    cloud.does("queue", *POD, *CONFIG, "--slices=2", "--config.seed=3", classes)
    assert cloud.preflights == [
        [
            *("-m", "sparse_tube_vit.preflight", *CONFIG, "--topology", "v5e:4x4"),
            *("--config.mesh.slices=2", "--config.seed=3", "--classes=a=2"),
        ]
    ]


def test_setup_brings_the_committed_code_and_the_pinned_environment(cloud):
    (cloud.repository / "untracked.txt").touch()
    cloud.make("pod-0", "pod-1")
    cloud.does("setup", "pod", "--slices=2")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=cloud.repository, capture_output=True, text=True
    )
    assert len(cloud.homes) == 4  # two slices of two workers
    for home in cloud.homes:
        code = home / "sparse_tube_vit/code"
        files = {str(f.relative_to(code)) for f in code.rglob("*") if f.is_file()}
        assert files == set(listed.stdout.split())
        pip, *uv = (home / "installed").read_text().splitlines()
        assert re.fullmatch(r"pip install --quiet .* --target uv uv==[\d.]+", pip)
        assert re.fullmatch(r"uv venv .* --python 3\.11\.\d+ venv", uv[0])
        assert uv[1].endswith("code/requirements-tpu.txt") and "pip sync" in uv[1]
    # Again, with a file less: no trace of it, and uv is there already.
    (cloud.repository / "configs/charades.py").unlink()
    commit(cloud.repository)
    cloud.does("setup", "pod", "--slices=2")
    for home in cloud.homes:
        assert not (home / "sparse_tube_vit/code/configs/charades.py").exists()
        assert (home / "installed").read_text().count("--target uv") == 1


def test_uncommitted_changes_go_along_when_asked(cloud):
    cloud.make("pod")
    changed = cloud.repository / "configs/kinetics.py"
    changed.write_text(changed.read_text() + "# changed\n")
    done = cloud.launch("setup", "pod")
    assert (done.returncode, len(cloud.calls)) == (1, 0)
    assert "M configs/kinetics.py\nUncommittedChanges:" in done.stderr
    cloud.does("setup", "pod", "--dirty")
    for home in cloud.homes:
        sent = home / "sparse_tube_vit/code/configs/kinetics.py"
        assert sent.read_text() == changed.read_text()
    assert "UncommittedChanges" in cloud.launch("run", "pod", *RUN).stderr
    cloud.does("run", "pod", *RUN, "--dirty")


def test_requirements_pin_the_libtpu_of_the_pinned_jax():
    pins = dict(
        line.split("==")
        for name in ("requirements.txt", "requirements-tpu.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line
    )
    if pins["jax"] != (installed := importlib.metadata.version("jax")):
        pytest.skip(f"jax {installed} is installed, {pins['jax']} is pinned")
    (wanted,) = (
        requirement.split(";")[0].strip()
        for requirement in importlib.metadata.requires("jax")
        if requirement.startswith("libtpu") and "tpu" in requirement.split(";")[1]
    )
    assert wanted.endswith(".*")
    assert f"libtpu=={pins['libtpu']}.".startswith(wanted.removesuffix("*"))


def test_run_gives_train_its_arguments_as_they_are_on_every_worker(cloud):
    ready(cloud, slices=2)
    strange = '--config.streams.video.dataset=it\'s "$HOME"  `ls` *; a\\b'
    cloud.does("run", "pod", "--slices=2", *RUN, strange)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
        assert (home / "trained_with").read_text().splitlines() == [
            str(home / "sparse_tube_vit/code"),
            "tpu,cpu",
            *("-m", "sparse_tube_vit.train", *TRAIN[:5], "--config.mesh.slices=2"),
            *(*TRAIN[5:], strange),
        ]


def pids(cloud):
    return [(home / "sparse_tube_vit/pid").read_text().strip() for home in cloud.homes]


def test_run_again_leaves_a_living_run_and_resumes_an_ended_one(cloud):
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    first = pids(cloud)
    done = cloud.launch("run", "pod", *RUN)
    assert done.stdout.count("trains already") == 2 and pids(cloud) == first
    done = cloud.launch("run", "pod", *RUN, "--config.seed=1")
    assert done.returncode == 1 and pids(cloud) == first
    assert f"pod/0 trains something else: {' '.join(TRAIN)}" in done.stderr
    for home in cloud.homes:
        switch_off(home)
    assert cloud.launch("status", "pod").stdout.count(" lost: ") == 2
    cloud.does("run", "pod", *RUN)
    assert len(set(first + pids(cloud))) == 4


def test_run_on_some_workers_only_is_told(cloud):
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
    switch_off(cloud.homes[1])
    done = cloud.launch("run", "pod", *RUN)
    assert done.returncode == 1
    assert "pod/0 running: step 1\npod/1 lost: " in done.stderr
    assert "PartlyRunning: " in done.stderr


def test_run_wants_the_workers_to_have_this_code(cloud):
    cloud.make("pod")
    done = cloud.launch("run", "pod", *RUN)
    assert "NotSetUp: a worker of pod has no code yet: setup pod." in done.stderr
    cloud.does("setup", "pod")
    with (cloud.repository / "configs/imagenet.py").open("a") as file:
        file.write("# changed\n")
    commit(cloud.repository)
    done = cloud.launch("run", "pod", *RUN)
    assert "pod/0 has other code than this repository now has" in done.stderr


def test_logs_of_one_worker_and_of_all(cloud):
    ready(cloud, slices=2)
    cloud.does("run", "pod", "--slices=2", *RUN)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
        (home / "ends").write_text("0")
    logs = ("logs", "pod", "--slices=2", "--lines=1")
    done = cloud.launch(*logs)  # follows until the run is done
    assert done.stdout == "step 1\n"
    cloud.launch(*logs, "--worker=1/1", "--no_follow")
    assert cloud.calls[-1][5:] == [
        *("pod-1", "--worker=1"),
        "--command=SLICE=pod-1 bash sparse_tube_vit/code/launch/tpu_worker.sh"
        " logs 1 all",
        *WHERE,
    ]
    done = cloud.launch(*logs, "--worker=all", "--no_follow")
    assert sorted(done.stdout.splitlines()) == [
        f"pod-{slice}/{worker} step 1" for slice in (0, 1) for worker in (0, 1)
    ]


def test_status_tells_the_resource_and_every_worker(cloud):
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
    end(cloud.homes[1], 3)
    assert cloud.launch("status", "pod").stdout.splitlines() == [
        "queued resource pod: ACTIVE",
        "pod\tREADY\tHEALTHY",
        "pod/0 running: step 1",
        "pod/1 failed (exit code 3): step 1",
    ]
    cloud.slices["pod"][0] = "PREEMPTED"
    done = cloud.launch("status", "pod")
    assert done.stdout.endswith("pod is not READY: nothing can run on it now.\n")


def test_status_of_a_pod_asks_for_its_slices(cloud):
    ready(cloud, slices=2)
    done = cloud.launch("status", "pod")
    assert "OtherSlices: no VM is called pod: give --slices" in done.stderr


def test_stop_lets_the_run_save_and_run_resumes(cloud):
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
    done = cloud.launch("stop", "pod")
    assert done.stdout == "".join(
        f"pod/{worker} stopped (exit code 1): Saved\n" for worker in (0, 1)
    )
    first = pids(cloud)
    for home in cloud.homes:
        (home / "trained_with").unlink()
    cloud.does("run", "pod", *RUN)
    for home in cloud.homes:
        wait_for((home / "trained_with").exists)
    assert cloud.launch("stop", "pod", "--kill").stdout.count("(exit code 137)") == 2
    assert len(set(first + pids(cloud))) == 4
    assert not any(map(group, pids(cloud)))


def test_a_run_that_its_machine_ends_is_lost(cloud):
    cloud.workers = 1
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    (home,) = cloud.homes
    wait_for((home / "trained_with").exists)
    subprocess.run(["kill", "-TERM", *pids(cloud)[0].split()], check=True)
    wait_for(lambda: "Saved" in (home / "sparse_tube_vit/log").read_text())
    wait_for(lambda: "pod/0 lost: Saved" in cloud.launch("status", "pod").stdout)


@pytest.mark.parametrize("how", [(), ("--kill",)])
def test_a_run_that_is_stopped_as_it_begins_is_stopped_and_not_lost(cloud, how):
    cloud.workers = 1
    ready(cloud)
    nohup = cloud.path / "on_workers/nohup"  # what a run begins with
    executable(nohup, 'touch "$HOME/begins"; while :; do sleep 0.02; done')
    cloud.does("run", "pod", *RUN)
    (home,) = cloud.homes
    wait_for((home / "begins").exists)
    done = cloud.launch("stop", "pod", *how)
    assert done.stdout.startswith("pod/0 stopped (exit code 1"), done.stdout
    nohup.unlink()
    cloud.does("run", "pod", *RUN)
    assert "pod/0 running" in cloud.launch("status", "pod").stdout


def test_a_run_that_does_not_stop_is_told(cloud):
    cloud.workers = 1
    ready(cloud)
    (home,) = cloud.homes
    stubborn = "#!/bin/sh\ntrap '' TERM\ntouch ~/trained_with\nsleep 60\nsleep 60\n"
    (home / "sparse_tube_vit/venv/bin/python").write_text(stubborn)
    cloud.does("run", "pod", *RUN)
    wait_for((home / "trained_with").exists)
    done = cloud.launch("stop", "pod", "--timeout_seconds=0")
    assert done.returncode == 1
    assert "pod/0 has not stopped after 0 s. It may be saving" in done.stderr


def test_delete_deletes_what_there_is(cloud):
    cloud.does("create", *POD, "--no_preflight")
    look, delete = cloud.does("delete", "pod")
    assert look[3:5] == ["queued-resources", "list"]
    assert delete[3:] == ["tpu-vm", "delete", "pod", *WHERE, "--quiet"]
    cloud.does("queue", *POD, "--no_preflight", "--slices=2")
    _, delete = cloud.does("delete", "pod", "--slices=2")
    assert delete[3:] == [
        *("queued-resources", "delete", "pod", "--force", *WHERE, "--quiet")
    ]
    assert not cloud.homes


def verbs(calls):
    """What a list of calls does, without its looks at what there is."""
    done = [f"{c[3]} {c[4]}" for c in calls if c[4] not in ("list", "ssh")]
    return [verb for verb in done if verb != "tpu-vm scp"], sum(
        " start " in c[-3] for c in calls if c[4] == "ssh"
    )


def test_watch_carries_a_run_through_preemption(cloud):
    cloud.workers = 1
    cloud.events = [None, None, preempted(cloud), None, None, ended(cloud, 0)]
    calls = cloud.does("watch", *POD, *RUN, "--spot", "--then_delete")
    request, delete = "queued-resources create", "queued-resources delete"
    assert verbs(calls) == ([request, delete, request, delete], 2)
    created = [c for c in calls if c[4] == "create"]
    assert created[0] == created[1] and "--spot" in created[0]
    assert len(cloud.preflights) == 1


def test_watch_asks_again_where_a_request_or_a_removal_fails(cloud):
    cloud.workers = 1
    cloud.failures = [
        ("queued-resources create", 1, 1, "ERROR: 503"),
        ("queued-resources delete", 2, 1, "ERROR: 503"),
    ]
    cloud.events = [*[None] * 3, preempted(cloud), *[None] * 4, ended(cloud, 0), None]
    calls = cloud.does("watch", *POD, *RUN, "--then_delete")
    request, delete = "queued-resources create", "queued-resources delete"
    expected = [request, request, delete, delete, delete, request, delete]
    assert verbs(calls) == (expected, 2)


def test_watch_deletes_nothing_else_where_it_cannot_see_what_there_is(cloud):
    look = cloud._list_queued_resources

    def preempted_and_blind():
        preempted(cloud)()
        looks = iter([look, lambda flags: ("", "ERROR: 503\n", 1)])
        cloud._list_queued_resources = lambda flags: next(looks, look)(flags)

    cloud.workers = 1
    cloud.events = [None, preempted_and_blind, None, None, None, ended(cloud, 0)]
    calls = cloud.does("watch", *POD, *RUN)
    request, delete = "queued-resources create", "queued-resources delete"
    assert verbs(calls) == ([request, delete, request], 2)


@pytest.mark.slow
def test_watch_gives_up_where_no_request_succeeds(cloud):
    cloud.failures = [("queued-resources create", 99, 1, "ERROR: Quota exceeded")]
    cloud.events = [None] * 12
    done = cloud.launch("watch", *POD, *RUN)
    assert done.returncode == 1 and "QuotaExceeded" in done.stderr
    assert "WatchFailed: that failed 10 times in a row" in done.stderr
    assert verbs(cloud.calls) == (["queued-resources create"] * 10, 0)


def test_watch_starts_again_where_a_machine_was_lost(cloud):
    cloud.workers = 1
    lost = lambda: [switch_off(home) for home in cloud.homes]  # noqa: E731
    cloud.events = [None, None, lost, None, ended(cloud, 0)]
    calls = cloud.does("watch", *POD, *RUN)
    assert verbs(calls) == (["queued-resources create"], 2)


@pytest.mark.slow
def test_watch_does_not_wait_for_the_queue_to_see_a_preemption(cloud):
    def taken():
        cloud.slices["pod"][0] = "PREEMPTED"

    cloud.workers = 1
    cloud.events = [None, None, taken, None, None, ended(cloud, 0)]
    calls = cloud.does("watch", *POD, *RUN)
    request, delete = "queued-resources create", "queued-resources delete"
    assert verbs(calls) == ([request, delete, request], 2)


@pytest.mark.slow
def test_watch_ends_a_run_that_hangs_without_some_workers(cloud):
    one_lost = lambda: switch_off(cloud.homes[1])  # noqa: E731
    cloud.events = [None, None, one_lost, *[None] * 4, ended(cloud, 0)]
    calls = cloud.does("watch", *POD, *RUN)
    assert verbs(calls) == (["queued-resources create"], 2)
    assert sum("stop 0 lost" in call[-3] for call in calls) == 1


@pytest.mark.slow
def test_watch_outlives_a_cloud_that_does_not_answer_for_a_while(cloud):
    def silent(times):
        return lambda: cloud.failures.append((" list ", times, 1, "ERROR: 503"))

    cloud.workers = 1
    cloud.events = [None, None, silent(3), *[None] * 3, silent(99), *[None] * 12]
    done = cloud.launch("watch", *POD, *RUN)
    assert "WatchBlind: gcloud did not answer 10 times in a row" in done.stderr
    assert verbs(cloud.calls) == (["queued-resources create"], 1)
    sleeps = len(cloud.sleeps)
    done = cloud.launch("watch", *POD, *RUN)
    assert "GcloudFailed: exit code 1 of: gcloud compute tpus queued-" in done.stderr
    assert len(cloud.sleeps) == sleeps  # its first look has to succeed


def test_watch_resumes_a_run_that_fails_and_ends_where_it_fails_again(cloud):
    # More looks than it takes: workers that start slowly are seen one by one.
    fails = [None, None, ended(cloud, 3), None]
    cloud.events = [*fails, *fails, *[None] * 4]
    done = cloud.launch("watch", *POD, *RUN, "--restarts=1")
    assert done.returncode == 1
    assert verbs(cloud.calls) == (["queued-resources create"], 2)
    assert done.stderr.count("pod/1 failed (exit code 3)") == 2
    assert done.stderr.count("the run ended with an error, with all of pod") == 1
    assert (
        "RunFailed: the run ended with an error 2 times, with all of pod" in done.stderr
    )
    assert "still costs" in done.stderr


def test_watch_counts_no_failure_before_an_hour_of_training(cloud):
    cloud.workers = 1
    fails = [None, None, None, ended(cloud, 3), None]
    cloud.events = [*fails, *fails, None, None, ended(cloud, 0)]
    flags = "--restarts=1", "--poll_seconds=1800"
    calls = cloud.does("watch", *POD, *RUN, *flags)
    assert verbs(calls) == (["queued-resources create"], 3)


def test_watch_resumes_what_was_stopped_before_it_and_not_after(cloud):
    cloud.workers = 1
    ready(cloud)
    cloud.does("run", "pod", *RUN)
    cloud.does("stop", "pod")
    cloud.events = [None, None, lambda: cloud.does("stop", "pod")]
    done = cloud.launch("watch", *POD, *RUN)
    assert "RunStopped: pod was stopped by hand" in done.stderr
    assert verbs(cloud.calls) == ([], 2)


@pytest.mark.slow
def test_watch_gives_up_where_setup_fails_again_and_again(cloud):
    cloud.workers = 1
    cloud.failures = [(" scp ", 99, 1, "disk full")]
    cloud.events = [None] * 9
    done = cloud.launch("watch", *POD, *RUN)
    assert done.returncode == 1
    assert "StartFailed: the run did not start 5 times in a row" in done.stderr
    assert done.stderr.count("disk full") == 5


def test_a_dry_run_prints_what_a_run_calls_and_calls_nothing(cloud):
    slices = "--slices=2"
    cloud.workers = 1
    for command in (
        ("queue", *POD, *CONFIG, "--spot", "--create_flag=--labels=a=b c"),
        ("setup", "pod"),
        ("status", "pod"),
        ("run", "pod", *RUN),
        ("logs", "pod", "--worker=all", "--no_follow"),
        ("stop", "pod"),
    ):
        before = [*cloud.calls]
        printed = cloud.launch(*command, slices, "--dry_run")
        assert (printed.returncode, cloud.calls) == (0, before), printed.stderr
        # Slices are called at once: in any order.
        assert sorted(calls_of(printed.stdout)) == sorted(cloud.does(*command, slices))


def test_dry_runs_print_both_ways_to_delete_and_all_that_watch_may_do(cloud):
    printed = cloud.launch("create", *POD, *CONFIG, "--dry_run").stdout
    assert calls_of(printed) == cloud.does("create", *POD, *CONFIG)
    assert shlex.split(printed.splitlines()[0]) == ["python", *cloud.preflights[0]]
    look, queued, vm = calls_of(cloud.launch("delete", "pod", "--dry_run").stdout)
    assert cloud.does("delete", "pod") == [look, vm]
    cloud.workers = 1
    watch = ("watch", *POD, *RUN, "--then_delete")
    printed = cloud.launch(*watch, "--dry_run").stdout
    assert printed.count("\npython -m sparse_tube_vit.preflight --config") == 1
    printed = calls_of(printed)
    cloud.events = [None, None, preempted(cloud), None, None, ended(cloud, 0)]
    called = cloud.does(*watch)
    assert queued in called
    rarely = [vm, *(c for c in printed if any(" stop 0 lost" in word for word in c))]
    assert {*map(tuple, called)} == {*map(tuple, printed)} - {*map(tuple, rarely)}


def test_a_dry_run_needs_no_gcloud_when_told_where(cloud):
    path = only(cloud, "bash", "env", "sed", "dirname", "cut", "tr")
    told = ("--zone=z", "--project=p", "--dry_run")
    done = cloud.launch("create", *POD, *CONFIG, *told, path=path)
    assert done.returncode == 0 and "--zone=z --project=p" in done.stdout


def only(cloud, *programs):
    """A PATH with nothing but these."""
    path = cloud.path / "only"
    path.mkdir()
    for program in programs:
        (path / program).symlink_to(shutil.which(program))
    return str(path)


@pytest.mark.parametrize(
    "command, named",
    [
        (("begin", "pod"), "UnknownCommand: begin"),
        (("create",), "MissingName: "),
        (("create", "My_Pod"), "BadName: My_Pod"),
        (("create", "pod", *CONFIG), "MissingOption: create needs --accelerator_type"),
        (("create", *POD), "MissingOption: create needs --config"),
        (("create", *POD, "--confg=x"), "UnknownOption: --confg=x"),
        (("create", *POD, *CONFIG, "--spot=false"), "UnknownOption: --spot=false"),
        (("create", *POD, "--config"), "MissingValue: --config"),
        (("create", *POD, *CONFIG, "--slices=2"), "NotByCreate: "),
        (("queue", *POD, *CONFIG, "--slices=two"), "NotANumber: --slices two"),
        (("queue", *POD, *CONFIG, "--slices=08"), "NotANumber: --slices 08"),
        (
            ("create", *POD, "--config=configs/none.py:x"),
            "NoConfigFile: configs/none.py",
        ),
        (
            ("create", "pod", "--accelerator_type=v5e-16", *CONFIG),
            "UnknownAccelerator: v5e-16 is none of v4-N, v5litepod-N (v5e)",
        ),
        (
            ("queue", "pod", "--accelerator_type=v6e-12", *CONFIG),
            "v6e-N of N = 1 4 8 16 32 64 128 256.",
        ),
        (("run", "pod", *CONFIG), "MissingOption: run needs --workdir"),
        (("run", "pod", *CONFIG, "--workdir=runs/a"), "WorkdirNotShared: "),
        (("logs", "pod", "--worker=two"), "NotAWorker: --worker two"),
        (("logs", "pod", "--worker=1/0"), "NotAWorker: --worker 1/0"),
    ],
)
def test_errors_before_anything_is_called(cloud, command, named):
    done = cloud.launch(*command)
    well_formed = named.startswith(("NoConfigFile", "WorkdirNotShared"))
    assert (done.returncode, cloud.calls) == (1 if well_formed else 2, [])
    assert named in done.stderr and done.stderr.count("\n") == 1


def test_errors_of_the_place(cloud):
    queue = ("queue", *POD, *CONFIG)
    path = only(cloud, "bash", "env", "sed", "dirname")
    assert "NoGcloud: " in cloud.launch(*queue, path=path).stderr
    cloud.config = {"project": "mine"}
    assert "NoZone: " in cloud.launch(*queue).stderr
    cloud.config = {"compute/zone": "here"}
    assert "NoProject: " in cloud.launch(*queue).stderr
    cloud.config = {"project": "mine", "compute/zone": "here"}
    (cloud.repository / "configs/new.py").touch()
    new = ("run", "pod", "--config=configs/new.py", "--workdir=gs://b/r")
    assert "configs/new.py is not in git" in cloud.launch(*new).stderr
    assert not cloud.calls


def test_a_config_that_does_not_fit_costs_nothing(cloud):
    cloud.fits = False
    for command in ("create", "queue"):
        done = cloud.launch(command, *POD, *CONFIG)
        assert (done.returncode, cloud.calls) == (1, [])
        assert "It does not fit: 17 GB of 16\nPreflightFailed: " in done.stderr
        assert "--no_preflight" in done.stderr
    cloud.does("create", *POD, *CONFIG, "--no_preflight")


@pytest.mark.parametrize(
    "says, named",
    [
        ("There is no more capacity in the zone", "NoCapacity: us-west4-a has no v5"),
        ("Quota limit 'TPUV5sPodPerProject' has been exceeded", "QuotaExceeded: mine"),
        ("ALREADY_EXISTS: Resource", "AlreadyExists: there is a pod in us-west4-a"),
        ("You do not currently have an active account", "NotLoggedIn: "),
        ("PERMISSION_DENIED: tpu.nodes.create", "PermissionDenied: "),
        ('This TPU has terminal state "PREEMPTED"', "Preempted: the VM was taken away"),
        ("Something else", "GcloudFailed: exit code 4 of: gcloud compute tpus tpu-vm"),
    ],
)
def test_what_gcloud_refuses_is_passed_on_with_what_to_do(cloud, says, named):
    cloud.failures = [("tpu-vm create", 1, 4, f"ERROR: (gcloud) {says}")]
    done = cloud.launch("create", *POD, "--no_preflight")
    assert (done.returncode, len(cloud.calls)) == (1, 1)  # not tried again
    assert f"ERROR: (gcloud) {says}\n{named}" in done.stderr


def test_commands_on_what_does_not_exist_say_so(cloud):
    for command in (("setup", "pod"), ("run", "pod", *RUN), ("status", "pod")):
        assert "NotFound: us-west4-a in mine has no" in cloud.launch(*command).stderr


def test_ssh_is_tried_three_times_and_nothing_else_is(cloud):
    cloud.make("pod")
    cloud.events = [None] * 4
    cloud.failures = [(" ssh ", 2, 255, "Connection timed out")]
    scp, *ssh = cloud.does("setup", "pod")
    assert [call[4] for call in ssh] == ["ssh"] * 3
    assert cloud.sleeps == [10, 20]
    cloud.failures = [(" ssh ", 3, 255, "Connection timed out")]
    done = cloud.launch("run", "pod", *RUN)
    assert "SshFailed: no connection in 3 tries." in done.stderr
    cloud.failures = [(" ssh ", 1, 1, "##### Command execution on worker 1 failed")]
    done = cloud.launch("run", "pod", *RUN)
    assert "worker 1 failed\nWorkerFailed: at least one worker failed" in done.stderr


def test_setup_can_be_tried_again_after_it_did_its_work(cloud):
    def ssh(*arguments):
        out, _, _ = done(*arguments)
        cloud._ssh_tpu_vm = done
        return out, "Connection closed\n", 255

    cloud.make("pod")
    cloud.events = [None]
    done, cloud._ssh_tpu_vm = cloud._ssh_tpu_vm, ssh
    cloud.does("setup", "pod")
    assert len(cloud.sleeps) == 1
    cloud.does("run", "pod", *RUN)


def test_one_slice_that_fails_fails_the_command(cloud):
    cloud.make("pod-0", "pod-1", "pod-2")
    cloud.failures = [(" scp .* pod-1:", 1, 1, "no space left")]
    done = cloud.launch("setup", "pod", "--slices=3")
    assert done.returncode == 1 and "no space left\nWorkerFailed" in done.stderr


def test_a_tunnel_takes_the_release_of_gcloud_that_has_it(cloud):
    cloud.make("pod")
    flag = "--ssh_flag=--tunnel-through-iap"
    scp, ssh = cloud.does("setup", "pod", flag)
    for call in (scp, ssh):
        assert call[1:4] == ["alpha", "compute", "tpus"]
        assert call[-1] == "--tunnel-through-iap"


def test_help_tells_its_use(cloud):
    done = cloud.launch("--help")
    assert done.returncode == 0
    for command in ("create", "queue", "setup", "run", "logs", "status", "stop"):
        assert f"./launch/tpu_vm.sh {command} NAME" in done.stdout
    script = (ROOT / "launch/tpu_vm.sh").read_text()
    parsed = script.split('case "$option" in')[1].split("UnknownOption")[0]
    assert set(re.findall(r"--[a-z_]+", parsed)) <= set(
        re.findall(r"--[a-z_]+", done.stdout)
    )
