"""Files are whole or absent, whatever goes wrong."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from residual_mbrl import files
from residual_mbrl.errors import OutputError


def full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path):
    """A file holds what was written last, and no temporary stays."""
    files.write_bytes(tmp_path / "a", b"old")
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_text_is_utf8(tmp_path):
    """Units such as N·m and µs survive whatever the locale."""
    files.write_text(tmp_path / "a", "N·m\n")
    assert (tmp_path / "a").read_bytes() == "N·m\n".encode()


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, when):
    """A full disk is an OutputError that names file and reason; the older file is untouched and the temporary is gone."""
    files.write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, when, full_disk)
    with pytest.raises(OutputError, match=r"a\.json.*No space left"):
        files.write_text(tmp_path / "a.json", "new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("whole_folder", [False, True])
def test_real_size_limit(tmp_path, whole_folder):
    """The system itself refusing to write more leaves nothing behind."""
    target = "with files.folder(out / 'f') as f: files.write_bytes(f / 'x', data)" if whole_folder else "files.write_bytes(out / 'x', data)"
    code = textwrap.dedent(f"""
        import pathlib, resource
        from residual_mbrl import files
        from residual_mbrl.errors import OutputError
        out, data = pathlib.Path({str(tmp_path)!r}), bytes(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            {target}
        except OutputError as error:
            assert "File too large" in str(error), error
        else:
            raise SystemExit("no error")
    """)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert os.listdir(tmp_path) == []


def test_missing_parent_is_an_output_error(tmp_path):
    """A folder that does not exist is named."""
    with pytest.raises(OutputError, match="nowhere"):
        files.write_text(tmp_path / "nowhere" / "a", "x")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a write passes through, and no temporary stays."""
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a", "x")
    assert os.listdir(tmp_path) == []


def test_json_is_strict_and_exact(tmp_path):
    """Float64 comes back bit for bit, non-finite numbers too, and any JSON parser reads the file."""
    value = {"x": [0.1, 1 / 3, 5e-324, math.inf, -math.inf], "numpy": np.float64(0.1), "array": np.arange(3), "unit": "N·m", "none": None}
    files.write_json(tmp_path / "a.json", value)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "a.json").read_bytes(), parse_constant=refuse)
    read = files.load_json((tmp_path / "a.json").read_bytes())
    assert read == {"x": value["x"], "numpy": 0.1, "array": [0, 1, 2], "unit": "N·m", "none": None}
    assert math.isnan(files.load_json(files.dump_json(math.nan)))


@given(st.floats())
def test_every_float_comes_back(x):
    """Every float64 reads back with its own bits, NaN as a NaN."""
    (read,) = files.load_json(files.dump_json([x]))
    assert struct.pack("d", read) == struct.pack("d", x) or (math.isnan(read) and math.isnan(x))


def test_sha256(tmp_path):
    """The hash is that of the standard's example."""
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_folder_appears_whole(tmp_path):
    """The folder has its name only once its body has ended, parents included."""
    path = tmp_path / "deep" / "out"
    with files.folder(path) as building:
        (building / "a").write_text("a")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"]
    assert os.listdir(path.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_folder_keeps_the_old_one(tmp_path, error):
    """An error or Ctrl-C in the body leaves the older folder as it was and nothing else."""
    with files.folder(tmp_path / "out") as building:
        (building / "a").write_text("old")
    with pytest.raises(error), files.folder(tmp_path / "out", replaces=("a",)) as building:
        (building / "a").write_text("new")
        raise error
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_folder_replaces_its_own_kind(tmp_path):
    """An older output is replaced whole: entries that the new one lacks are gone."""
    for names in (("a", "b"), ("a",)):
        with files.folder(tmp_path / "out", replaces=("a", "b")) as building:
            for name in names:
                (building / name).write_text(str(names))
    assert os.listdir(tmp_path / "out") == ["a"]
    assert os.listdir(tmp_path) == ["out"]


def test_folder_never_deletes_other_files(tmp_path):
    """A folder with somebody's files is refused before anything is built."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"), files.folder(tmp_path, replaces=("calibration.json",)):
        raise AssertionError("the body must not run")
    assert (tmp_path / "thesis.tex").exists()


def test_folder_over_a_file_is_refused(tmp_path):
    """An output that is a file is named."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"), files.folder(tmp_path / "out"):
        raise AssertionError("the body must not run")


def test_failed_swap_brings_the_old_folder_back(tmp_path, monkeypatch):
    """When the new folder cannot take its name, the older one has it again."""
    with files.folder(tmp_path / "out") as building:
        (building / "a").write_text("old")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            full_disk()
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OutputError, match="No space left"), files.folder(tmp_path / "out", replaces=("a",)) as building:
        (building / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_full_disk_in_the_body_is_an_output_error(tmp_path):
    """A figure that cannot be written is the output's failure; a log that cannot be read is not."""
    with pytest.raises(OutputError, match="No space left"), files.folder(tmp_path / "out"):
        full_disk()
    with pytest.raises(FileNotFoundError), files.folder(tmp_path / "out"):
        (tmp_path / "no log").read_bytes()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_of_a_process_leaves_nothing(tmp_path):
    """A process interrupted while it builds a folder removes it."""
    code = textwrap.dedent(f"""
        import pathlib, time
        from residual_mbrl import files
        with files.folder(pathlib.Path({str(tmp_path)!r}) / "out") as f:
            files.write_text(f / "a", "x")
            print("ready", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert process.wait(timeout=30) != 0
        assert time.monotonic() - begun < 20
    assert os.listdir(tmp_path) == []


def test_progress_folder_lies_beside_the_output(tmp_path):
    """Checkpoints have a hidden folder of their own beside the output, for relative outputs too."""
    assert files.progress_folder(tmp_path / "out") == tmp_path / ".out.progress"


def test_a_killed_process_lets_a_folder_go(tmp_path):
    """While it lives nobody else holds what it holds."""
    script = f"import time; from residual_mbrl.files import held\n" \
             f"with held({str(tmp_path)!r}):\n    print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match="another process works in this folder"), files.held(tmp_path):
        pass
    process.kill()
    process.communicate()
    with files.held(tmp_path):
        pass
