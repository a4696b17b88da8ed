"""A cloud for the launcher's tests: gcloud's calls are answered by this process.

Workers are directories, and a command by ssh is run on this machine with one of them as
its home. So the launcher's own scripts run for real at both ends.
"""

import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from pathlib import Path

# On this machine gcloud, sleep and python (for preflight) ask the test's process.
ASK = r"""exec 3<>"/dev/tcp/127.0.0.1/$CLOUD_PORT"
printf '%s\0' "$#" "${0##*/}" "$@" >&3
for answer in out err code; do IFS= read -r -d '' "$answer" <&3; done
printf %s "$out"
printf %s "$err" >&2
exit "$code" """
# On the workers: pip brings uv, uv makes an environment, whose python trains.
PIP = """[ "$1 $2" = "-m pip" ] && mkdir -p uv/bin && cp "${0%/*}/uv" uv/bin &&
    echo "pip ${*:3}" >>"$HOME/installed" """
UV = """case "$1" in
    --version) echo "uv $(sed -n 's/.*uv==//p' "$HOME/installed" | tail -n 1)" ;;
    venv) mkdir -p venv/bin && cp "$ON_WORKERS/train" venv/bin/python ;;
    pip) [ "$2" = sync ] && [ -f "${@: -1}" ] ;;
esac && echo "uv $*" >>"$HOME/installed" """
# By its own name, as Python's: env would give it another.
TRAIN = """#!/bin/bash
trap 'echo Saved; exit 1' TERM
echo "step 1"
printf '%s\\n' "$PWD" "$JAX_PLATFORMS" "$@" >"$HOME/started"
mv "$HOME/started" "$HOME/trained_with"
until [ -f "$HOME/ends" ]; do sleep 0.02; done
exit "$(cat "$HOME/ends")" """


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not script.startswith("#!"):
        script = f"#!/usr/bin/env bash\n{script}"
    path.write_text(f"{script}\n")
    path.chmod(0o755)


