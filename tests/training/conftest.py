"""A folder of clips."""

import pytest

from tests.datasets.builders import official
from tests.training.clips import CLIPS


@pytest.fixture
def clips(tmp_path):
    """A folder of eight clips of two classes."""
    folder = tmp_path / "my clips (2026)"
    official.write_clips(folder, *CLIPS)
    return folder
