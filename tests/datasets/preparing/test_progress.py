from sparse_tube_vit.datasets.preparing import progress


def test_progress_without_a_terminal(capsys, monkeypatch):
    now = iter([100.0, 120.0, 135.0, 140.0, 170.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.Progress(40, " clips") as bar:
        for more in (1, 6, 1, 20):
            bar.update(more)
    assert capsys.readouterr().err.splitlines() == [
        "7 of 40 clips [00:35<02:45,  5.00s/ clips]",
        "28 of 40 clips [01:10<00:30,  2.50s/ clips]",
    ]
