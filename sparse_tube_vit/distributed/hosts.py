"""The hosts of a run: joining them, telling all what one knows, ending together.

A run on several hosts is the same command on each. On TPU VMs, GKE and Slurm jax finds
the others by itself; elsewhere three variables of the environment say who they are:

    JAX_COORDINATOR_ADDRESS   host:port of the first, which all of them reach
    JAX_NUM_PROCESSES         how many there are
    JAX_PROCESS_ID            which of them this is, from 0

Hosts wait HOSTS_START_SECONDS (300) for each other to start. One that gives no sign of
life for HOSTS_LOST_SECONDS (60) is lost, and that ends the others.
"""

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

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_tube_vit.config import differences
from sparse_tube_vit.errors import TubeViTError, print_error
from sparse_tube_vit.log import log, name_host


class NoDevices(TubeViTError, RuntimeError):
    """The devices that were asked for are not there."""


class UnknownHosts(TubeViTError, ValueError):
    """The environment says in part, or wrongly, which hosts a run has."""


class HostMissing(TubeViTError, ConnectionError):
    """Not all hosts found each other in time."""


class HostsDiffer(TubeViTError, ValueError):
    """A host runs something else than the first."""


class WorkdirNotShared(TubeViTError, OSError):
    """A host sees another work directory than the first."""


class HostStopped(TubeViTError, RuntimeError):
    """A signal asked this host to end, before or after it trains."""


class HostFailed(TubeViTError, RuntimeError):
    """Another host ended with an error, or without a word."""


# ---- joining


@contextlib.contextmanager
def connected():
    """Joins the other hosts of the run, where there are any, for the time of the body.

    An error ends this process with exit code 1, and is told to the others, which end
    too within seconds, whatever they are at. A host that is killed ends the others when
    a connection to it breaks, or after HOSTS_LOST_SECONDS: then jax aborts them, with
    exit code 134, as when the first host's process is gone.

    Raises:
      NoDevices: JAX_PLATFORMS names devices that this host does not have.
      UnknownHosts: the environment is incomplete or wrong.
      HostMissing: this host cannot listen, as the first, to others.
    """
    _join()
    if _hosts() == 1:
        yield
        return
    name_host(jax.process_index())
    log.info("%d hosts with %d devices each", _hosts(), jax.local_device_count())
    watch = threading.Thread(target=_follow_a_failure, daemon=True)
    watch.start()
    try:
        yield
        _client().wait_at_barrier("end", _A_DAY)
    except BaseException as error:
        error = _named(error)
        _tell_failure(error)
        if isinstance(error, TubeViTError):
            print_error(error)
        else:
            traceback.print_exception(error)
        _leave()
    _ending.set()
    watch.join()
    jax.distributed.shutdown()


def _join():
    """Joins the others, where the environment tells of any."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, *numbers = (os.environ.get(name) for name in names)
    count = index = None
    if any(numbers):
        told = ", ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        if not (address and all(n and n.isdigit() for n in numbers)):
            raise UnknownHosts(
                f"{told}: all three are needed, the last two as numbers."
            )
        count, index = map(int, numbers)
        if index >= count:
            raise UnknownHosts(f"{told}: the hosts are numbered from 0.")
        if count == 1:
            return
    if address and not re.fullmatch(r".+:\d+", address):
        raise UnknownHosts(
            f"JAX_COORDINATOR_ADDRESS={address}: it must be host:port of the first."
        )
    start, lost = _start_seconds(), _seconds("HOSTS_LOST_SECONDS", 60)
    where = f" at {address}" if address else ""
    missing = HostMissing(
        f"The hosts did not find each other within {start} s. The same command must "
        f"run on all of them, and all must reach the first{where}."
    )
    late = threading.Timer(start, lambda: (print_error(missing), _exit()))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=start + 60,  # at which jax would abort
            heartbeat_timeout_seconds=lost,
            shutdown_timeout_seconds=start,
        )
    except ValueError as error:
        if address is None and "coordinator_address" in str(error):
            return  # jax finds no sign of others
        raise UnknownHosts(f"jax cannot tell which hosts there are: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        raise HostMissing(f"The first host cannot listen{where}: {error}") from error
    except RuntimeError as error:
        if address is None and _hosts() == 1:
            return  # jax computes here already, in a notebook say, and alone
        raise UnknownHosts(f"jax cannot join other hosts any more: {error}") from error
    finally:
        late.cancel()
    # jax took SIGTERM for itself; until training takes it there is nothing to save.
    signal.signal(signal.SIGTERM, _stop)


def _stop(number, frame):
    raise HostStopped("Stopped by a signal where there is nothing to save.")


def _hosts():
    """How many there are, which jax asks the devices."""
    try:
        return jax.process_count()
    except (RuntimeError, AssertionError) as error:  # the latter for lack of a plugin
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise NoDevices(
            f"JAX_PLATFORMS={asked} asks for devices that jax does not find. {error}"
        ) from error


def _start_seconds():
    return _seconds("HOSTS_START_SECONDS", 300)


def _seconds(name, default):
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d*", value):
        raise UnknownHosts(f"{name} is {value!r}: it must be a whole number, above 0.")
    return int(value)


# ---- agreeing


def check_same(what: dict) -> None:
    """Raises HostsDiffer where `what`, a tree of JSON, is not the first host's."""
    if jax.process_count() == 1:
        return
    what = json.dumps(what)
    first, host = json.loads(_of_first("same", what)), jax.process_index()
    lines = [
        f"  {key}: {theirs!r} on host 0, {ours!r} on host {host}"
        for key, theirs, ours in differences(first, json.loads(what))
    ]
    if lines:
        raise HostsDiffer(
            f"Host {host} is not to run what the first is:\n"
            + "\n".join(lines)
            + "\nGive all hosts the same command, data and packages."
        )


