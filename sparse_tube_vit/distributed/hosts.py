"""The hosts of a run: joining, agreement before and during training, common failure.

A run on several hosts is the same command on each. On TPU VMs, GKE and Slurm jax finds
the others by itself; elsewhere three environment variables name them:

    JAX_COORDINATOR_ADDRESS   host:port of the first host, reachable from all
    JAX_NUM_PROCESSES         number of hosts
    JAX_PROCESS_ID            number of this host, from 0

Hosts wait HOSTS_START_SECONDS (300) for each other to start. A host without a heartbeat
for HOSTS_LOST_SECONDS (60) is lost, which ends the others.

Hosts agree through the key-value store of jax's coordination service, not through
`jax.experimental.multihost_utils`, whose functions are programs on the devices: the
first of them fails on CPUs if a host comes 30 seconds late (Gloo's deadline), as when
the first host prepares data; each compiles a program; and one in the training loop
would block the host until the steps queued before it are done.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import differences
from sparse_tube_vit.errors import STOPPED, TubeViTError, print_error
from sparse_tube_vit.log import log, name_host
from sparse_tube_vit.storage import writing


class NoDevices(TubeViTError, RuntimeError):
    """Devices that JAX_PLATFORMS names are absent."""


class UnknownHosts(TubeViTError, ValueError):
    """The environment names the hosts of a run in part, or wrongly."""


class HostMissing(TubeViTError, ConnectionError):
    """Not all hosts joined in time."""


class HostsDiffer(TubeViTError, ValueError):
    """A host has another config, data set or package version than the first."""


class WorkdirNotShared(TubeViTError, OSError):
    """A host sees another work directory than the first."""


class HostStopped(TubeViTError, RuntimeError):
    """A signal stopped this host before or after training."""

    exit_code = STOPPED


class HostFailed(TubeViTError, RuntimeError):
    """Another host ended; the exit code is its own, or 1 where it is unknown."""


# ---- joining


@contextlib.contextmanager
def connected():
    """Context manager that joins the other hosts of the run, if there are any.

    An error in the body ends this process with its exit code and is published to the
    others, which end within seconds, even while they wait for a device or a barrier. A
    host that is killed ends the others when a connection to it breaks, or after
    HOSTS_LOST_SECONDS: then jax aborts them, with exit code 134, as when the first
    host's process is gone.

    Raises:
        NoDevices: JAX_PLATFORMS names devices that this host does not have.
        UnknownHosts: The environment is incomplete or wrong.
        HostMissing: This host cannot join the others or, if it is the first, listen.
    """
    _join()
    if _hosts() == 1:
        yield
        return
    name_host(jax.process_index())
    log.info("%d hosts with %d devices each", _hosts(), jax.local_device_count())
    watch = threading.Thread(target=_watch_failures, daemon=True)
    watch.start()
    try:
        yield
        _client().wait_at_barrier("end", _A_DAY)
    except BaseException as error:
        error = _as_host_failed(error)
        _publish_failure(error)
        if isinstance(error, TubeViTError):
            print_error(error)
        else:
            traceback.print_exception(error)
        _leave(getattr(error, "exit_code", 1))
    _ending.set()
    watch.join()
    jax.distributed.shutdown()


def _join():
    """Joins the other hosts that the environment names."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    count = index = None
    if any(numbers):
        variables = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        if not (address and all(n and n.isdigit() for n in numbers)):
            raise UnknownHosts(
                f"{variables}: all three are needed, the last two as numbers."
            )
        count, index = map(int, numbers)
        if index >= count:
            raise UnknownHosts(f"{variables}: the hosts are numbered from 0.")
        if count == 1:
            return
    if address and not re.fullmatch(r".+:\d+", address):
        raise UnknownHosts(
            f"JAX_COORDINATOR_ADDRESS={address}: it must be host:port of the first."
        )
    start = _seconds("HOSTS_START_SECONDS", 300)
    lost = _seconds("HOSTS_LOST_SECONDS", 60)
    where = f" at {address}" if address else ""
    missing = HostMissing(
        f"The hosts did not find each other within {start} s. The same command must "
        f"run on all of them, all must reach the first{where}, and each has a "
        "JAX_PROCESS_ID of its own, where that names it."
    )
    late = threading.Timer(start, lambda: (print_error(missing), _exit(1)))
    late.daemon = True
    late.start()
    joined = threading.Event()
    threading.Thread(target=_tell_waiting, args=(joined, where), daemon=True).start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            [] if _one_a_node() else None,
            initialization_timeout=start + 60,  # then jax would abort
            heartbeat_timeout_seconds=lost,
            shutdown_timeout_seconds=300,
        )
    except ValueError as error:
        if address is None and "coordinator_address" in str(error):
            return  # jax finds no other hosts
        raise UnknownHosts(f"jax cannot tell which hosts there are: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        failed = "This host cannot join the others"
        if index == 0:
            failed = "The first host cannot listen"
        raise HostMissing(f"{failed}{where}: {error}") from error
    except RuntimeError as error:
        if address is None and _hosts() == 1:
            return  # jax runs here already, as in a notebook, on one host
        raise UnknownHosts(f"jax cannot join other hosts any more: {error}") from error
    finally:
        late.cancel()
        joined.set()
    # jax handles SIGTERM; until training does there is nothing to save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def _tell_waiting(joined, where):
    """Logs every five minutes that this host still waits for the others."""
    begun = time.monotonic()
    while not joined.wait(_TELL_SECONDS):
        waited = time.monotonic() - begun
        log.info("Waiting for the other hosts%s for %.0f s", where, waited)


_TELL_SECONDS = 300


def _one_a_node():
    """Returns whether Slurm runs one process on each node: it uses all GPUs there.

    jax would take as many as there are processes on the node; by [] it takes all.
    """
    if any(map(os.environ.get, ("JAX_LOCAL_DEVICE_IDS", "OMPI_COMM_WORLD_LOCAL_RANK"))):
        return False  # these name each process's devices
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return bool(re.fullmatch(r"1(\(x\d+\))?", tasks))


def _stop(number, frame):
    raise HostStopped("Stopped by a signal where there is nothing to save.")


def _hosts():
    """Returns the number of hosts, which jax learns from the devices."""
    try:
        return jax.process_count()
    # AssertionError: a plugin is absent.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise NoDevices(
            f"JAX_PLATFORMS={asked} asks for devices that jax does not find. {error}"
        ) from error


