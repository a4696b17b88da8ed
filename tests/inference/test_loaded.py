"""Loading and using a model: of any run, on one device, with nothing of training."""

import copy
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sparse_tube_vit as stv
from sparse_tube_vit import evaluate, predict, train
from sparse_tube_vit.checkpoints.step import NoCheckpoint
from sparse_tube_vit.checkpoints.stored import locate
from sparse_tube_vit.datasets.reading import open_split
from sparse_tube_vit.evaluation import evaluator
from sparse_tube_vit.inference import loaded, predictions
from sparse_tube_vit.inference.features import pooled
from sparse_tube_vit.inference.files import IncompleteResults
from sparse_tube_vit.inference.loaded import AmbiguousHead, NotAClip
from sparse_tube_vit.models.positions import token_centres
from sparse_tube_vit.models.tubevit import UnknownHead
from sparse_tube_vit.storage import UnreadableFile
from sparse_tube_vit.video.limits import UndecodableClip
from tests.checkpoints.written import assert_equal, scaled, write_run
from tests.tiny import tiny_multi_label_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """Work directory of a run whose parameters eight devices share, in a loop."""
    workdir = tmp_path_factory.mktemp("inference") / "run"
    config = tiny_multi_label_config(data_dir)
    config.mesh.update(data=1, fsdp=8)
    config.model.scan = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "prepare", lambda *_: [])  # the tests evaluate
        train.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(work directory, parameters) of steps 3 and 5; twice these are the averages."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    return workdir, write_run(workdir)


@pytest.fixture(scope="module")
def tubevit(run):
    return stv.load(run)


