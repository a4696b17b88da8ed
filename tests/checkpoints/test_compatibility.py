"""A checkpoint and a release of before the package had rooms: they stay readable.

`tests/golden/before_rooms.zip` was made once, by the code of commit 3ce57f8, and cannot
be made again by later code:

* `run/checkpoints/2`: of `tiny_config` with `total_steps = 4`;
* `release`: that step, released in float32;
* `reference.npz`: a clip; of step 2's averaged parameters, the probabilities of the
  clip (`motions`) and of its first frame (`shapes`), and the clip's features; and the
  parameters after step 4, by path.
"""

import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sparse_tube_vit import train
from sparse_tube_vit.inference import loaded
from tests.tiny import tiny_config

GOLDEN = Path(__file__).parents[1] / "golden" / "before_rooms.zip"


@pytest.fixture
def before(tmp_path):
    """The unpacked folder."""
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def assert_close(x, y):
    np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["run", "run/checkpoints/2", "release"])
def test_old_models_load_and_predict_the_same(before, path):
    reference = np.load(before / "reference.npz")
    trained = loaded.load(before / path)
    assert (trained.step, trained.averaged) == (2, True)
    clip = reference["clip"]
    for head, seen in (("motions", clip), ("shapes", clip[0])):
        best = dict(trained.predict(seen, head=head, top=100))
        probabilities = [best[name] for name in trained.class_names[head]]
        assert_close(probabilities, reference[head])
    features = trained.features(clip)
    assert_close(features.pooled, reference["pooled"])
    assert_close(features.tokens, reference["tokens"])


def test_an_old_run_resumes_to_the_same_parameters(before, data_dir):
    config = tiny_config(data_dir)
    config.total_steps = 4
    state = train.train(config, before / "run")
    reference = np.load(before / "reference.npz")
    params = flatten_dict(jax.device_get(state.params), sep="/")
    wanted = {
        name.removeprefix("params/"): reference[name]
        for name in reference.files
        if name.startswith("params/")
    }
    assert params.keys() == wanted.keys()
    for name, x in params.items():
        assert_close(x, wanted[name])