def _seconds(name, default):
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d*", value):
        raise UnknownHosts(f"{name} is {value!r}: it must be a whole number, above 0.")
    return int(value)


# ---- agreeing


def check_same(
    description: dict, splits: Mapping | None = None, name: str = "run"
) -> None:
    """Checks that all hosts run the same on the same data.

    Args:
        description: A tree of JSON types, compared with the first host's.
        splits: `datasets.reading.Split`s by any names, whose digests are compared.
        name: Unique in the run.

    Raises:
        HostsDiffer: This host's differ from the first's; the message names the keys.
    """
    if jax.process_count() == 1:
        return
    data = {name: split.digests() for name, split in (splits or {}).items()}
    text, host = json.dumps(description | {"data": data}), jax.process_index()
    first = json.loads(_from_first_host(f"same/{name}", text))
    lines = [
        f"  {key}: {theirs!r} on host 0, {ours!r} on host {host}"
        for key, theirs, ours in differences(first, json.loads(text))
    ]
    if lines:
        raise HostsDiffer(
            f"Host {host} differs from the first host:\n"
            + "\n".join(lines)
            + "\nGive all hosts the same command, data, weights and packages."
        )


def check_shared(workdir) -> None:
    """Checks that all hosts see the same work directory.

    Raises:
        WorkdirNotShared: This host sees another than the first.
    """
    if jax.process_count() == 1:
        return
    path, token = workdir / ".hosts", uuid.uuid4().hex
    if jax.process_index() == 0:
        with writing(path):
            path.write_text(token)
    token = _from_first_host("workdir", token)
    if not path.exists() or path.read_text() != token:
        raise WorkdirNotShared(
            f"--workdir {workdir} is not the same directory on host "
            f"{jax.process_index()} as on the first. Choose one that all hosts see: "
            "gs://BUCKET/RUN, or one on a shared disk."
        )
    _waiting(_client().wait_at_barrier, "workdir", _A_DAY)  # all have read it
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def first_host_first(name: str):
    """Context manager that runs its body on the first host, then on all others.

    On a shared disk the others find what the first has made; otherwise all of them make
    it at the same time.

    Args:
        name: Unique in the run.
    """
    key, several = f"made/{name}", jax.process_count() > 1
    if several and jax.process_index():
        _waiting(_client().blocking_key_value_get, key, _A_DAY)
    yield
    if several and not jax.process_index():
        _client().key_value_set(key, "")


_A_DAY = 24 * 3600 * 1000  # milliseconds; an error on another host ends it before


def _from_first_host(key: str, value: str) -> str:
    """Returns the first host's value."""
    if jax.process_index() == 0:
        _client().key_value_set(key, value)
        return value
    return _waiting(_client().blocking_key_value_get, key, _A_DAY)


def _waiting(function, *arguments):
    """Returns a function's result; a signal ends the wait, as it does not in C++."""
    future = concurrent.futures.Future()

    def call():
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future.result()