@pytest.fixture(scope="module")
def files(data_dir, tmp_path_factory):
    """Files of the test splits, by data set."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name, kind in (("images", "image"), ("crowds", "video")):
        split = open_split(f"moving_shapes/{name}", "test", data_dir)
        found[name] = []
        for i in range(6):
            found[name].append(folder / f"{name}_{i}")  # no suffix tells the container
            found[name][-1].write_bytes(split[i][kind])
    return found


def test_one_device_loads_what_eight_trained_and_imports_nothing_of_training(
    run, files, tubevit
):
    """In a process of its own, which sees one device and unpickles nothing."""
    code = """if True:
        import sys, time
        sys.addaudithook(lambda event, _: event == "pickle.find_class" and exit(3))
        import sparse_tube_vit as stv
        assert "jax" not in sys.modules
        stv.load
        assert time.process_time() < 2, "to import"
        stv.load("demo")
        assert "orbax" not in sys.modules  # a release needs none
        tubevit = stv.load(sys.argv[1])
        print(tubevit.predict(sys.argv[2], "crowds", top=99))
        tubevit.features(sys.argv[2])
        import jax
        assert len(jax.devices()) == 1
        for name in ("tensorflow", "grain", "tensorflow_datasets", "matplotlib", "cv2"):
            assert name not in sys.modules, name
    """
    video = files["crowds"][0]
    ended = subprocess.run(
        [sys.executable, "-c", code, run, video],
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    theirs, ours = eval(ended.stdout), tubevit.predict(video, "crowds", top=99)
    assert [name for name, _ in theirs] == [name for name, _ in ours]
    np.testing.assert_allclose(*([p for _, p in x] for x in (theirs, ours)), rtol=1e-5)


@pytest.mark.parametrize("step", [None, 3])
@pytest.mark.parametrize("ema", [True, False])
def test_a_step_and_parameters_as_trained_or_averaged_are_loaded(saved, step, ema):
    workdir, params = saved
    model = stv.load(workdir, step=step, ema=ema)
    assert (model.step, model.averaged) == (step or 5, ema)
    at_step = scaled(params, (step or 5) / 5)
    assert_equal(model.params, at_step, 2 if ema else 1)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["video", "image"])
def test_predicts_what_evaluate_scores_bit_for_bit(
    run, files, tubevit, name, monkeypatch
):
    one = train.sharding.make_mesh
    monkeypatch.setattr(
        train.sharding, "make_mesh", lambda config: one(config, jax.devices()[:1])
    )
    found = locate(run, 3).read_description()
    config = evaluate.from_json(found["config"])
    config.mesh.update(data=-1, fsdp=1)
    source = config.evaluations[name]
    source.update(batch_size=4, split="test[:6]")
    (result,) = evaluator.evaluate(config, locate(run, 3), [name])
    paths = [*map(str, files[source.dataset.partition("/")[2]])]
    told = [*predictions.predict(tubevit, paths, source.head, top=99, batch_size=4)]
    names = tubevit.class_names[source.head]
    for prediction, scores in zip(told, result.scores, strict=True):
        assert prediction.kind == source.kind
        assert len(prediction.classes) == len(names)
        assert dict(prediction.classes) == dict(zip(names, scores, strict=True))
        ordered = [p for _, p in prediction.classes]
        assert ordered == sorted(ordered, reverse=True)
    total = sum(p for _, p in told[0].classes)
    assert (abs(total - 1) < 1e-5) == (name == "image")


@pytest.mark.smoke
def test_the_model_of_the_package_knows_its_clips(tmp_path, monkeypatch):
    """From any directory, beside a folder of its name too."""
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    demo = stv.load("demo")
    clips = stv.example_clips()
    assert [clip.stem for clip in clips] == ["ring_left", "star_right"]
    for clip in clips:
        (name, probability), *_ = demo.predict(clip)
        assert name == clip.stem.replace("_", " ") and probability > 0.8
    size = sum(file.stat().st_size for file in clips[0].parent.iterdir())
    assert size < 4e6
    card = (clips[0].parent / "README.md").read_text()
    assert "moving_shapes/videos" in card and "bfloat16" in card
    with pytest.raises(NoCheckpoint):
        stv.load("./demo")


def test_arrays_files_and_views_give_the_same(tubevit, files):
    video, image = files["crowds"][0], files["images"][0]
    views = stv.read_clip(video, tubevit.config, views=(2, 3))
    assert views.shape == (6, 4, 16, 16, 3) and views.dtype == np.uint8
    from_file = tubevit.predict(video, "crowds")
    assert tubevit.predict(views, "crowds") == from_file
    clip = stv.read_clip(video, tubevit.config)
    alone = tubevit.predict(clip, "crowds", top=99)
    logits = tubevit.model.apply({"params": tubevit.params}, clip[None], "crowds")
    expected = dict(
        zip(tubevit.class_names["crowds"], jax.nn.sigmoid(logits[0]), strict=True)
    )
    for name, probability in alone:
        np.testing.assert_allclose(probability, expected[name], rtol=1e-5)
    picture = stv.read_image(image, tubevit.config)
    assert picture.shape == (16, 16, 3)
    assert tubevit.predict(picture) == tubevit.predict(str(image))
    assert len(tubevit.predict(picture, top=2)) == 2


def test_views_other_than_those_of_the_evaluation_are_averaged(tubevit, files):
    path = str(files["crowds"][0])
    views = stv.read_clip(path, tubevit.config, views=(3, 1))
    logits = tubevit.model.apply({"params": tubevit.params}, views, "crowds")
    expected = np.mean(jax.nn.sigmoid(logits), axis=0)
    (found,) = predictions.predict(tubevit, [path], top=99, views=(3, 1))
    scores = [dict(found.classes)[name] for name in tubevit.class_names["crowds"]]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_several_inputs_give_what_each_gives(tubevit, files):
    """Files of both kinds, arrays of both dtypes, views, duplicates, a Path, a name."""
    clip = stv.read_clip(files["crowds"][1], tubevit.config)
    views = stv.read_clip(files["crowds"][2], tubevit.config, views=(2, 1))
    image = stv.read_image(files["images"][0], tubevit.config)
    floats = clip / np.float32(127.5) - 1
    inputs = [
        files["crowds"][0],
        clip,
        files["images"][1],
        views,
        str(files["crowds"][0]),
    ]
    inputs += [image, floats, files["crowds"][3]]
    expected = [tubevit.predict(x, top=3) for x in inputs]
    for several in (inputs, tuple(inputs), iter(inputs)):
        found = tubevit.predict(several, top=3)
        assert [[n for n, _ in x] for x in found] == [
            [n for n, _ in x] for x in expected
        ]
        np.testing.assert_allclose(
            [[p for _, p in x] for x in found],
            [[p for _, p in x] for x in expected],
            rtol=1e-5,
        )
    assert found[0] == found[4]
    assert tubevit.predict([]) == tubevit.features([]) == []
    features = tubevit.features([x for x in inputs if x is not views], batch_size=3)
    assert len(features) == len(inputs) - 1
    single = tubevit.features(image)
    np.testing.assert_allclose(features[4].tokens, single.tokens, atol=1e-5)
    np.testing.assert_array_equal(features[4].place, single.place)


def test_a_list_of_files_is_scored_as_the_command_does_bit_for_bit(tubevit, files):
    paths = [*map(str, files["crowds"])]
    told = [*predictions.predict(tubevit, paths, top=99, batch_size=4)]
    found = tubevit.predict(paths, top=99, batch_size=4)
    assert found == [[*x.classes] for x in told]


def test_inputs_without_a_result_cost_no_other(tubevit, files):
    clip = stv.read_clip(files["crowds"][0], tubevit.config)
    inputs = [files["crowds"][0], "nothing.mp4", clip, clip / 255, files["images"][0]]
    with pytest.raises(IncompleteResults) as caught:
        tubevit.predict(inputs)
    error = caught.value
    assert [x is None for x in error.results] == [False, True, False, True, False]
    for i in (0, 2, 4):
        assert error.results[i][0][0] == tubevit.predict(inputs[i])[0][0]
    assert list(error.problems) == [1, 3]
    assert "2 of 5 inputs have no result" in str(error)
    assert "nothing.mp4: No such file" in str(error)
    assert "input 3: Expected floats in [-1, 1]" in str(error)
    with pytest.raises(UnknownHead):
        tubevit.predict(inputs, "dogs")
    with pytest.raises(IncompleteResults, match="and 2 more"):
        tubevit.features(["nothing"] * 12)


@pytest.mark.parametrize("terminal", [True, False])
def test_several_inputs_show_progress_in_a_terminal(
    tubevit, files, monkeypatch, capsys, terminal
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    tubevit.predict([files["crowds"][0]] * 3)
    shown = capsys.readouterr().err
    assert ("3/3" in shown) == terminal


def test_floats_are_from_black_to_white(tubevit, files):
    clip = stv.read_clip(files["crowds"][0], tubevit.config)
    floats = clip / np.float32(127.5) - 1
    expected = dict(tubevit.predict(clip, "crowds", top=99))
    for name, probability in tubevit.predict(floats, "crowds", top=99):
        np.testing.assert_allclose(probability, expected[name], rtol=1e-5)
    tubevit.predict(np.zeros_like(floats), "crowds")
    for wrong, advice in (
        (clip / 255, r"not in \[0, .*\]: 2 \* clip - 1"),
        (clip.astype(float), r"\[0, 25.\]: convert 0..255 to uint8"),
        (np.where(clip == clip.max(), np.nan, floats), "some are NaN"),
    ):
        with pytest.raises(NotAClip, match=advice):
            tubevit.predict(wrong, "crowds")
        with pytest.raises(NotAClip):
            tubevit.features(wrong)


def test_a_head_is_chosen_by_what_trained_it(tubevit, files):
    assert tubevit.choose_head("image") == "shapes"
    assert tubevit.choose_head("video") == "crowds"
    config = copy.deepcopy(tubevit.config)
    config.streams.more = config.streams.video.copy_and_resolve_references()
    config.streams.more.head = "motions"
    ambiguous = dataclasses.replace(tubevit, config=config)
    with pytest.raises(AmbiguousHead, match="videos for the heads crowds, motions"):
        ambiguous.predict(files["crowds"][0])
    with pytest.raises(UnknownHead, match="no head 'dogs'; it has .*crowds"):
        tubevit.predict(files["crowds"][0], "dogs")
    assert tubevit.predict(files["images"][0], "crowds", top=1)


def test_a_head_is_evaluated_by_the_strides_of_training_and_most_views(tubevit):
    config = tubevit.config.copy_and_resolve_references()
    video = config.evaluations.video
    for name, scale in (("a_dense", 0.5), ("z_dense", 0.5)):
        config.evaluations[name] = {**video.to_dict(), "stride_scale": scale}
    few = {"temporal_views": 1, "spatial_views": 1}
    config.evaluations.a_quick = {**video.to_dict(), **few}
    config.evaluations.video.temporal_views = 4
    model = dataclasses.replace(tubevit, config=config)
    protocol = model.protocol("video", video.head)
    assert (protocol.stride_scale, protocol.temporal_views) == (1, 4)
    del config.evaluations["a_quick"]
    del config.evaluations["video"]
    assert model.protocol("video", video.head).stride_scale == 0.5
    assert model.protocol("video", "other").temporal_views == 1


def test_what_is_no_clip_is_named(tubevit, tmp_path):
    with pytest.raises(NotAClip, match=r"array of shape \(16, 16\)"):
        tubevit.predict(np.zeros((16, 16), np.uint8), "shapes")
    with pytest.raises(NotAClip, match="array of int64"):
        tubevit.predict(np.zeros((16, 16, 3), int), "shapes")
    for shape in ((2, 16, 16, 3), (4, 16, 24, 3), (2, 1, 32, 32, 3), (20, 16, 3)):
        with pytest.raises(NotAClip, match="clips of 4 frames and images, of 16x16"):
            tubevit.predict(np.zeros(shape, np.uint8), "crowds")
    for nothing, kind in ((None, "NoneType"), (b"encoded", "bytes"), (3, "int")):
        with pytest.raises(NotAClip, match=f"Expected a path, .* not {kind}"):
            tubevit.predict(nothing)
    frames = [np.zeros((size, 16, 3), np.uint8) for size in (16, 8)]
    with pytest.raises(NotAClip, match="Not an array of pixels: "):
        tubevit.as_views(frames)
    with pytest.raises(UnreadableFile, match="nothing: No such file"):
        tubevit.predict(tmp_path / "nothing")
    (tmp_path / "text").write_text("no clip")
    with pytest.raises(UndecodableClip, match="text: FFmpeg cannot"):
        stv.read_clip(tmp_path / "text", tubevit.config)


def test_features_are_of_the_model_with_each_tokens_tube_time_and_place(tubevit, files):
    clip = stv.read_clip(files["crowds"][1], tubevit.config)
    found = tubevit.features(files["crowds"][1])
    expected = tubevit.model.apply(
        {"params": tubevit.params}, clip[None], method="features"
    )
    np.testing.assert_allclose(found.tokens, expected["tokens"][0], atol=1e-5)
    np.testing.assert_allclose(found.pooled, expected["pooled"][0], atol=1e-5)
    centres = token_centres(tubevit.model.tubes, clip.shape[:3])
    np.testing.assert_array_equal(found.time * 8, centres[:, 0])
    np.testing.assert_array_equal(found.place, centres[:, 1:])
    # Tube 0 has a grid of 1x2x2 tokens, tube 1, of one frame, the same.
    assert found.tube.tolist() == [0] * 4 + [1] * 4
    image = tubevit.features(files["images"][1])
    assert image.tube.tolist() == [1] * 4 and image.tokens.shape == (4, 24)
    np.testing.assert_array_equal(image.place[1], [4, 12])


def test_pooled_features_of_files_are_means_over_views(tubevit, files):
    paths = [str(p) for p in (*files["crowds"][:5], files["images"][0], "nothing")]
    computed = [*pooled(tubevit, paths, views=(2, 1))]
    assert [x.path for x in computed] == paths
    assert [x.group for x in computed] == ["video"] * 5 + ["image", None]
    assert [bool(x.problem) for x in computed] == [False] * 6 + [True]
    found = [x.result for x in computed]
    views = stv.read_clip(paths[3], tubevit.config, views=(2, 1))
    mean = np.mean([tubevit.features(view).pooled for view in views], axis=0)
    np.testing.assert_allclose(found[3], mean, atol=1e-5)
    np.testing.assert_allclose(found[5], tubevit.features(paths[5]).pooled, atol=1e-5)


def test_the_command_tells_of_files_in_every_format(run, files, tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(files["crowds"][0].read_bytes())
    (folder / "b.mp4").write_text("no clip")
    (folder / "notes.txt").write_text("not looked at")
    image = str(files["images"][0])

    def run_command(*options):
        with pytest.raises(SystemExit) as end:
            predict.main([f"--model={run}", str(folder), image, *options])
        assert end.value.code == 1  # of b.mp4
        return capsys.readouterr()

    told = run_command("--head=crowds", "--top=2", "--format=json")
    first, bad, last = json.loads(told.out)
    assert first["file"] == str(folder / "a.mp4") and first["kind"] == "video"
    expected = stv.load(run).predict(folder / "a.mp4", "crowds", top=2)
    assert [c["name"] for c in first["classes"]] == [name for name, _ in expected]
    assert bad["problem"].startswith("FFmpeg cannot decode it")
    assert (last["file"], last["kind"], last["head"]) == (image, "image", "crowds")
    assert "1 of 3 files have a problem, named above" in told.err
    assert "1 of 3 files are left out" in told.err
    # Without a head, clip and image have each their own.
    _, *rows = run_command("--format=csv", "--top=1").out.splitlines()
    assert rows[0].startswith(f"{folder / 'a.mp4'},video,crowds,1,")
    assert rows[2].startswith(f"{image},image,shapes,1,")
    table = run_command("--head=crowds", "--top=1").out.splitlines()
    assert len(table) == 4 and table[1].endswith(first["classes"][0]["name"])


@pytest.mark.parametrize("format", ["json", "csv", "table"])
def test_the_command_enters_links_and_prints_names_of_any_encoding(
    run, files, tmp_path, capsys, format
):
    folder, elsewhere = tmp_path / "clips", tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / os.fsdecode(b"\xff.mp4")).write_bytes(files["crowds"][0].read_bytes())
    (folder / "linked").symlink_to(elsewhere)
    (folder / "dead.mp4").symlink_to("nowhere")
    predict.main([f"--model={run}", "--top=1", f"--format={format}", str(folder)])
    printed = capsys.readouterr()
    # Escapes as in JSON, from which the name can be read back.
    assert f"{folder}/linked/\\udcff.mp4" in printed.out
    if format == "json":
        (prediction,) = json.loads(printed.out)
        assert os.path.exists(prediction["file"]) and prediction["kind"] == "video"
    assert "dead.mp4 is left out: a link to nowhere, which is absent" in printed.err


@pytest.mark.parametrize("format", ["json", "csv", "table"])
def test_interrupted_predictions_keep_what_is_done(
    run, files, capsys, monkeypatch, format
):
    scores, calls = loaded.TrainedTubeViT.scores, []

    def interrupted(self, videos, head):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(self, videos, head)

    monkeypatch.setattr(loaded.TrainedTubeViT, "scores", interrupted)
    names = "".join(f"{path}\n" for path in files["crowds"][:5])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    options = ["--batch_size=2", "--top=1", f"--format={format}"]
    with pytest.raises(SystemExit) as end:
        predict.main([f"--model={run}", *options, "-"])
    assert end.value.code == 130
    printed = capsys.readouterr()
    listed = json.loads(printed.out) if format == "json" else printed.out.split("\n")
    paths = [x["file"] if format == "json" else re.split("[ ,]", x)[0] for x in listed]
    kept = [str(path) for path in files["crowds"][:4]]
    assert [path for path in paths if path not in ("", "file")] == kept
    assert "Interrupted" in printed.err


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://x/a.mp4", "https:// is not read: download it and"),
        ("file:///a.mp4", "file:// is not read"),
        ("hf://x/y/a.mp4", "hf:// is not read"),
    ],
)
def test_urls_that_are_not_read_cost_no_other_result(run, files, capsys, url, problem):
    with pytest.raises(SystemExit) as end:
        predict.main([f"--model={run}", "--format=json", str(files["images"][0]), url])
    assert end.value.code == 1
    printed = capsys.readouterr()
    good, bad = json.loads(printed.out)
    assert good["classes"] and bad["problem"].startswith(problem)
    assert problem not in printed.err  # told once


def test_names_from_stdin_may_end_as_on_windows_and_need_not_be_utf8(
    run, files, tmp_path, capsys, monkeypatch
):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(files["crowds"][0], odd)
    names = os.fsencode(files["crowds"][1]) + b"\r\n\r\n" + odd + b"\n"
    strict = io.TextIOWrapper(io.BytesIO(names), "utf-8", "strict")
    monkeypatch.setattr(sys, "stdin", strict)
    predict.main([f"--model={run}", "--format=json", "--top=1", "-"])
    printed = json.loads(capsys.readouterr().out)
    assert [bool(x["classes"]) for x in printed] == [True, True]


def test_an_input_without_a_finite_output_costs_no_other(run, files, monkeypatch):
    model = stv.load(run)
    clips = [stv.read_clip(path, model.config) for path in files["crowds"][:3]]
    expected = model.predict(clips, "crowds", batch_size=1)
    scores = loaded.TrainedTubeViT._scores

    def diverging(self, *options):
        compute = scores(self, *options)

        def some(params, videos):
            bad = (np.asarray(videos) == clips[1]).all((1, 2, 3, 4, 5))
            return np.where(bad[:, None], np.nan, compute(params, videos))

        return some

    monkeypatch.setattr(loaded.TrainedTubeViT, "_scores", diverging)
    for size in (2, 3):
        computed = list(
            loaded.files.compute(
                clips,
                model.as_views,
                lambda kind, videos: list(model.scores(videos, "crowds")),
                size,
            )
        )
        assert ["not finite" in x.problem for x in computed] == [False, True, False]
        for x, best in zip(computed, expected, strict=True):
            if not x.problem:
                assert model.best(x.result, "crowds", 1)[0][0] == best[0][0]


def test_a_folder_without_clips_is_an_error(run, files, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("not a clip")
    with pytest.raises(SystemExit):
        predict.main([f"--model={run}", str(tmp_path)])
    assert "NoFiles" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([f"--model={run}", str(tmp_path), str(files["images"][0])])
    printed = capsys.readouterr()
    assert "holds no clip and no image" in printed.err
    assert "1 of 2 files have a problem, named above" in printed.err
    assert files["images"][0].name in printed.out
