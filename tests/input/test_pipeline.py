import contextlib
import dataclasses
import errno
import io
import itertools
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from grain._src.python.dataset.transformations import prefetch
from PIL import Image

from sparse_tube_vit import errors
from sparse_tube_vit.config import default_config, evaluation, stream
from sparse_tube_vit.datasets import processes
from sparse_tube_vit.datasets.builders import moving_shapes
from sparse_tube_vit.distributed.share import ALL, Share
from sparse_tube_vit.input import examples, pipeline
from sparse_tube_vit.input.randaugment import rand_augment
from sparse_tube_vit.training import undecodable
from sparse_tube_vit.video import limits
from tests.processes import alive

CLIP = default_config().clip.copy_and_resolve_references()
CLIP.update(frames=4, fps=8.0, size=16)
LOADER = default_config().loader
SIZE = 11  # examples: no batch divides it


@dataclasses.dataclass(frozen=True)
class Clips:
    """A split in memory: a few real files; `damaged` names those that do not decode."""

    clips: tuple[bytes, ...]
    damaged: tuple[int, ...] = ()
    name: str = "clips"
    split: str = "train"
    label_shape: tuple[int, ...] = ()
    kind: str = "video"
    directory: str = "/data"

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        data = b"damaged" if i in self.damaged else self.clips[i]
        return {"id": f"clip {i}", "label": i, self.kind: data}


@pytest.fixture(scope="module")
def clips():
    rendered = [moving_shapes.render("videos", "test", i)[1] for i in range(SIZE)]
    return Clips(tuple(moving_shapes.encode_mp4(frames) for frames in rendered))


def video_stream(batch_size=6, **options):
    options = {"color_jitter": 0.4, "randaugment_layers": 2} | options
    return stream(
        kind="video", dataset="clips", head="h", batch_size=batch_size, **options
    )


def take(n, split, source=None, workers=0, name="video", **options):
    loader = LOADER.copy_and_resolve_references()
    loader.workers = workers
    source = source or video_stream()
    batches = pipeline.training_batches(
        split, name, source, CLIP, loader, **{"seed": 3} | options
    )
    try:
        return list(itertools.islice(batches, n))
    finally:
        batches.close()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.fixture(scope="module")
def reference(clips):
    return take(5, clips)


def test_a_batch(reference):
    batch = reference[0]
    assert batch["video"].shape == (6, 4, 16, 16, 3)
    assert batch["video"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["weight"].dtype == np.float32 and batch["weight"].all()
    assert [f"clip {i}" for i in batch["label"]] == batch["id"].tolist()


class InBucket(Clips):
    """Clips of which the first four are read at the same time or never."""

    begun = threading.Barrier(4, timeout=10)

    def __getitem__(self, i):
        if i < 4:
            self.begun.wait()
        return super().__getitem__(i)


def test_reads_of_a_bucket_wait_at_the_same_time(clips):
    remote = evaluate(InBucket(clips.clips, directory="gs://bucket/data"))
    for batches in zip(evaluate(clips), remote, strict=True):
        assert_same(*batches)


def test_worker_processes_are_told_to_end_at_the_same_time(clips, monkeypatch):
    loader = LOADER.copy_and_resolve_references()
    loader.workers = 2
    batches = pipeline.training_batches(
        clips, "video", video_stream(), CLIP, loader, seed=3
    )
    for _ in range(4):
        next(batches)
    begun, closed = threading.Barrier(2, timeout=10), []
    worker = prefetch.ThreadPrefetchDatasetIterator
    close = worker.close

    def close_with_the_other(iterator):
        closed.append(id(iterator))
        if len(closed) <= 2:
            begun.wait()
        close(iterator)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "close", close_with_the_other)
        batches.close()
    assert len({*closed[:2]}) == 2


