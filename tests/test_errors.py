"""Commands end with an error's message, and leave nothing behind."""

import weakref

import pytest

from sparse_tube_vit.errors import TubeViTError, reported


class Batch:
    pass


def test_what_failed_holds_nothing_until_the_process_ends(capsys):
    held = []

    def fail():
        batch = Batch()
        held.append(weakref.ref(batch))
        raise TubeViTError("It failed.")

    with pytest.raises(SystemExit) as ended, reported():
        fail()
    assert ended.value.code == 1 and held[0]() is None
    assert capsys.readouterr().err == "TubeViTError: It failed.\n"


def test_ctrl_c_is_no_trace(capsys):
    with pytest.raises(SystemExit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
