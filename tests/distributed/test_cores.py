import os

from sparse_tube_vit.distributed import cores


def test_what_is_left_for_worker_processes(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 112)
    assert cores.worker_cores() == 0  # the model computes on the CPU
    monkeypatch.setattr(cores.jax, "default_backend", lambda: "tpu")
    assert cores.worker_cores() == 110
    # Eight processes on two machines, one a GPU, which may all use every core.
    monkeypatch.setattr(cores.socket, "gethostname", lambda: "b")
    everywhere = [f"{m} {sorted(os.sched_getaffinity(0))}" for m in "ab"] * 4
    monkeypatch.setattr(cores.hosts, "gather", lambda key, value: everywhere)
    cores._processes_on_them.cache_clear()
    try:
        assert cores.worker_cores() == 112 // 4 - 2
        monkeypatch.setattr(cores, "usable_cores", lambda: 4)
        assert cores.worker_cores() == 0
    finally:
        cores._processes_on_them.cache_clear()