class Cloud:
    """What there is in the cloud, what was asked of it, and the launcher that asks.

    workers: of each slice that is made from now on.
    state: of each queued resource that is made from now on.
    failures: calls that fail: (regex of the call, how many times, exit code, words).
    events: functions called one at each sleep of the launcher: what happens meanwhile.
    """

    def __init__(self, path: Path, repository: Path):
        self.path, self.repository = path, repository
        self.config = {"project": "mine", "compute/zone": "us-west4-a"}
        self.workers, self.state, self.fits = 2, "ACTIVE", True
        self.queued, self.slices = {}, {}  # name: [state, slices], name: [state, homes]
        self.failures, self.events = [], []
        self.calls, self.sleeps, self.preflights = [], [], []
        self.lock = threading.Lock()
        for program in ("gcloud", "sleep"):
            executable(path / "bin" / program, ASK)
        executable(repository / ".venv/bin/python", ASK)
        executable(path / "on_workers/python3", PIP)
        executable(path / "on_workers/uv", UV)
        executable(path / "on_workers/train", TRAIN)
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=[0.02]).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for home in self.homes:
            switch_off(home)

    # ---- the launcher

    def launch(self, *arguments, path=None):
        """Runs tpu_vm.sh; returns the finished process, with its output as text."""
        path = path or f"{self.path}/bin:{os.environ['PATH']}"
        mine = {"CLOUD_PORT": str(self.server.server_address[1]), "PATH": path}
        mine |= {"TMPDIR": str(self.path), "PYTHON": ".venv/bin/python"}
        return subprocess.run(
            [self.repository / "launch/tpu_vm.sh", *arguments],
            env=os.environ | mine,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def does(self, *arguments):
        """Runs tpu_vm.sh, which succeeds, and returns the calls that it made."""
        before = len(self.calls)
        done = self.launch(*arguments)
        assert done.returncode == 0, done.stderr
        return self.calls[before:]

    @property
    def homes(self):
        return [home for _, homes in self.slices.values() for home in homes]

    # ---- what it is asked

    def _handler(cloud):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                count = int(self._word())
                program, *arguments = (self._word() for _ in range(count + 1))
                output = getattr(cloud, f"_{program}")(arguments)
                self.wfile.write("".join(f"{part}\0" for part in output).encode())

            def _word(self):
                word = b""
                while (byte := self.rfile.read(1)) not in (b"\0", b""):
                    word += byte
                return word.decode()

        return Handler

    def _sleep(self, arguments):
        self.sleeps.append(int(arguments[0]))
        if not self.events:
            return "", "The test has no more events.\n", 9
        event = self.events.pop(0)
        if event:
            event()
        return "", "", 0

    def _python(self, arguments):
        if arguments[0] == "-m":  # otherwise it looks whether libtpu is there
            self.preflights.append(arguments)
            if not self.fits:
                return "", "It does not fit: 17 GB of 16\n", 1
        return "", "", 0

    def _gcloud(self, arguments):
        if arguments[:2] == ["config", "get-value"]:
            return self.config.get(arguments[2], "") + "\n", "", 0
        with self.lock:
            self.calls.append(["gcloud", *arguments])
            for i, (pattern, times, code, words) in enumerate(self.failures):
                if times and re.search(pattern, " ".join(arguments)):
                    self.failures[i] = (pattern, times - 1, code, words)
                    return "", words + "\n", code
        flags = dict(a[2:].partition("=")[::2] for a in arguments if a[:2] == "--")
        words = [a for a in arguments if a[:2] != "--" and a != "alpha"]
        assert words[:2] == ["compute", "tpus"] and flags["zone"] and flags["project"]
        kind, verb = words[2].replace("-", "_"), words[3]
        return getattr(self, f"_{verb}_{kind}")(flags, *words[4:])

    # ---- resources

    def _create_tpu_vm(self, flags, name):
        assert flags["accelerator-type"] and flags["version"]
        return self.make(name)

    def _create_queued_resources(self, flags, name):
        assert flags["accelerator-type"] and flags["runtime-version"]
        slices = [flags["node-id"]] if "node-id" in flags else []
        for i in range(int(flags.get("node-count", 0))):
            slices.append(f"{flags['node-prefix']}-{i}")
        self.queued[name] = [self.state, slices]
        return self.make(*slices)

    def make(self, *slices):
        for name in slices:
            homes = [self.path / f"{name}-w-{i}" for i in range(self.workers)]
            for home in homes:
                home.mkdir()
            self.slices[name] = ["READY", homes]
        return "", "", 0

    def _delete_tpu_vm(self, flags, name):
        assert "quiet" in flags
        return self._unmake(name)

    def _delete_queued_resources(self, flags, name):
        assert "force" in flags and "quiet" in flags
        return self._unmake(*self.queued.pop(name)[1])

    def _unmake(self, *slices):
        for name in slices:
            for home in self.slices.pop(name)[1]:
                switch_off(home)
                shutil.rmtree(home)
        return "", "", 0

    def _list_queued_resources(self, flags):
        there = {f"queuedResources/{name}": q for name, q in self.queued.items()}
        return "".join(f"{q[0]}\n" for _, q in matching(flags, there)), "", 0

    def _list_tpu_vm(self, flags):
        there = {f"nodes/{name}": s for name, s in self.slices.items()}
        lines = (
            f"{path.split('/')[-1]}\t{state}\tHEALTHY\n"
            for path, (state, _) in matching(flags, there)
        )
        return "".join(lines), "", 0

    def _describe_queued_resources(self, flags, name):
        return json.dumps({"state": self.queued[name][0]}) + "\n", "", 0

    # ---- workers

    def _scp_tpu_vm(self, flags, source, target):
        name, _, path = target.partition(":")
        return self._on_workers(name, flags, lambda home: ["cp", source, home / path])

    def _ssh_tpu_vm(self, flags, name):
        return self._on_workers(
            name, flags, lambda home: ["bash", "-c", flags["command"]]
        )

    def _on_workers(self, name, flags, command):
        if name not in self.slices:
            return "", f"ERROR: (gcloud) NOT_FOUND: nodes/{name}\n", 1
        homes = self.slices[name][1]
        if flags["worker"] != "all":
            homes = [homes[int(flags["worker"])]]
        processes = []
        for home in homes:
            host = "t1v-n-1f-w-" + home.name.rpartition("-")[2]
            path = f"{self.path}/on_workers:{os.environ['PATH']}"
            # launch/test.sh has them for itself.
            ours = ("JAX_PLATFORMS", "PYTHON")
            environment = {k: v for k, v in os.environ.items() if k not in ours}
            environment |= {"HOME": str(home), "PATH": path, "HOSTNAME": host}
            environment["COLUMNS"] = "80"  # as ssh may say: lines are cut there
            environment["ON_WORKERS"] = f"{self.path}/on_workers"
            processes.append(
                subprocess.Popen(
                    command(home),
                    cwd=home,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        out = err = ""
        code = 0
        for process in processes:
            said = process.communicate(timeout=300)
            out, err = out + said[0], err + said[1]
            code = code or process.returncode
        return out, err, code


def matching(flags, resources):
    # Without the quotes gcloud's expression would end at a parenthesis.
    pattern = re.fullmatch('name~"(.*)"', flags["filter"])[1]
    parent = "projects/mine/locations/us-west4-a/"
    return [item for item in resources.items() if re.search(pattern, parent + item[0])]


def switch_off(home):
    """As when a machine goes: no process of it gets to say anything."""
    pid = home / "sparse_tube_vit/pid"
    if pid.exists():
        group = f"-{pid.read_text().strip()}"
        subprocess.run(["kill", "-KILL", "--", group], stderr=subprocess.DEVNULL)
