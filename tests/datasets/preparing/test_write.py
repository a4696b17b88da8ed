"""Shards: the order of records, what is left out, going on after an interruption."""

import json
import os
import resource

import pytest
import tensorflow_datasets as tfds

from sparse_tube_vit.datasets import catalog, manifest, reading
from sparse_tube_vit.datasets.builders import builder, folders
from sparse_tube_vit.datasets.builders.builder import ListedExample, Listing, Span
from sparse_tube_vit.datasets.preparing import plan as planning
from sparse_tube_vit.datasets.preparing import write
from sparse_tube_vit.errors import UnwritableOutput
from sparse_tube_vit.storage import UnreadableFile
from sparse_tube_vit.video.transcode import Transcode
from tests import bucket
from tests.datasets.builders import official
from tests.datasets.written import contents

CLASSES = ("wolf", "ant")


class Pictures(builder.Builder):
    """Pictures by their brightness; a source that is no number does not decode."""

    name = "pictures"
    kind = "image"
    loaded = []

    @classmethod
    def load(cls, source):
        cls.loaded.append(source)
        if source == "gone":
            raise FileNotFoundError(2, "No such file", source)
        return official.encode_image(int(source)) if source.isdecimal() else b"damaged"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(catalog.BUILDERS, "pictures", f"{__name__}:Pictures")
    Pictures.loaded.clear()


def builder(data_dir, **splits):
    """A builder of splits given as the sources of their pictures."""
    listed = {
        split: [
            ListedExample(f"{split}/{i}", CLASSES[i % 2], source)
            for i, source in enumerate(sources)
        ]
        for split, sources in splits.items()
    }
    listing = Listing(CLASSES, listed)
    return Pictures(listing=listing, data_dir=data_dir)


def numbers(n):
    return [str(i % 256) for i in range(n)]


def read(data_dir, split, name="pictures"):
    return list(reading.open_split(name, split, data_dir))


class OfTfds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The same pictures, as TFDS's own writer writes them."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    name = "pictures"

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=planning.dataset_info(self.ours).features
        )

    def _split_generators(self, dl_manager):
        listed = self.ours.listing.splits
        return {split: self._generate_examples(listed[split]) for split in listed}

    def _generate_examples(self, examples):
        for each in examples:
            image = Pictures.load(each.source)
            yield each.id, {"id": each.id, "label": each.label, "image": image}


def test_records_and_their_order_are_those_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "image", 256)
    ours = builder(tmp_path / "ours", train=numbers(600), test=numbers(40))
    assert write.write_dataset(ours)
    assert len(list(ours.directory.glob("*train*"))) == 3
    OfTfds.ours = ours
    theirs = OfTfds(data_dir=tmp_path / "theirs")
    theirs.download_and_prepare(file_format="array_record")
    for split, length in (("train", 600), ("test", 40)):
        records = read(tmp_path / "ours", split)
        assert len(records) == length
        assert records == read(tmp_path / "theirs", split)
    first, *_ = reading.open_split("pictures", "train[50%:]", tmp_path / "ours")
    assert first == read(tmp_path / "theirs", "train")[300]


def test_the_manifest_says_what_was_found(tmp_path):
    ours = builder(tmp_path, train=["7", "damaged", "9"])
    assert write.write_dataset(ours)
    rows = {r.id: r for r in manifest.read(ours.directory / manifest.NAME)}
    assert len(rows) == 3
    for each in ours.listing.splits["train"]:
        image = Pictures.load(each.source)
        row = manifest.Row.of("train", each.id, each.label, image, "image")
        assert rows[each.id] == row
        assert (row.status == "ok") == (each.source != "damaged")
    stored = read(tmp_path, "train")
    order = [r.id for r in rows.values() if r.status == "ok"]
    assert [example["id"] for example in stored] == order


def test_a_file_that_no_record_can_hold_is_left_out(tmp_path, monkeypatch):
    ours = builder(tmp_path, train=["7", "8", "9"])
    small, load = Pictures.load("8"), Pictures.load
    larger = staticmethod(lambda source: load(source) + bytes(source == "8"))
    monkeypatch.setattr(Pictures, "load", larger)
    monkeypatch.setattr(write, "RECORD_BYTES", len(small))
    assert write.write_dataset(ours)
    rows = list(manifest.read(ours.directory / manifest.NAME))
    (status,) = (row.status for row in rows if row.id == "train/1")
    assert f"It has {len(small) + 1} bytes" in status and "--transcode" in status
    assert len(read(tmp_path, "train")) == 2