def test_an_example_looks_otherwise_in_the_next_epoch(reference):
    label = reference[0]["label"][0]
    seen = [
        video
        for batch in reference
        for video, other in zip(batch["video"], batch["label"], strict=True)
        if other == label
    ]
    assert len(seen) >= 2 and not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("start", [1, 3])
def test_the_step_number_is_the_data_position(clips, reference, start):
    resumed = take(5 - start, clips, start_step=start)
    for a, b in zip(resumed, reference[start:], strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_the_batches_out(clips, reference, hosts):
    shares = [take(5, clips, share=Share(h, hosts)) for h in range(hosts)]
    for k, whole in enumerate(reference):
        joined = {
            key: np.concatenate([share[k][key] for share in shares]) for key in whole
        }
        assert_same(joined, whole)
    (resumed,) = take(1, clips, share=Share(1, hosts), start_step=2)
    assert_same(resumed, shares[1][2])


# A mixture of streams: kind, examples, batch size. No batch divides its data set.
STREAMS = {
    "few": ("video", 5, 4),
    "images": ("image", 11, 8),
    "clips": ("video", 16, 12),
}
EPOCHS = 3


def mixture(steps=slice(None), hosts=1, workers=0, names=tuple(STREAMS)):
    """The batches of every stream, joined from those of the hosts: {name: [batch]}."""
    found = {}
    for name in names:
        kind, n, batch_size = STREAMS[name]
        files = []
        for i in range(n):
            file = io.BytesIO()
            Image.new("RGB", (6, 6), (9 * i, 90, 90)).save(file, "PNG")
            files.append(file.getvalue())
        split = Clips(tuple(files), kind=kind)
        source = video_stream(batch_size, randaugment_layers=0)
        source.kind = kind
        first, last, _ = steps.indices(-(-EPOCHS * n // batch_size))
        options = {"name": name, "start_step": first}
        shares = [
            take(
                last - first,
                split,
                source,
                workers,
                share=Share(host, hosts),
                **options,
            )
            for host in range(hosts)
        ]
        found[name] = [
            {key: np.concatenate([share[key] for share in batch]) for key in batch[0]}
            for batch in zip(*shares, strict=True)
        ]
    return found


@pytest.fixture(scope="module")
def whole_mixture():
    return mixture()


def test_every_epoch_of_every_stream_shows_every_example_once(whole_mixture):
    for name, (_, n, _) in STREAMS.items():
        labels = np.concatenate([batch["label"] for batch in whole_mixture[name]])
        epochs = [tuple(labels[i * n : (i + 1) * n]) for i in range(EPOCHS)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len({*epochs}) == EPOCHS  # every one in another order


def assert_same_mixture(a, b):
    for name in b:
        for one, other in zip(a[name], b[name], strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(
    "before, after",
    [
        ({"hosts": 1}, {"hosts": 2}),
        ({"hosts": 2}, {"hosts": 4}),
        ({"hosts": 4}, {"hosts": 1}),
    ],
    ids=["1 to 2 hosts", "2 to 4", "4 to 1"],
)
def test_a_mixture_goes_on_with_other_hosts(whole_mixture, before, after):
    halves = mixture(slice(0, 2), **before), mixture(slice(2, None), **after)
    joined = {name: halves[0][name] + halves[1][name] for name in STREAMS}
    assert_same_mixture(joined, whole_mixture)


def test_worker_processes_change_nothing(whole_mixture):
    images = {"images": whole_mixture["images"][2:]}
    ours = mixture(slice(2, None), workers=3, names=("images",))
    assert_same_mixture(ours, images)


@pytest.mark.slow
@pytest.mark.parametrize("hosts, workers", [(1, 1), (2, 3), (4, 1)])
def test_worker_processes_of_several_hosts_change_nothing(
    whole_mixture, hosts, workers
):
    clips = {"clips": whole_mixture["clips"][1:]}
    ours = mixture(slice(1, None), hosts, workers, names=("clips",))
    assert_same_mixture(ours, clips)


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_the_parts_of_a_share_follow_one_another(clips, reference, workers):
    where = {"share": Share(1, 2, parts=3), "start_step": 1}
    parts = take(4 * 3, clips, workers=workers, **where)
    for step in range(4):
        ours = parts[3 * step : 3 * step + 3]
        joined = {key: np.concatenate([part[key] for part in ours]) for key in ours[0]}
        whole = reference[1 + step]
        assert_same(joined, {key: x[3:] for key, x in whole.items()})


def test_seed_and_name_of_the_stream_count(clips, reference):
    assert not np.array_equal(take(1, clips, seed=4)[0]["id"], reference[0]["id"])
    other = pipeline.training_batches(
        clips, "other", video_stream(), CLIP, LOADER, seed=3
    )
    assert not np.array_equal(next(other)["id"], reference[0]["id"])


def test_randaugment_comes_last_and_moves_no_other_random_number(clips):
    plain = examples.TrainingExample.of(
        CLIP, LOADER, video_stream(randaugment_layers=0)
    )
    options = {"randaugment_layers": 2, "randaugment_magnitude": 7.0}
    augmented = dataclasses.replace(plain, **options)
    rng = np.random.default_rng(0)
    expected = rand_augment(rng, plain.read(clips.clips[0], rng)["video"], 2, 7.0)
    out = augmented.read(clips.clips[0], np.random.default_rng(0))["video"]
    np.testing.assert_array_equal(out, expected)

    strong = video_stream(randaugment_layers=2)
    weak = video_stream(randaugment_layers=2, randaugment_magnitude=1.0)
    for source in (video_stream(randaugment_layers=0), weak):
        (a,), (b,) = take(1, clips, strong), take(1, clips, source)
        np.testing.assert_array_equal(a["id"], b["id"])
        assert not np.array_equal(a["video"], b["video"])


def test_hosts_and_parts_of_their_shares_that_do_not_divide_the_batch(clips):
    with pytest.raises(
        errors.IndivisibleBatch, match="6 is not a multiple of 4, the equal"
    ):
        take(1, clips, share=Share(0, 2, parts=2))


def test_a_clip_that_does_not_decode_has_weight_zero_and_shifts_nothing(
    clips, reference
):
    damaged = dataclasses.replace(clips, damaged=(4,))
    hit = 0
    for batch, whole in zip(take(5, damaged), reference, strict=True):
        np.testing.assert_array_equal(batch["id"], whole["id"])
        for i, label in enumerate(batch["label"]):
            if label == 4:
                hit += 1
                assert batch["weight"][i] == 0 and not batch["video"][i].any()
                assert "decode" in batch["problem"][i]
            else:
                np.testing.assert_array_equal(batch["video"][i], whole["video"][i])
    assert hit >= 2


def test_what_does_not_decode_is_counted_once_and_named_and_stops_past_a_share(clips):
    damaged = dataclasses.replace(clips, damaged=(4, 7))
    batches = take(4, damaged)
    enough = undecodable.Undecodable(damaged, max_share=2 / SIZE)
    lines = [line for batch in batches for line in enough.note(enough.find(batch), 1)]
    assert sorted(enough.problems) == ["clip 4", "clip 7"]
    assert len(lines) == 2 and all("does not decode" in line for line in lines)

    strict = undecodable.Undecodable(damaged, max_share=1 / SIZE)
    with pytest.raises(undecodable.TooManyUndecodable) as error:
        for batch in batches:
            strict.note(strict.find(batch), 1)
    assert "2 of the 11 examples of clips train" in str(error.value)
    assert "clip 4: " in str(error.value) and "clip 7: " in str(error.value)


def evaluate(clips, share=ALL, **views):
    source = evaluation(kind="video", dataset="clips", head="h", batch_size=6, **views)
    return list(
        pipeline.evaluation_batches(clips, "video", source, CLIP, LOADER, share)
    )


def test_evaluation_shows_every_example_once_in_order_and_pads(clips):
    batches = evaluate(clips, temporal_views=2, spatial_views=3)
    assert [b["video"].shape for b in batches] == [(6, 6, 4, 16, 16, 3)] * 2
    index = np.concatenate([b["index"] for b in batches])
    assert index.tolist() == [*range(SIZE), -1]
    assert np.concatenate([b["weight"] for b in batches]).tolist() == [1] * SIZE + [0]
    again = evaluate(clips, temporal_views=2, spatial_views=3)
    assert_same(batches[0], again[0])


def test_evaluation_is_shared_out_among_hosts(clips):
    whole = evaluate(clips)
    shares = [evaluate(clips, Share(h, 3)) for h in range(3)]
    parts = [evaluate(clips, Share(h, 3, parts=2)) for h in range(3)]
    for k, batch in enumerate(whole):
        for ours in (
            [share[k] for share in shares],
            [part for share in parts for part in share[2 * k : 2 * k + 2]],
        ):
            joined = {key: np.concatenate([x[key] for x in ours]) for key in batch}
            assert_same(joined, batch)


def test_temporal_views_show_other_times(clips):
    (first, *_), _ = (batch["video"] for batch in evaluate(clips, temporal_views=2))
    assert not np.array_equal(first[0], first[1])


def distinct_views(frames, **views):
    clip = Clips((moving_shapes.encode_mp4(frames),))
    (batch,) = evaluate(clip, **views)
    assert batch["distinct_views"][1:].tolist() == [0] * 5  # padding
    return batch["distinct_views"][0]


@pytest.mark.parametrize("width, in_space", [(64, 1), (68, 2), (128, 3)])
@pytest.mark.parametrize("length, in_time", [(1, 1), (2, 2), (3, 3), (8, 3), (40, 3)])
def test_views_are_distinct_where_there_are_frames_and_pixels(
    length, in_time, width, in_space
):
    """Also in a picture that never changes: it is the frames that count."""
    still = np.zeros((length, 64, width, 3), np.uint8)
    assert distinct_views(still) == 1
    views = distinct_views(still, temporal_views=3, spatial_views=3)
    assert views == in_time * in_space


def test_an_undecodable_video_has_no_distinct_views(clips):
    damaged = dataclasses.replace(clips, damaged=(4,))
    first, _ = evaluate(damaged, temporal_views=2)
    assert first["distinct_views"].tolist() == [2, 2, 2, 2, 0, 2]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("decode_timeout_seconds", 3.0, "It takes more than 3 s to decode."),
        (
            "max_frame_pixels",
            99,
            r"It has \d+ x \d+ pixels, more than the 99 of",
        ),
        ("max_packets", 1, "It has, .* more than the 1 packets of config.loader"),
        ("max_file_bytes", 9, "It has [0-9,]+ bytes, more than the 9 of config.loader"),
    ],
)
def test_a_clip_beyond_a_limit_does_not_decode(clips, key, value, problem, monkeypatch):
    if key == "decode_timeout_seconds":  # a second whenever a thread looks at it
        monkeypatch.setattr(limits.time, "thread_time", itertools.count().__next__)
    loader = LOADER.copy_and_resolve_references()
    loader[key] = value
    source = video_stream()
    batches = [
        pipeline.training_batches(clips, "video", source, CLIP, loader, seed=3),
        pipeline.evaluation_batches(
            clips,
            "video",
            evaluation(kind="video", dataset="clips", head="h", batch_size=6),
            CLIP,
            loader,
        ),
    ]
    for batch in map(next, batches):
        assert not batch["weight"].any() and not batch["video"].any()
        assert all(re.match(problem, p) for p in batch["problem"])


def test_worker_processes_heed_no_signal_and_their_death_is_named(clips, reference):
    loader = LOADER.copy_and_resolve_references()
    loader.update(workers=1, prefetch=1)
    others = multiprocessing.active_children()
    batches = pipeline.training_batches(
        clips, "video", video_stream(), CLIP, loader, seed=3
    )
    with contextlib.closing(batches):
        assert_same(next(batches), reference[0])
        (worker,) = {*multiprocessing.active_children()} - {*others}
        for number in processes.STOP_SIGNALS:
            os.kill(worker.pid, number)
        for expected in reference[1:4]:
            assert_same(next(batches), expected)
        os.kill(worker.pid, signal.SIGKILL)
        named = (
            r"^streams\.video: a worker .* SIGKILL \(-9\)\. .* memory .*loader\.workers"
        )
        with pytest.raises(pipeline.LoaderDied, match=named):
            for _ in range(9):  # what it had decoded ahead comes first
                next(batches)


@dataclasses.dataclass
class Refused:
    """Batches of a worker that the system refuses something."""

    error: int

    def __len__(self):
        return 3

    def __getitem__(self, i):
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize(
    "error, advice",
    [(errno.ENOSPC, "/dev/shm.*shm-size"), (errno.EMFILE, "Too many.*ulimit -n")],
)
def test_full_shared_memory_and_too_many_open_files_are_named(error, advice):
    loader = LOADER.copy_and_resolve_references()
    loader.workers = 1
    refused = grain.MapDataset.source(Refused(error))
    batches = pipeline.iterate(refused, loader, "streams.x")
    with pytest.raises(pipeline.LoaderDied, match=rf"streams\.x: .*{advice}"):
        next(batches)


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
def test_parts_that_are_ready_take_few_open_files():
    loader = LOADER.copy_and_resolve_references()
    loader.update(workers=1, prefetch=4)

    def part(i):
        small = {str(k): np.full(8, i) for k in range(4)}
        return small | {"video": np.full(2**17, i)}

    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    parts = grain.MapDataset.range(64).map(part)
    with contextlib.closing(pipeline.iterate(parts, loader, "x", 8)) as parts:
        assert next(parts)["video"][0] == 0
        deadline, seen = time.monotonic() + 20, -1
        while seen != (seen := open_files()) and time.monotonic() < deadline:
            time.sleep(1)  # until all of four batches are ready
        # Two for the video of each of 32 parts and the next; pipes and such.
        assert 50 < seen - before < 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, 2**16)


ENDLESS = """
import multiprocessing, time
import grain
import numpy as np
from sparse_tube_vit.config import default_config
from sparse_tube_vit.input import pipeline

if __name__ == "__main__":
    loader = default_config().loader.copy_and_resolve_references()
    loader.workers = 2
    source = grain.MapDataset.source(np.arange(10)).repeat()
    batches = pipeline.iterate(source.map(lambda i: np.full(10_000, i)), loader, "x")
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_worker_processes_end_with_a_run_that_is_killed(tmp_path):
    """And what they shared is cleared."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "endless.py"], stdout=subprocess.PIPE, text=True
    )
    workers = run.stdout.readline().split()
    assert len(workers) == 2
    deadline, shared = time.monotonic() + 60, set()
    while not shared:
        assert time.monotonic() < deadline
        maps = Path(f"/proc/{run.pid}/maps").read_text()
        shared = {*re.findall(r"/dev/shm/(psm_\w+)$", maps, re.MULTILINE)}
    run.kill()
    run.communicate()
    while any(map(alive, workers)) or shared.intersection(os.listdir("/dev/shm")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_shared_is_freed_at_a_normal_end(tmp_path):
    end = """    kept = [next(batches) for _ in range(40)]
    batches.close()
    del kept  # which a thread of grain frees
"""
    before, _ = ENDLESS.replace("10_000", "100_000").split("    print(")
    (tmp_path / "ends.py").write_text(before + end)
    command = [sys.executable, tmp_path / "ends.py"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