def check_shared(workdir) -> None:
    """Raises WorkdirNotShared where `workdir` is not that of the first host."""
    if jax.process_count() == 1:
        return
    mark, token = workdir / ".hosts", uuid.uuid4().hex
    if jax.process_index() == 0:
        mark.write_text(token)
    token = _of_first("workdir", token)
    if not mark.exists() or mark.read_text() != token:
        raise WorkdirNotShared(
            f"--workdir {workdir} is not the same directory on host "
            f"{jax.process_index()} as on the first. Choose one that all hosts see: "
            "gs://BUCKET/RUN, or one on a shared disk."
        )
    _client().wait_at_barrier("workdir", _A_DAY)  # all have seen it
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)


@contextlib.contextmanager
def first_host_first(what: str):
    """The body on the first host, then on the others, which find what it has made.

    Where they do not, on disks of their own, they make it at the same time. `what` is
    unlike that of every other such body of a run.
    """
    key, several = f"made/{what}", jax.process_count() > 1
    if several and jax.process_index():
        _client().blocking_key_value_get(key, _A_DAY)
    yield
    if several and not jax.process_index():
        _client().key_value_set(key, "")


_A_DAY = 24 * 3600 * 1000  # milliseconds; an error on another host ends it before


def _of_first(key: str, value: str) -> str:
    """The value that the first host has."""
    if jax.process_index() == 0:
        _client().key_value_set(key, value)
        return value
    return _client().blocking_key_value_get(key, 1000 * _start_seconds())


class News:
    """What a host has come to know, told to all of them at the same step.

    Costs the maximum of one number a device, and nothing where there is one host. All
    hosts call `send` and `receive` in turns.
    """

    def __init__(self):
        self._hosts, self._count, self._sent = jax.process_count(), 0, {}
        if self._hosts > 1:
            mesh = Mesh(np.array(jax.devices()), "x", axis_types=(AxisType.Auto,))
            self._split = NamedSharding(mesh, P("x"))
            self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

    def send(self, **news) -> None:
        """Sends what is known here, of JSON's types; does not wait for the others."""
        self._count, self._sent = self._count + 1, news
        if self._hosts > 1:
            known = any(news.values())
            if known:
                key = f"news/{self._count}/{jax.process_index():06}"
                _client().key_value_set(key, json.dumps(news))
            flags = np.full(jax.local_device_count(), known)
            self._any = self._max(
                jax.make_array_from_process_local_data(self._split, flags)
            )

    def receive(self) -> list[dict]:
        """What those hosts sent that know anything, in the order of the hosts."""
        if self._hosts == 1:
            return [self._sent] if any(self._sent.values()) else []
        if not self._any:
            return []
        told = _client().key_value_dir_get(f"news/{self._count}/")
        return [json.loads(news) for _, news in sorted(told)]


# ---- ending

# Set once this host ends by itself, well or with an error.
_ending = threading.Event()
# Seconds that a host has to end by itself after another's error: it may be the same.
_GRACE = 5
# How a collective names a broken connection on CPUs and GPUs; TPUs wait for heartbeats.
_BROKEN = re.compile("Gloo .*failed|NCCL operation|UNAVAILABLE: ")


def announce(kind, error, trace) -> None:
    """Tells the other hosts of the error that ends this one; for `ExitStack.push`.

    To be called before anything is cleaned up: that may wait for the others, in vain.
    """
    if error is not None and jax.process_count() > 1:
        _tell_failure(_named(error))


def _tell_failure(error):
    if not _ending.is_set():
        _ending.set()
        text = f"host {jax.process_index()}: {type(error).__name__}: {error}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
            _client().key_value_set("failure", text)


def _failure():
    """What the first host to fail told; None if none did."""
    try:
        return _client().key_value_try_get("failure")
    except jax.errors.JaxRuntimeError:
        return None


def _follow_a_failure():
    """Ends this process when another has failed, whatever its main thread waits for."""
    while not _ending.wait(1):
        if (failure := _failure()) and not _ending.wait(_GRACE):
            print_error(_following(failure))
            _leave()


def _following(failure):
    return HostFailed(f"Another host failed, and ended this one.\n  {failure}")


def _named(error):
    """The error, or HostFailed in the place of a collective's broken connection."""
    kinds = (jax.errors.JaxRuntimeError, ValueError)  # jit makes it the latter
    if not isinstance(error, kinds) or not _BROKEN.search(str(error)):
        return error
    failure = _failure()
    if failure and not failure.startswith(f"host {jax.process_index()}:"):
        return _following(failure)
    return HostFailed(
        "The connection to another host broke. If its log does not tell why, the host "
        "was taken away. The same command on all hosts resumes from the latest "
        f"checkpoint.\n  {str(error).splitlines()[0]}"
    )


def _leave():
    """Ends this process; the first host last: the others hear of the failure by it."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"left/{jax.process_index()}", "")
        patience = time.monotonic() + 1.5 * _GRACE
        while jax.process_index() == 0 and time.monotonic() < patience:
            if len(_client().key_value_dir_get("left/")) == jax.process_count():
                break
            time.sleep(0.1)
    _exit()


def _exit():
    """Ends this process without jax's goodbye, which waits for all hosts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _client():
    # jax has no public name for what its hosts tell each other; orbax looks here too.
    from jax._src import distributed

    return distributed.global_state.client