def test_what_is_not_listed_for_writing_is_in_the_manifest_too(tmp_path):
    for name in ("ant/1.jpg", "ant/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(official.encode_image(1))
    os.rename(tmp_path / "ant/1.txt", os.fsencode(tmp_path) + b"/ant/\xff.jpg")
    listing = folders.read_folder(tmp_path, "image")
    ours = folders.ImageFolder(listing=listing, data_dir=tmp_path / "data", config="x")
    assert write.write_dataset(ours)
    rows = list(manifest.read(ours.directory / manifest.NAME))
    assert [(os.fsencode(row.id), row.status) for row in rows] == [
        (b"ant/1.jpg", "ok"),
        (b"ant/\xff.jpg", "its name is not in UTF-8"),
    ]


def test_shards_and_splits_in_which_nothing_decodes(tmp_path, monkeypatch):
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "image", 1)
    ours = builder(tmp_path, train=["damaged", "8", "damaged"], test=["damaged"])
    assert write.write_dataset(ours)
    assert [e["id"] for e in read(tmp_path, "train")] == ["train/1"]
    with pytest.raises(reading.UnknownSplit, match="it has train"):
        reading.open_split("pictures", "test", tmp_path)
    left_out = [r.id for r in manifest.read(ours.directory / "manifest.csv")][1:]
    assert len(left_out) == 3


def test_nothing_at_all_decodes(tmp_path):
    ours = builder(tmp_path, train=["damaged"] * 3)
    with pytest.raises(
        write.NothingDecodes, match="none of the 3 examples decodes.*delete"
    ):
        write.write_dataset(ours)
    with pytest.raises(reading.DatasetNotPrepared):
        reading.open_split("pictures", "train", tmp_path)


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


def interrupted_after(examples):
    def run(plan):
        seen = []

        def count():
            seen.append(1)
            if len(seen) == examples:
                raise Interrupted

        for shard in planning.unfinished(plan):
            write.write_shard(shard, count)

    return run


def test_finished_shards_are_kept_and_the_end_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "image", 10)
    splits = {"train": numbers(40), "test": [*numbers(12), "damaged"]}
    whole, ours = builder(tmp_path / "whole", **splits), builder(tmp_path, **splits)
    assert write.write_dataset(whole)
    with pytest.raises(Interrupted):
        write.write_dataset(ours, run=interrupted_after(25))
    with pytest.raises(reading.DatasetNotPrepared, match="again, and it goes on"):
        reading.open_split("pictures", "train", tmp_path)
    before = {
        path: os.stat(path).st_mtime_ns for path in ours.directory.glob("pictures-*")
    }
    assert len(before) == 2
    Pictures.loaded.clear()
    assert write.write_dataset(builder(tmp_path, **splits))
    assert len(Pictures.loaded) == 20 + 13
    assert before == {path: os.stat(path).st_mtime_ns for path in before}
    assert contents(ours.directory) == contents(whole.directory)
    Pictures.loaded.clear()
    assert not write.write_dataset(builder(tmp_path, **splits))
    assert not Pictures.loaded


@pytest.mark.parametrize(
    ("splits", "transcode", "message"),
    [
        ({"train": numbers(4)}, Transcode(), "another transcode .None, now short_side"),
        ({"train": numbers(5)}, None, "another number of examples .{'train': 4}, now"),
        ({"train": ["1", "0", "2", "3"]}, None, "another list of files and labels"),
    ],
)
def test_two_preparations_are_never_mixed(tmp_path, splits, transcode, message):
    ours = builder(tmp_path, train=numbers(4))
    with pytest.raises(Interrupted):
        write.write_dataset(ours, run=interrupted_after(2))
    with pytest.raises(planning.OtherPreparation, match=message):
        write.write_dataset(builder(tmp_path, **splits), transcode)
    assert write.write_dataset(ours)


def test_preparations_of_other_times_or_encoders_are_never_mixed(tmp_path, monkeypatch):
    def listed(**times):
        example = ListedExample("a", CLASSES[0], "7", **times)
        listing = Listing(CLASSES, {"train": [example]})
        return Pictures(listing=listing, data_dir=tmp_path)

    span, actions = Span(0.0, 2.0), (("ant", 0.0, 1.0),)
    planning.write_plan(listed(span=span, actions=actions), None)
    planning.write_plan(listed(span=span, actions=actions), None)
    for other in (
        {"span": Span(0.0, 2.5), "actions": actions},
        {"span": span, "actions": (("wolf", 0.0, 1.0),)},
        {},
    ):
        with pytest.raises(planning.OtherPreparation, match="list of files and labels"):
            planning.write_plan(listed(**other), None)
    monkeypatch.setattr(planning.av, "__version__", "0.0")
    with pytest.raises(planning.OtherPreparation, match="another PyAV .*now 0.0"):
        planning.write_plan(listed(span=span, actions=actions), None)


@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_shard_that_another_process_has_written(tmp_path, all_of_it):
    ours, seen = builder(tmp_path, train=numbers(3)), []

    def run(plan):
        (shard,) = planning.unfinished(plan)
        write.write_dataset(ours) if all_of_it else write.write_all(plan)
        Pictures.loaded.clear()
        write.write_shard(shard, lambda: seen.append(1))

    assert write.write_dataset(ours, run=run) != all_of_it
    assert len(seen) == 3 and not Pictures.loaded
    assert len(read(tmp_path, "train")) == 3


