"""launch/gke: the JobSet against Kubernetes' schemas, XPK's command, the Dockerfile."""

import copy
import json
import math
import os
import re
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml

from sparse_tube_vit.config import default_config
from sparse_tube_vit.errors import STOPPED
from tests.launch.cloud import executable
from tests.launch.conftest import ROOT

# What of JobSet v1alpha2 the manifest uses, after config/components/crd/bases and
# api/jobset/v1alpha2 of kubernetes-sigs/jobset. A job's template is Kubernetes' own.
JOBSET = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "required": ["replicatedJobs"],
            "additionalProperties": False,
            "properties": {
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name", "action"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {
                                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*"
                                        "[A-Za-z0-9_])?$"
                                    },
                                    "action": {
                                        "enum": [
                                            "FailJobSet",
                                            "RestartJobSet",
                                            "RestartJobSetAndIgnoreMaxRestarts",
                                        ]
                                    },
                                    "onJobFailureReasons": {
                                        "items": {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "FailedIndexes",
                                                "MaxFailedIndexesExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        }
                                    },
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name", "template"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                            "replicas": {"type": "integer", "minimum": 1},
                            "template": {
                                "type": "object",
                                "required": ["spec"],
                                "additionalProperties": False,
                                "properties": {"spec": {}, "metadata": {}},
                            },
                        },
                    },
                },
            },
        },
    },
}
XPK = ROOT / "launch/gke/xpk.sh"
INVALID = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
ACCELERATORS = {
    "tpu-v4-podslice": 3,  # numbers in a topology
    "tpu-v5-lite-podslice": 2,
    "tpu-v5p-slice": 3,
    "tpu-v6e-slice": 2,
}


DAY = str(24 * 3600)


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch/gke/jobset.yaml").read_text())


def validate(jobset):
    """Raises ValidationError, of one of two modules, unless a cluster would take it."""
    jsonschema.validate(jobset, JOBSET)
    name = jobset["metadata"]["name"]
    for job in jobset["spec"]["replicatedJobs"]:
        made = {"name": f"{name}-{job['name']}-0"} | job["template"].get("metadata", {})
        kubernetes_validate.validate(
            {
                **{"apiVersion": "batch/v1", "kind": "Job", "metadata": made},
                "spec": job["template"]["spec"],
            },
            kubernetes_validate.latest_version(),
            strict=True,
        )
        # JobSet's webhook: names of pods are at most 63 characters.
        last = job["template"]["spec"]["completions"] - 1
        assert len(f"{name}-{job['name']}-{job['replicas'] - 1}-{last}-abcde") <= 63


def pods(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("slices", [1, 4])
def test_the_jobset_is_what_kubernetes_takes(jobset, slices):
    jobset["spec"]["replicatedJobs"][0]["replicas"] = slices
    validate(jobset)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda j: j["spec"].update(replicas=2),
        lambda j: j["spec"]["replicatedJobs"][0].update(replicas="2"),
        lambda j: j["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda j: pods(j).update(parallelsm=4),
        lambda j: pods(j)["template"]["spec"].update(hostNetwork="yes"),
        lambda j: pods(j)["template"]["spec"]["containers"][0].pop("name"),
        lambda j: pods(j)["podFailurePolicy"]["rules"][0].pop("action"),
    ],
)
def test_a_spoilt_jobset_is_refused(jobset, spoil):
    spoilt = copy.deepcopy(jobset)
    spoil(spoilt)
    with pytest.raises(INVALID):
        validate(spoilt)


def test_the_jobset_has_a_host_for_every_four_chips(jobset):
    spec = pods(jobset)
    selector = spec["template"]["spec"]["nodeSelector"]
    shape = selector["cloud.google.com/gke-tpu-topology"].split("x")
    assert len(shape) == ACCELERATORS[selector["cloud.google.com/gke-tpu-accelerator"]]
    (container,) = spec["template"]["spec"]["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] * chips == math.prod(map(int, shape))
    assert spec["completions"] == spec["parallelism"]


def test_what_a_signal_stopped_does_not_count_as_failed(jobset):
    by_code = pods(jobset)["podFailurePolicy"]["rules"][1]
    assert by_code["action"] == "FailJob"
    assert by_code["onExitCodes"]["values"] == [STOPPED]
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_hosts_wait_for_those_without_a_node(jobset):
    (container,) = pods(jobset)["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "HOSTS_START_SECONDS", "value": DAY}]


def test_the_jobset_trains_a_config_that_exists(jobset):
    (container,) = pods(jobset)["template"]["spec"]["containers"]
    given = dict(argument[2:].split("=", 1) for argument in container["args"])
    assert "command" not in container  # the image's entry point is train.py
    file, _, arguments = given.pop("config").partition(":")
    module = {}
    exec((ROOT / file).read_text(), module)
    assert module["get_config"](arguments).total_steps == 300_000
    assert given.pop("workdir").startswith("gs://")
    config = default_config()
    assert all(key.removeprefix("config.") in config for key in given)


def test_xpk_gets_the_command_as_its_shell_reads_it(tmp_path):
    executable(tmp_path / "xpk", 'printf "%s\\0" "$@"')
    train = [
        "--config=configs/kinetics.py:variant=L",
        "--workdir=gs://b/it's a",
        "--x=$y",
    ]
    called = subprocess.run(
        [XPK, "mine", "tubevit", "v5litepod-16", "2", "image", *train],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    *options, command, end = called.stdout.split("\0")
    assert end == "" and options[:6] == [
        *("workload", "create", "--cluster=mine", "--workload=tubevit"),
        *("--tpu-type=v5litepod-16", "--num-slices=2"),
    ]
    assert f"--restart-on-exit-codes=1,{STOPPED}" in options
    executable(tmp_path / "tini", 'shift; exec "$@"')
    executable(tmp_path / "python", 'printf "%s\\0" "$HOSTS_START_SECONDS" "$@"')
    shell = subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    start, *arguments, _ = shell.stdout.split("\0")
    assert arguments == ["-m", "sparse_tube_vit.train", *train]
    assert start == DAY


def test_the_image_has_what_a_tpu_vm_is_set_up_with():
    recipe = (ROOT / "launch/gke/Dockerfile").read_text()
    worker = (ROOT / "launch/tpu_worker.sh").read_text()
    python = re.search(r"PYTHON:-([\d.]+)", worker)[1]
    assert f"FROM python:{python}-slim" in recipe
    assert "--requirement requirements-tpu.txt" in recipe
    assert "code/requirements-tpu.txt" in worker
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", recipe, re.MULTILINE)[1])
    assert entry == ["tini", "--", "python", "-m", "sparse_tube_vit.train"]
    assert re.search("^RUN apt-get .* install .* tini", recipe, re.MULTILINE)
    for line in re.findall(r"^COPY (.*)$", recipe, re.MULTILINE):
        *sources, target = line.split()
        assert all((ROOT / source).exists() for source in sources)
