"""Carrying out runs: failures, interruptions, and one for real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparse_tube_vit import storage
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.reproduction import runner
from sparse_tube_vit.reproduction.runs import Results, Run, plan
from sparse_tube_vit.reproduction.tables import TABLES, select

# A run's end result, as `train` leaves it.
TRAINED = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]) / "evaluations"
folder.mkdir(parents=True)
for step in (600, 1200):
    for name in ("video", "image", "tokens_768", "tokens_1024", "tokens_1536"):
        result = {"evaluation": name, "step": step, "top1": step / 2000, "tokens": 114}
        (folder / f"{name}_step{step}.json").write_text(json.dumps(result))
"""


ROOT = Path(__file__).parents[2]

#: What it yields beside the tests' short programs.
COMMANDS = Run.commands


def run_of(table, row, task="moving_shapes", seed=0):
    return Run.of(table, TABLES[table].row(row), task, seed)


@pytest.fixture
def commands(monkeypatch):
    """Puts short programs in place of training, by the name of the run."""
    programs = {}

    def commands(self, runs, data_dir, weights):
        program = programs.get(self.name, TRAINED)
        yield [sys.executable, "-c", program, str(self.workdir(runs))]

    monkeypatch.setattr(Run, "commands", commands)
    monkeypatch.setattr(runner, "_device", lambda: "2 CPU cores")
    return programs


def test_the_last_step_is_the_result(commands, tmp_path):
    results = Results(tmp_path / "results")
    run = run_of("5", "jointly")
    commands[run.name] = "import time; time.sleep(1.2)" + TRAINED
    assert runner.carry_out([run], results, tmp_path / "runs", "data", "") == []
    stored = Results(tmp_path / "results").get(run)
    assert stored["evaluations"]["video"] == {"top1": 0.6, "tokens": 114}
    assert stored["steps"] == 1200 and stored["device"] == "2 CPU cores"
    assert 0.02 <= stored["minutes"] < 1
    found = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(found, capture_output=True, text=True, cwd=ROOT)
    commit = found.stdout.strip() if (ROOT / ".git").exists() else ""
    assert stored["commit"].removesuffix("-dirty") == commit
    log = (tmp_path / "runs" / run.folder / "log.txt").read_text()
    assert log.startswith(f"$ {sys.executable} -c")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_the_device_is_the_cores_that_a_run_may_use():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert runner._device() == "1 CPU core"
    finally:
        os.sched_setaffinity(0, cores)


def test_a_failed_run_stops_only_what_needs_it(commands, tmp_path):
    commands["5_images"] = "raise SystemExit('no memory')"
    results = Results(tmp_path / "results")
    runs = [run_of("5", row) for row in ("images", "images_first", "videos_alone")]
    failed = runner.carry_out(runs, results, tmp_path / "runs", "data", "")
    assert [str(error).partition(" ")[0] for error in failed] == [
        "moving_shapes/5_images/0",
        "moving_shapes/5_images_first/0:",
    ]
    assert "no memory" in str(failed[0]) and "log.txt" in str(failed[0])
    assert "5_images/0 failed before" in str(failed[1])
    left = plan(select(["5"]), ["moving_shapes"], 1, results, tmp_path / "runs")
    assert "5_videos_alone" not in [run.name for run in left]


def test_results_that_break_stop_only_runs_of_their_task(commands, tmp_path):
    results = Results(tmp_path / "results")
    broken, whole = run_of("14", "a.iv+b.v+f.iv", "ucf101"), run_of("5", "jointly")
    results.path("ucf101").parent.mkdir()
    results.path("ucf101").write_text("<<<<<<< a merge")
    runs = [broken, whole]
    (failed,) = runner.carry_out(runs, results, tmp_path / "runs", "data", "")
    assert "ucf101.json is not as" in str(failed)
    assert results.get(whole)