def test_a_file_that_cannot_be_read_is_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setitem(planning.SHARD_EXAMPLES, "image", 1)
    ours = builder(tmp_path, train=["1", "2", "3"])
    sources = [
        e.source
        for s in planning.shards(planning.write_plan(ours, None))
        for e in s.examples
    ]
    gone = sources[1]
    load = Pictures.load
    monkeypatch.setattr(Pictures, "load", lambda s: load("gone" if s == gone else s))
    with pytest.raises(UnreadableFile, match=f"^{gone}: .*No such file.*kept"):
        write.write_dataset(ours)
    monkeypatch.setattr(Pictures, "load", load)
    Pictures.loaded.clear()
    assert write.write_dataset(ours)
    assert Pictures.loaded == sources[1:]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableOutput, match="Not a directory"):
        write.write_dataset(builder(tmp_path / "file", train=numbers(2)))


def test_a_file_system_that_is_full(tmp_path):
    ours = builder(tmp_path, train=numbers(3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UnwritableOutput, match=f"{tmp_path}.*File too large"):
            write.write_dataset(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert write.write_dataset(ours)


@pytest.mark.parametrize(
    ("examples", "shard_bytes", "expected"),
    [
        (1, 1 << 30, 1),
        (1024, 1 << 30, 1),
        (1025, 1 << 30, 2),
        (257, 5_500, 9),  # 187 bytes a picture
        (3, 1, 3),
    ],
)
def test_number_of_shards(tmp_path, monkeypatch, examples, shard_bytes, expected):
    monkeypatch.setattr(planning, "SHARD_BYTES", shard_bytes)
    plan = planning.write_plan(builder(tmp_path, train=numbers(examples)), None)
    shards = list(planning.shards(plan))
    assert len(shards) == expected
    sizes = [len(shard.examples) for shard in shards]
    assert sum(sizes) == examples and max(sizes) - min(sizes) <= 1
    assert len(Pictures.loaded) <= 64


@pytest.mark.parametrize(
    "names, examples, message",
    [
        (("ant", "wolf"), ["a ant", "a wolf"], "train has 'a' twice"),
        (("ant", "wolf"), ["a ant", "b bear"], "'b' is labelled 'bear', which is no"),
        (("ant", "wo\nlf"), ["a ant"], r"'wo.nlf' cannot name a class"),
        (("ant", " wolf"), ["a ant"], "' wolf' cannot name a class"),
        (("ant", ""), ["a ant"], "'' cannot name a class"),
        (("ant", "ant"), ["a ant"], "two classes have the same name"),
    ],
    ids=["id", "label", "lines", "spaces", "empty", "twice"],
)
def test_what_a_data_set_cannot_hold_is_said_before_it_is_begun(
    tmp_path, names, examples, message
):
    listed = [ListedExample(*example.split(), "7") for example in examples]
    ours = Pictures(listing=Listing(names, {"train": listed}), data_dir=tmp_path)
    with pytest.raises(planning.BadListing, match=message):
        write.write_dataset(ours)
    assert not [*tmp_path.iterdir()]


def test_from_a_bucket_into_a_bucket(tmp_path, monkeypatch):
    names = [f"{split}/{c}/1.mp4" for split in ("train", "test") for c in CLASSES]
    official.write_clips(tmp_path / "clips", *names)
    storage = bucket.use(monkeypatch)
    storage.upload(tmp_path / "clips", "bucket", "clips")
    for source, data_dir in (
        (tmp_path / "clips", tmp_path),
        ("gs://bucket/clips", "gs://bucket/data"),
    ):
        listing = folders.read_folder(source, "video")
        ours = folders.VideoFolder(listing=listing, data_dir=data_dir, config="x")
        assert write.write_dataset(ours) and not write.write_dataset(ours)
    assert reading.prepared_directory("video_folder/x", "gs://bucket/data")
    written = {
        name.rpartition("/")[2]: storage.objects["bucket", name][0]
        for name in storage.names("bucket", "data/")
    }
    assert written == contents(tmp_path / "video_folder" / "x" / "1.0.0")


def test_the_plan_is_for_any_machine(tmp_path, monkeypatch):
    """Paths in it are absolute, whatever was given."""
    monkeypatch.chdir(tmp_path)
    official.write_clips(tmp_path / "clips", "ant/1.mp4")
    listing = folders.read_folder("clips", "video")
    ours = folders.VideoFolder(listing=listing, data_dir="data", config="x")
    plan = planning.write_plan(ours, Transcode())
    _, line = map(json.loads, plan.read_text().splitlines())
    assert line["examples"] == [["ant/1.mp4", "ant", f"{tmp_path}/clips/ant/1.mp4"]]
    (shard,) = planning.shards(plan)
    assert shard.directory == f"{tmp_path}/data/video_folder/x/1.0.0"
    assert shard.transcode == Transcode()
