"""The page of a run says what the run measured, and a browser shows all of it."""

import base64
import html.parser
import json
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from sparse_tube_vit import report
from sparse_tube_vit.checkpoints import release
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.config import from_json
from sparse_tube_vit.datasets import manifest
from sparse_tube_vit.datasets.reading import (
    DatasetNotPrepared,
    Split,
    UnreadableRecord,
    open_split,
)
from sparse_tube_vit.datasets.times import SPAN
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.evaluation.results import MeanAveragePrecision
from sparse_tube_vit.figures.run import Run
from sparse_tube_vit.inference.loaded import TrainedTubeViT
from sparse_tube_vit.pages import run as pages_run
from sparse_tube_vit.training import reporting
from sparse_tube_vit.video.conversion import Crop
from sparse_tube_vit.video.decode import decode
from tests.checkpoints.image_vits.models import GOLDEN
from tests.chromium import Chromium, find
from tests.evaluation.test_results import PROTOCOL
from tests.tiny import tiny_config


class Page(html.parser.HTMLParser):
    """Texts by section, tables, and the attributes of pictures and videos."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tables, self.media = {"": ""}, [], []
        self.section = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "section":
            self.section = attributes["id"]
            self.texts[self.section] = ""
        elif tag == "table":
            self.tables.append((self.section, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append("")
        elif tag in ("img", "video"):
            self.media.append((self.section, tag, attributes))

    def handle_data(self, data):
        self.texts[self.section] += data
        if self.lasttag in ("th", "td"):
            self.tables[-1][1][-1][-1] += data.strip()

    def of(self, section):
        return [rows for name, rows in self.tables if name == section]


UNDECODABLE = "<b>clip</b> & co"


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """The finished run, of whose last evaluation one clip does not decode."""
    workdir = tmp_path_factory.mktemp("reported") / "a & <b>"
    shutil.copytree(finished[0], workdir)
    path = workdir / "evaluations" / "video_step6_2x3.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"undecodable": [UNDECODABLE]}))
    return Run(workdir)


@pytest.fixture(scope="module")
def page(run):
    text = pages_run.render(run, clips=3)
    (run.workdir / "report.html").write_text(text, encoding="utf-8")
    return Page(text)


def test_every_section_says_what_the_run_has(run, page):
    assert list(page.texts) == [
        "",
        *("Accuracy", "Classes", "Curves", "Samples", "Tubes", "Kernels"),
        *("Positions", "Attention", "Configuration", "Throughput", "Data"),
    ]
    accuracy, step = (page.texts[""].index(x) for x in ("2x3 views, ", "Step 6 of 6"))
    assert accuracy < step
    assert "Step 6 of 6" in page.texts[""] and "a & <b>" in page.texts[""]
    # Nothing is fetched, and everything has a name for those who do not see it.
    for _, tag, attributes in page.media:
        assert attributes["src"].startswith(("data:image/", "data:video/mp4;base64,"))
        assert attributes["alt" if tag == "img" else "aria-label"]
    counts = {
        section: sum(name == section for name, *_ in page.media)
        for section in page.texts
    }
    assert counts == {
        **dict.fromkeys(page.texts, 0),
        **{"Curves": 1, "Classes": 2, "Samples": 6, "Tubes": 2, "Kernels": 2},
        **{"Positions": 1, "Attention": 2, "Throughput": 1},
    }


def test_the_configuration_is_what_differs(run, page):
    differs, _ = page.of("Configuration")
    rows = {key: (before, now) for key, before, now in differs[1:]}
    assert rows["model.width"] == ("768", "24")
    assert rows["streams.video.mixup"] == ("0.0", "0.2")
    assert rows["streams.video.dataset"] == ("", '"moving_shapes/videos"')
    assert rows["evaluations.video.spatial_views"] == ("1", "3")
    assert not {"seed", "model.gelu", "streams.video.loss"} & rows.keys()


def rates(metrics):
    """The table of throughput for lines of metrics.jsonl, as {what: value}."""
    lines = pages_run._throughput(types.SimpleNamespace(metrics=metrics))
    ((_, rows),) = Page("\n".join(lines)).tables
    return dict(rows[1:])


def test_throughput_is_of_every_stream(run, page):
    (rows,) = page.of("Throughput")
    rows = dict(rows[1:])
    assert rows == rates(run.metrics)
    lines = [x for x in run.metrics if "train/video/examples_per_second" in x]
    speed = np.median([x["train/video/examples_per_second"] for x in lines])
    assert rows["video: examples a second, median"] == f"{speed:,.1f}"
    assert "FLOP/s" in rows["model FLOPs a second and device, median"]
    assert not [what for what in rows if "MFU" in what or "memory" in what]


def test_throughput_of_accelerators():
    def line(step, **rates):
        return {"step": step} | {f"train/{name}": x for name, x in rates.items()}

    new = {"a/examples_per_second": 30.0, "step_seconds": 0.5, "mfu": 0.25}
    new |= {"flops_per_second_per_device": 2.5e14, "predicted/mfu": 0.5}
    new |= {"device_bytes/in_use": 2.0**30, "device_bytes/limit": 2.0**34}
    new |= {f"seconds/{part}": 1.0 for part in reporting.PARTS}
    peaks = [{"device_bytes/peak": gib * 2.0**30} for gib in (2, 3)]
    lines = [line(2 + i, **new, **peak) for i, peak in enumerate(peaks)]
    assert rates(lines) == {
        "a: examples a second, median": "30.0",
        "seconds a step, median": "0.5",
        "model FLOPs a second and device, median": "250 TFLOP/s",
        "MFU, share of the device's peak, median": "25.0%",
        "MFU, predicted": "50.0%",
        "memory of a device in use, median": "1.00 GiB",
        "memory of a device, peak": "3.00 GiB",
        "memory of a device, limit": "16.00 GiB",
        "of training, waiting for input": "33.3%",
    } | {f"{part}, all logged": "2.0 s" for part in reporting.PARTS}


def test_accuracies_come_with_their_protocol(run, page):
    (rows,) = page.of("Accuracy")
    for row in rows[1:]:
        e = next(e for e in run.evaluations.values() if e["evaluation"] == row[0])
        top = dict(re.findall(r"Top-(\d) ([\d.]+)%", row[1]))
        for k, percent in top.items():
            assert float(percent) == pytest.approx(100 * e[f"top{k}"], abs=0.05)
    image, video = rows[1:]
    assert image[2:] == [
        *("moving_shapes/images test", "12 images", "1", "16x16", "4", "0", "6")
    ]
    assert video[2:4] == ["moving_shapes/videos test", "24 videos"]
    assert video[4].startswith("2x3")
    assert video[5:] == ["4 frames at 8 fps, 16x16", "8", "1", "6"]


def test_the_command_ends_with_the_results(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "render", lambda *_: "")
    report.main(["--workdir", str(run.workdir), "--out", str(tmp_path / "page.html")])
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "page.html")
    assert lines == [e["summary"] for e in run.evaluations.values()]
    assert [line.partition(":")[0] for line in lines] == ["image", "video"]


def test_the_worst_classes(run, page):
    tables = page.of("Classes")
    for e, (_, *rows) in zip(run.evaluations.values(), tables, strict=True):
        counts, names = np.array(e["confusion"]), list(e["per_class"])
        last = -1.0
        for name, taken, top1, n in rows:
            i = names.index(name)
            share = 100 * counts[i, i] / e["per_class"][name]["count"]
            assert float(top1.rstrip("%")) == pytest.approx(share, abs=0.05)
            assert share >= last
            last = share
            assert int(n) == e["per_class"][name]["count"]
            others = {names[j]: counts[i, j] for j in range(len(names)) if j != i}
            if taken:
                other, _, count = taken.rpartition(" (")
                assert others[other] == int(count.rstrip(")")) == max(others.values())
            else:
                assert not any(others.values())
        said = "The 10 worst of 24 classes" if len(names) > 10 else "All classes, the"
        assert said in page.texts["Classes"]
        left = [x["top1"] for name, x in e["per_class"].items() if x["count"]]
        assert len(rows) == min(10, len(left))
        assert [float(r[2].rstrip("%")) for r in rows] == pytest.approx(
            [100 * x for x in sorted(left)[:10]], abs=0.05
        )


def test_classes_of_several_labels_are_by_average_precision():
    """Of 5/6 where ranks 1 and 3 of 4 are right, 1/4 where only the last is."""
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    scores = np.linspace(0.9, 0.1, 4)[:, None].repeat(3, axis=1)
    names = ("spin", "absent", "jump")
    some = ((), np.full(4, 12), np.ones(4, bool))
    result = MeanAveragePrecision(PROTOCOL, names, labels, scores, *some).to_json()
    run = types.SimpleNamespace(evaluations={"video_step7": result})
    page = Page("\n".join(pages_run._classes(run)))
    ((_, rows),) = page.tables
    assert rows == [
        ["class", "mostly taken for", "AP", "examples"],
        ["jump", "", "25.0%", "1"],
        ["spin", "", "83.3%", "2"],
    ]
    assert "No confusion matrix: examples have several labels." in page.texts[""]


def test_samples_are_predicted_as_the_evaluation_does(run, page, data_dir):
    source = locate(run.workdir, 6)
    config = from_json(source.read_description()["config"])
    (result,) = evaluator.evaluate(config, source, ["video"])
    said = page.texts["Samples"]
    for i in (0, 12, 23):  # of 24
        label = result.class_names[result.labels[i]]
        best = np.argsort(-result.scores[i], kind="stable")[:3]
        verdict = "correct" if best[0] == result.labels[i] else "wrong"
        shares = "".join(
            f"{result.class_names[c]} {result.scores[i, c]:.0%}" for c in best
        )
        assert f": {label}{verdict}{shares}" in said


def test_a_prediction_is_correct_where_the_best_is_a_label(run, data_dir, monkeypatch):
    split = open_split("moving_shapes/videos", "test", data_dir)
    label = split[0]["label"]
    for best, verdict in ((label, "correct"), ((label + 1) % 24, "wrong")):
        scores = 0.7 * np.eye(24)[[best]] + 0.3 * np.eye(24)[[label - 1]]
        monkeypatch.setattr(TrainedTubeViT, "scores", lambda *_, x=scores: x)
        card = pages_run._sample(run, "video", split, 0)
        assert re.findall(r"<b class=\"(\w+)\">(\w+)</b>", card) == [(verdict, verdict)]
        assert f"{split.class_names[best]} <span>70%</span>" in card


def test_the_middle_of_what_the_example_is_of_a_video_is_shown(
    run, data_dir, monkeypatch
):
    """An embedded clip has 20 frames, 8 a second."""
    split = open_split("moving_shapes/videos", "test", data_dir)
    read = Split.read

    def shown(most=10.0, **part):
        monkeypatch.setattr(Split, "read", lambda *at: read(*at) | part)
        monkeypatch.setattr(pages_run, "_SHOWN_SECONDS", most)
        card = pages_run._sample(run, "video", split, 0)
        (at,) = re.findall(r'src="data:video/mp4;base64,([^"]+)', card)
        return decode(
            base64.b64decode(at),
            lambda seconds: np.arange(0, seconds, 1 / 8),
            lambda h, w: Crop(0, 0, h, w, h, w),
        )[0].astype(float)

    def place(part):
        """(first frame, number of frames) of the whole that a part is like."""
        n = len(part)
        differ = [np.abs(whole[i : i + n] - part).mean() for i in range(21 - n)]
        return np.argmin(differ), n

    whole = shown()
    assert len(whole) == 20
    assert place(shown(1.0)) == (6, 8)
    part = {SPAN: (0.25, 1.5)}
    assert place(shown(**part)) == (2, 10)
    assert place(shown(0.5, **part)) == (5, 4)


def test_a_damaged_record_leaves_the_rest_of_the_page(run, data_dir, monkeypatch):
    def damaged(split, index):
        raise UnreadableRecord(f"record {index} <is> damaged")

    split = open_split("moving_shapes/videos", "test", data_dir)
    monkeypatch.setattr(type(split), "read", damaged)
    card = pages_run._sample(run, "video", split, 3)
    assert card == (
        "<figure><figcaption>record 3 &lt;is&gt; damaged</figcaption></figure>"
    )


def test_videos_are_the_clips(run, page):
    clips = [x for name, tag, x in page.media if (name, tag) == ("Samples", "video")]
    for clip in clips:
        encoded = base64.b64decode(clip["src"].partition(",")[2])
        frames, _ = decode(
            encoded,
            lambda seconds: np.arange(0, seconds, 1 / 8),
            lambda h, w: Crop(0, 0, h, w, h, w),
        )
        assert frames.shape[1:] == (64, 64, 3) and frames.std() > 10


def test_what_does_not_decode_is_named(page):
    (rows,) = page.of("Data")
    assert ["moving_shapes/videos test", "evaluation, video", "1"] in rows
    assert ["moving_shapes/images train", "training, image", "0"] in rows
    assert f"{UNDECODABLE}: not decoded in evaluation" in page.texts["Data"]


def test_files_that_were_left_out_are_counted_and_named(tmp_path):
    files = [manifest.Row("train", "a.mp4"), manifest.Row("test", "<b>.mp4")]
    files += [manifest.Row("train", f"{x}.mp4", status=f"Not {x}.") for x in "cde"]
    directory = tmp_path / "moving_shapes" / "videos" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").touch()
    manifest.write(directory / manifest.NAME, files)
    run = types.SimpleNamespace(
        config=tiny_config(tmp_path),
        metrics=[{"train/video/undecodable": n} for n in (3.0, 1200.0)],
        evaluations={},
    )
    page = Page("\n".join(pages_run._data(run)))
    ((_, rows),) = page.tables
    assert rows[1:] == [
        ["moving_shapes/images train", "training, image", "not logged"],
        ["moving_shapes/videos train", "training, video", "1,200"],
        ["moving_shapes/images", "left out when prepared", "no manifest"],
        ["moving_shapes/videos", "left out when prepared", "3"],
    ]
    names = re.findall(
        r"moving_shapes/videos train (\w\.mp4: Not \w\.)", page.texts[""]
    )
    assert names == [f"{x}.mp4: Not {x}." for x in "cde"]
    assert "3 by name" in page.texts[""]


def test_what_is_absent_is_said(run, tmp_path, capsys):
    """Checkpoints alone, on a machine without the data."""
    shutil.copytree(run.workdir / "checkpoints", tmp_path / "checkpoints")
    data = tmp_path / "<no> data"
    with pytest.raises(DatasetNotPrepared) as error:
        open_split("moving_shapes/videos", "test", data)
    report.main(["--workdir", str(tmp_path), "--clips", "2", "--data_dir", str(data)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    for section, what in {
        "Curves": "no metrics.jsonl",
        "Accuracy": f"from sparse-tube-vit evaluate --model {tmp_path}",
        "Classes": "No evaluation yet.",
        "Samples": str(error.value),
        "Tubes": str(error.value),
        "Attention": str(error.value),
        "Throughput": "never logged",
        "Data": "not logged",
    }.items():
        assert what in page.texts[section]
    assert {name for name, *_ in page.media} == {"Kernels", "Positions"}


def test_a_model_alone_has_a_page_where_it_is_told(run, tmp_path, capsys):
    release.release(run.workdir, tmp_path / "release")
    for model in (tmp_path / "release", Path(run.workdir, "checkpoints", "6")):
        files = sorted(model.rglob("*"))
        with pytest.raises(SystemExit):
            report.main(["--model", str(model)])
        said = capsys.readouterr().err
        assert f"NoDirectory: {model} is a release or one step of a run" in said
        out = tmp_path / "page.html"
        report.main(["--model", str(model), "--out", str(out), "--clips", "1"])
        assert sorted(model.rglob("*")) == files
        page = Page(out.read_text(encoding="utf-8"))
        assert "A model alone has no evaluations" in page.texts["Accuracy"]
        assert "no metrics.jsonl" in page.texts["Curves"]
        assert {"Kernels", "Positions", "Tubes"} <= {name for name, *_ in page.media}


def test_an_image_vit_has_no_page(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(
            [
                "--model",
                str(GOLDEN / "hugging_face_dino"),
                "--out",
                str(tmp_path / "page.html"),
            ]
        )
    assert "NothingToDraw: " in (said := capsys.readouterr().err)
    assert "is an image ViT; a page is of a run" in said


def test_a_page_that_cannot_be_written_is_not_made(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "render", lambda *_: pytest.fail("made"))
    with pytest.raises(SystemExit):
        out = str(tmp_path / "no" / "page.html")
        report.main(["--workdir", str(run.workdir), "--out", out])
    assert f"UnwritableOutput: {out} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--clips", "0"],
            "--clips: '0' is not a whole number of at least 1",
        ),
        (["--workdir", "none"], "NoCheckpoint: none"),
        (["--workdir", "none", "--config.seed=1"], "unrecognized arguments"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        report.main(["--workdir", "x", *arguments])
    assert end.value.code not in (None, 0)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Every picture and video, whether it was scrolled to or not, and what a video shows.
_SHOWN = """(async () => {
  const happens = (target, ...names) => new Promise(resolve =>
    names.forEach(name => target.addEventListener(name, resolve)));
  const pictures = [...document.images];
  const videos = [...document.querySelectorAll('video')];
  for (const picture of pictures) picture.loading = 'eager';
  await Promise.all(pictures.map(picture => picture.decode().catch(() => 0)));
  const brightest = [], playing = [];
  for (const video of videos) {
    if (video.readyState < 2 && !video.error)
      await happens(video, 'loadeddata', 'error');
    if (video.error) continue;
    await video.play();
    playing.push(!video.paused);
    video.pause();
    video.currentTime = video.duration / 2;
    await happens(video, 'seeked');
    const context = new OffscreenCanvas(16, 16)
      .getContext('2d', {willReadFrequently: true});  // else the browser warns
    let most = 0;  // the frame may come some time after it was sought
    for (const end = Date.now() + 10000; most <= 50 && Date.now() < end;) {
      context.drawImage(video, 0, 0, 16, 16);
      const bytes = context.getImageData(0, 0, 16, 16).data;
      most = Math.max(...bytes.filter((_, i) => i % 4 < 3));
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    brightest.push(most);
  }
  return {
    widths: pictures.map(picture => picture.naturalWidth),
    states: videos.map(video => video.readyState),
    playing: playing,
    brightest: brightest,
    width: document.documentElement.scrollWidth,
  };
})()"""


@pytest.mark.skipif(find() is None, reason="Chromium is not installed")
def test_a_browser_shows_it_on_screens_wide_and_narrow(run, page):
    tags = [tag for _, tag, _ in page.media]
    with Chromium() as browser:
        for width in (1280, 390):
            url = (run.workdir / "report.html").as_uri()
            browser.open(url, width, dark=width < 500)
            assert browser.evaluate("innerWidth") == width
            shown = browser.evaluate(_SHOWN)
            assert len(shown["widths"]) == tags.count("img")
            assert min(shown["widths"]) > 0
            assert len(shown["states"]) == tags.count("video")
            assert min(shown["states"]) >= 2
            assert shown["playing"] == [True] * tags.count("video")
            assert min(shown["brightest"]) > 50
            assert shown["width"] <= width
        assert browser.errors == []


@pytest.mark.skipif(find() is None, reason="Chromium is not installed")
def test_the_browser_tells_what_is_wrong(tmp_path):
    """Else the test above would pass for any page."""
    wide = '<p style="width: 700px">x<img src="data:image/png;base64,AAAA"><video'
    script = "<script>console.error('a'); nothing()</script>"
    (tmp_path / "a.html").write_text(f"{wide} src='data:video/mp4;base64,AA'>{script}")
    with Chromium() as browser:
        browser.open((tmp_path / "a.html").as_uri(), 390)
        shown = browser.evaluate(_SHOWN)
        errors = len(browser.errors)
    assert shown["widths"] == [0] and shown["states"] == [0]
    assert shown["width"] > 390 and errors >= 2