def gather(key: str, value: str) -> list[str]:
    """Returns the values of all hosts, in their order; all have to call it.

    Args:
        key: Unique in the run.
        value: This host's value.
    """
    if jax.process_count() == 1:
        return [value]
    _client().key_value_set(f"{key}/{jax.process_index():06}", value)
    _waiting(_client().wait_at_barrier, key, _A_DAY)
    return [value for _, value in sorted(_client().key_value_dir_get(f"{key}/"))]


class HostMessages:
    """Messages that all hosts receive at the same training step.

    Costs one reduction of a flag per device and step, and nothing on one host. Every
    host calls `send` and `receive` in turns.
    """

    def __init__(self):
        self._hosts, self._count, self._sent = jax.process_count(), 0, {}
        if self._hosts > 1:
            mesh = Mesh(np.array(jax.devices()), "x", axis_types=(AxisType.Auto,))
            self._by_device = NamedSharding(mesh, P("x"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def send(self, **message) -> None:
        """Sends JSON values by name, without waiting for the other hosts.

        A message of values that are all false or empty is not delivered.
        """
        self._count, self._sent = self._count + 1, message
        if self._hosts > 1:
            sends = any(message.values())
            if sends:
                key = f"messages/{self._count}/{jax.process_index():06}"
                _client().key_value_set(key, json.dumps(message))
            flags = np.full(jax.local_device_count(), sends)
            self._any = self._max(
                jax.make_array_from_process_local_data(self._by_device, flags)
            )

    def receive(self) -> list[dict]:
        """Waits for all hosts to send; returns the messages in the order of hosts."""
        if self._hosts == 1:
            return [self._sent] if any(self._sent.values()) else []
        if not self._any:
            return []
        messages = _client().key_value_dir_get(f"messages/{self._count}/")
        return [json.loads(message) for _, message in sorted(messages)]


# ---- ending

# Set when this host ends by itself, with an error or without.
_ending = threading.Event()
# Seconds in which a host may report its own error after another's: all may have it.
_GRACE = 5
# Messages of collectives whose connection broke, on CPUs and GPUs. On TPUs a lost host
# is found by its missing heartbeats.
_BROKEN = re.compile("Gloo .*failed|NCCL operation|UNAVAILABLE: ")


def announce(kind, error, trace) -> None:
    """Publishes the error that ends this host to the others, for `ExitStack.push`.

    Push it last, so that it runs first: cleaning up may wait for the others.
    """
    if error is not None and jax.process_count() > 1:
        _publish_failure(_as_host_failed(error))


def _publish_failure(error):
    if not _ending.is_set():
        _ending.set()
        failure = {
            "host": jax.process_index(),
            "error": f"{type(error).__name__}: {error}",
            "exit_code": getattr(error, "exit_code", 1),
        }
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host was first
            _client().key_value_set("failure", json.dumps(failure))


def _failure():
    """Returns what the first host that failed has published, or None."""
    try:
        return json.loads(_client().key_value_try_get("failure"))
    except jax.errors.JaxRuntimeError:
        return None


def _watch_failures():
    """Ends this process after another has failed, even while its main thread waits."""
    while not _ending.wait(1):
        if (failure := _failure()) and not _ending.wait(_GRACE):
            print_error(error := _host_failed(failure))
            _leave(error.exit_code)


def _host_failed(failure):
    error = HostFailed(
        "Another host failed, and ended this one.\n"
        f"  host {failure['host']}: {failure['error']}"
    )
    error.exit_code = failure["exit_code"]
    return error


def _as_host_failed(error):
    """Returns the error, or HostFailed for a collective's broken connection."""
    kinds = (jax.errors.JaxRuntimeError, ValueError)  # jit raises the latter
    if not isinstance(error, kinds) or not _BROKEN.search(str(error)):
        return error
    failure = _failure()
    if failure and failure["host"] != jax.process_index():
        return _host_failed(failure)
    return HostFailed(
        "The connection to another host broke. If its log does not tell why, the host "
        "was taken away. The same command on all hosts resumes from the latest "
        f"checkpoint.\n  {str(error).splitlines()[0]}"
    )


def _leave(exit_code):
    """Ends this process, the first host's last: it serves the key-value store."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"left/{jax.process_index()}", "")
        patience = time.monotonic() + 1.5 * _GRACE
        while jax.process_index() == 0 and time.monotonic() < patience:
            if len(_client().key_value_dir_get("left/")) == jax.process_count():
                break
            time.sleep(0.1)
    _exit(exit_code)


def _exit(code):
    """Ends this process without jax's shutdown, which waits for all hosts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _client():
    # jax has no public name for its key-value store; orbax uses this one, too.
    from jax._src import distributed

    return distributed.global_state.client