def test_minutes_are_those_of_all_attempts(commands, tmp_path):
    results, run = Results(tmp_path / "results"), run_of("5", "jointly")
    commands[run.name] = "import time; time.sleep(1.2); raise SystemExit('no memory')"
    assert runner.carry_out([run], results, tmp_path / "runs", "data", "")
    commands[run.name] = TRAINED
    (run.workdir(tmp_path / "runs") / "checkpoints").mkdir(parents=True)
    runner.carry_out([run], results, tmp_path / "runs", "data", "")
    assert 0.02 <= results.get(run)["minutes"] < 1


def test_minutes_of_a_killed_run_are_not_known(commands, tmp_path):
    results, run = Results(tmp_path / "results"), run_of("5", "jointly")
    code = [
        "import os, signal, sys; from pathlib import Path",
        "from sparse_tube_vit.reproduction import runner",
        "with runner._counted(Path(sys.argv[1]), False):",
        "    os.kill(os.getpid(), signal.SIGKILL)",
    ]
    folder = tmp_path / "runs" / run.folder
    folder.mkdir(parents=True)
    path = folder / f"{run.digest}_minutes"
    command = [sys.executable, "-c", "\n".join(code), str(path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    checkpoints = run.workdir(tmp_path / "runs") / "checkpoints"
    checkpoints.mkdir(parents=True)
    runner.carry_out([run], results, tmp_path / "runs", "data", "")
    assert results.get(run)["minutes"] is None
    # Without a checkpoint it begins again, and they are those from there.
    other = Results(tmp_path / "others")
    path.write_text("nan")
    shutil.rmtree(run.workdir(tmp_path / "runs"))
    runner.carry_out([run], other, tmp_path / "runs", "data", "")
    assert other.get(run)["minutes"] < 1


def test_a_model_that_is_missing_is_trained_and_its_result_stays(commands, tmp_path):
    results, runs = Results(tmp_path / "results"), tmp_path / "runs"
    images, first = (run_of("5", row) for row in ("images", "images_first"))
    stored = {"evaluations": {"image": {"top1": 0.9, "tokens": 16}}, "minutes": 2.0}
    results.add(images, stored)
    assert runner.carry_out([images, first], results, runs, "data", "") == []
    assert results.get(images) == stored and results.get(first)
    assert (images.workdir(runs) / "evaluations").is_dir()


def test_a_model_that_no_run_starts_from_is_not_trained_again(commands, tmp_path):
    results, run = Results(tmp_path / "results"), run_of("5", "images")
    results.add(
        run, {"evaluations": {"image": {"top1": 0.9, "tokens": 16}}, "minutes": 2.0}
    )
    commands[run.name] = "raise SystemExit('begun again')"
    assert runner.carry_out([run], results, tmp_path / "runs", "data", "") == []


def test_no_run_begins_with_other_code(commands, tmp_path, monkeypatch):
    runs = [run_of("5", row) for row in ("videos_alone", "jointly")]
    results, finished = Results(tmp_path / "results"), []
    (tmp_path / "small.py").write_text("steps = 1")
    monkeypatch.setattr(runner.files, "SHIPPED", tmp_path)

    def change():
        finished.append(len(finished))
        (tmp_path / "small.py").write_text("steps = 2")

    with pytest.raises(runner.ChangedCode, match="Give the same command again"):
        runner.carry_out(runs, results, tmp_path / "runs", "", "", finished=change)
    assert finished == [0] and results.get(runs[0]) and not results.get(runs[1])


def test_no_command_of_a_run_has_other_code_than_the_one_before(tmp_path, monkeypatch):
    run, results = run_of("5", "jointly"), Results(tmp_path / "results")
    (tmp_path / "small.py").write_text("steps = 1")
    change = f"open({str(tmp_path / 'small.py')!r}, 'w').write('steps = 2')"

    def commands(self, runs, data_dir, weights):
        yield [sys.executable, "-c", change]
        yield [sys.executable, "-c", TRAINED, str(self.workdir(runs))]

    monkeypatch.setattr(runner.files, "SHIPPED", tmp_path)
    monkeypatch.setattr(runner, "_device", lambda: "2 CPU cores")
    monkeypatch.setattr(Run, "commands", commands)
    with pytest.raises(runner.ChangedCode):
        runner.carry_out([run], results, tmp_path / "runs", "", "")
    assert not run.workdir(tmp_path / "runs").exists()


def test_a_log_that_takes_no_more_is_named(commands, tmp_path):
    run, results = run_of("5", "jointly"), Results(tmp_path / "results")
    folder = tmp_path / "runs" / run.folder
    folder.mkdir(parents=True)
    (folder / "log.txt").symlink_to("/dev/full")
    with pytest.raises(UnwritableOutput, match=r"log.txt cannot be written: No space"):
        runner.carry_out([run], results, tmp_path / "runs", "", "")


def test_no_run_begins_with_code_that_changed_while_data_was_prepared(
    commands, tmp_path, monkeypatch
):
    (tmp_path / "small.py").write_text("steps = 1")
    monkeypatch.setattr(runner.files, "SHIPPED", tmp_path)
    code = runner.digest_of_code()
    (tmp_path / "small.py").write_text("steps = 2")
    results = Results(tmp_path / "results")
    with pytest.raises(runner.ChangedCode):
        given = [run_of("5", "jointly")], results, tmp_path / "runs", "", ""
        runner.carry_out(*given, code=code)


def test_what_runs_write_is_no_change_of_the_commit(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    written = ("docs/reproduction.md", "docs/reproduction/ucf101.json")
    for name in ("code.py", *written):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    package = tmp_path / "sparse_tube_vit" / "reproduction" / "runner.py"
    monkeypatch.setattr(runner, "__file__", str(package))
    clean = runner._commit()
    assert len(clean) >= 7
    for name in written:
        (tmp_path / name).write_text("a result")
    assert runner._commit() == clean
    (tmp_path / "code.py").write_text("changed")
    assert runner._commit() == f"{clean}-dirty"


def test_a_run_that_resumes_by_another_commit_names_both(
    commands, tmp_path, monkeypatch
):
    run, results = run_of("5", "jointly"), Results(tmp_path / "results")
    given = [run], results, tmp_path / "runs", "data", ""
    begin = "import pathlib, sys; pathlib.Path(sys.argv[1], 'checkpoints').mkdir({})"
    commands[run.name] = begin.format("parents=True") + "; sys.exit(1)"
    monkeypatch.setattr(runner, "_commit", lambda: "abc")
    assert runner.carry_out(*given)
    commands[run.name] = "import sys; sys.exit(1)"
    assert runner.carry_out(*given)
    commands[run.name] = TRAINED
    monkeypatch.setattr(runner, "_commit", lambda: "def-dirty")
    assert not runner.carry_out(*given)
    assert results.get(run)["commit"] == "abc, def-dirty"


def test_the_time_left_follows_that_of_the_runs_before(tmp_path, monkeypatch, caplog):
    runs = [run_of("5", row) for row in ("videos_alone", "jointly")]
    results = Results(tmp_path)
    predicted = [results.minutes(run) for run in runs]

    def carry_out(run, *_):
        minutes = 3 * predicted[runs.index(run)]
        found = {"video": {"top1": 0.5, "tokens": 9}}
        results.add(run, {"evaluations": found, "minutes": minutes})
        return minutes

    monkeypatch.setattr(runner, "_device", lambda: "2 CPU cores")
    monkeypatch.setattr(runner, "_carry_out", carry_out)
    with caplog.at_level("INFO"):
        runner.carry_out(runs, results, tmp_path / "runs", "", "")
    told = [record.getMessage().partition("runs, ")[2] for record in caplog.records]
    assert told == [
        f"{sum(predicted):.0f} min left",
        f"{3 * predicted[1]:.0f} min left",
    ]


def test_a_run_that_another_runner_has_finished_is_left(commands, tmp_path):
    run, folder = run_of("5", "jointly"), tmp_path / "runs"
    mine, other = Results(tmp_path / "results"), Results(tmp_path / "results")
    runner.carry_out([run], other, folder, "data", "")
    commands["5_jointly"] = "raise SystemExit('begun again')"
    assert runner.carry_out([run], mine, folder, "data", "") == []
    assert mine.get(run) == other.get(run)


def test_a_run_that_another_runner_only_looks_at_is_not_left_to_it(commands, tmp_path):
    results, runs = Results(tmp_path / "results"), tmp_path / "runs"
    run, looking = run_of("5", "jointly"), threading.Event()
    (runs / run.folder).mkdir(parents=True)

    def look():
        with storage.locked(runs / run.folder):
            looking.set()
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    runner.carry_out([run], results, runs, "data", "")
    thread.join()
    assert results.get(run)


@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_that_another_runner_carries_out_is_left_to_it(
    commands, tmp_path, finishes
):
    results, runs = Results(tmp_path / "results"), tmp_path / "runs"
    first, second, third = map(run_of, "555", ("images", "images_first", "jointly"))
    (runs / first.folder).mkdir(parents=True)
    other, order = threading.Event(), tmp_path / "order"
    for run in (second, third):
        write = f"print({run.name!r}, file=open({str(order)!r}, 'a'))"
        commands[run.name] = f"{write}{TRAINED}"

    def at_it():
        with storage.locked(runs / first.folder):
            other.set()
            limit = time.monotonic() + 60
            while not results.get(third) and time.monotonic() < limit:
                time.sleep(0.1)
                results.reload("moving_shapes")
            time.sleep(1)
            if finishes:
                program = [sys.executable, "-c", TRAINED, str(first.workdir(runs))]
                subprocess.run(program, check=True)
                with order.open("a") as file:
                    print(first.name, file=file)

    thread = threading.Thread(target=at_it)
    thread.start()
    other.wait()
    mine = Results(tmp_path / "results")
    failed = runner.carry_out([first, second, third], mine, runs, "data", "")
    thread.join()
    assert mine.get(third) and not mine.get(first)
    done = ["5_jointly", "5_images", "5_images_first"] if finishes else ["5_jointly"]
    assert order.read_text().split() == done
    assert bool(mine.get(second)) == finishes
    assert [str(error) for error in failed] == [
        f"{second.folder}: {first.folder} is not done. Give the same command again."
    ] * (not finishes)


def test_a_training_that_outlives_its_runner_is_waited_for(commands, tmp_path):
    run, results = run_of("5", "jointly"), Results(tmp_path / "results")
    workdir = run.workdir(tmp_path / "runs")
    workdir.mkdir(parents=True)
    program = (
        "import sys, time\n"
        "from sparse_tube_vit.storage import locked\n"
        "with locked(sys.argv[1]):\n"
        "    print('locked', flush=True); time.sleep(1)\n"
        "    exec(sys.argv[2])"
    )
    left = [sys.executable, "-c", program, str(workdir), TRAINED]
    with subprocess.Popen(left, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"locked\n"
        # What goes on from its last step has nothing to do.
        commands[run.name] = (
            "import pathlib, sys; from sparse_tube_vit.storage import locked\n"
            "with locked(sys.argv[1], wait_seconds=0) as free: assert free\n"
            "assert (pathlib.Path(sys.argv[1]) / 'evaluations').is_dir()"
        )
        failed = runner.carry_out([run], results, tmp_path / "runs", "data", "")
    assert failed == []
    assert results.get(run)["evaluations"]["video"]["top1"] == 0.6


def test_a_run_without_its_evaluation_has_failed(commands, tmp_path):
    """Its own, and those of table 7d, whose rows share it."""
    commands["5_jointly"] = TRAINED.replace('"image", "tokens_768", ', "")
    results, run = Results(tmp_path / "results"), run_of("5", "jointly")
    (error,) = runner.carry_out([run], results, tmp_path / "runs", "data", "")
    assert "no evaluation image, tokens_768 of step 1200" in str(error)
    assert results.get(run) is None


def test_fine_tuning_without_images_evaluates_clips_alone(commands, tmp_path):
    program = TRAINED.replace("1200", "330").replace('"video"', '"clips"')
    commands["finetuning_everything"] = program.replace('"image", ', "")
    commands["finetuning_jointly"] = commands["finetuning_everything"]
    results, task = Results(tmp_path / "results"), "ucf101_finetuning"
    alone, jointly = (run_of("finetuning", x, task) for x in ("everything", "jointly"))
    given = results, tmp_path / "runs", "data", "hf://a/vit"
    (error,) = runner.carry_out([alone, jointly], *given)
    assert "clips" in results.get(alone)["evaluations"]
    assert "jointly/0/" in str(error) and "no evaluation images of" in str(error)


def test_a_folder_that_cannot_be_made_is_named(commands, tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UnwritableOutput, match="--runs .*runs"):
        results = Results(tmp_path / "results")
        runner.carry_out([run_of("5", "jointly")], results, tmp_path / "runs", "", "")


def test_a_created_model_that_is_half_written_is_made_again(commands, tmp_path):
    run = run_of("6", "head", "ucf101_image_vit")
    created = run.created(tmp_path / "runs", "hf://a/vit")
    created.mkdir(parents=True)
    (created / "half").touch()
    scale_up = f"import pathlib; pathlib.Path({str(created)!r}).mkdir()"

    command, _ = COMMANDS(run, tmp_path / "runs", "data", "hf://a/vit")
    assert command[command.index("--workdir") + 1] == str(created)

    def both(self, runs, data_dir, weights):
        yield [sys.executable, "-c", scale_up, *command[1:]]  # found by its name
        program = TRAINED.replace("1200", str(self.config.total_steps))
        yield [sys.executable, "-c", program, str(self.workdir(runs))]

    small = [sys.executable, "-c", TRAINED, str(run.after.workdir(tmp_path / "runs"))]
    subprocess.run(small, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "commands", both)
        results = Results(tmp_path / "results")
        assert not runner.carry_out(
            [run], results, tmp_path / "runs", "data", "hf://a/vit"
        )
    assert results.get(run)["steps"] == 240
    assert created.exists() and not (created / "half").exists()


# What ends the runner ends the run that it waits for, which may save before.
STOPPED = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""
RUNNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
from sparse_tube_vit import reproduce
from sparse_tube_vit.reproduction import runner
from sparse_tube_vit.reproduction.runs import Run
def commands(self, runs, data_dir, weights):
    yield [sys.executable, "-c", sys.argv[1], str(runs / self.folder)]
Run.commands = commands
runner._device = lambda: ""
options = ["7e", "--tasks", "moving_shapes", "--runs", "runs", "--results", "docs/r"]
reproduce.main([*options, "--document", "docs/r.md", "--seeds", "1"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_runner_stops_its_run(number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, STOPPED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "moving_shapes" / "7e_interpolated" / "0"
    limit = time.monotonic() + 60
    while not (folder / "begun").exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode
    assert (folder / "saved").exists()
    assert "Traceback" not in errors
    assert (tmp_path / "docs" / "r.md").exists()


@pytest.mark.slow
def test_a_table_for_real(tmp_path):
    """Seven minutes: images alone and jointly, and the document of them."""
    options = ["images", "--tasks", "moving_shapes", "--seeds", "1"]
    options += ["--data_dir", "data", "--runs", "runs", "--results", "docs/results"]
    command = [sys.executable, "-m", "sparse_tube_vit.reproduce", *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("XLA_FLAGS")
    for _ in range(2):  # the second finds all of it done
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    stored = json.loads((tmp_path / "docs/results/moving_shapes.json").read_text())
    ((alone,),) = (x.values() for x in stored["5_images"].values())
    ((jointly,),) = (x.values() for x in stored["5_jointly"].values())
    assert alone["evaluations"]["image"]["top1"] > 0.6
    assert jointly["evaluations"]["video"]["top1"] > 0.5
    assert jointly["evaluations"]["tokens_1536"]["tokens"] == 297
    text = (tmp_path / "docs" / "reproduction.md").read_text()
    assert "| jointly | 81.4 |" in text
