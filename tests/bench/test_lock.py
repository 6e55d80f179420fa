"""One holder at a time, whatever happens to it."""

import json
import os
import threading
import time
from contextlib import suppress

import pytest

from mixwell.bench.lock import Busy, holder, locked
from mixwell.core.errors import MixwellError


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    path = tmp_path / "cells" / "one.lock"
    assert holder(path) is None
    with locked(path):
        assert json.loads(holder(path))["process"] == os.getpid()
        with pytest.raises(Busy, match=str(os.getpid())), locked(path):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path):
        pass


def test_a_file_that_a_dead_process_left_is_free(tmp_path):
    path = tmp_path / "one.lock"
    path.write_text('{"process": 1}')
    assert holder(path) is None
    with locked(path):
        assert holder(path) is not None
    assert not path.exists()


def test_those_that_race_never_hold_it_together(tmp_path):
    path, inside, most = tmp_path / "one.lock", [], []

    def race():
        done = 0
        while done < 100:
            with suppress(Busy), locked(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0002)
                inside.pop()
                done += 1

    # Each opens the file anew, and locks belong to what is opened: threads are as good as processes.
    racers = [threading.Thread(target=race) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert most == [1] * 300


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MixwellError, match=r"cannot be locked.*Choose another"), locked(tmp_path / "file" / "one.lock"):
        pass
