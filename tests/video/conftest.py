"""Videos that several tests share."""

import pytest

from tests.video.written import numbered, write_video


@pytest.fixture(scope="module")
def video():
    return write_video(numbered(40))
