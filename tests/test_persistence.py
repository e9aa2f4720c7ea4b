"""Files under stress: crashes, full disks, damage, and strangers."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import ModelFileError, SigmaVAE, _files

X = low_rank_rows()


@pytest.fixture(scope="module")
def other():
    """Another model than that of the fixture `vae`."""
    return small_vae(n_components=3, hidden_layer_sizes=(16,)).fit(X)


@pytest.fixture
def path(vae, tmp_path):
    """A saved model."""
    path = tmp_path / "model.safetensors"
    vae.save(path)
    return path


def files_in(folder):
    return sorted(file.name for file in Path(folder).iterdir())


# Writing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_kill_at_any_time_leaves_a_whole_file(vae, tmp_path):
    path, n_kills, n_cut = tmp_path / "model.safetensors", 200, 0
    wide = small_vae(hidden_layer_sizes=(256, 256), max_iter=0).fit(X)
    contents = []
    for model in (vae, wide):
        model.save(path)
        contents.append(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(n_kills):
        here, there = os.pipe()
        child = os.fork()
        if not child:
            try:
                vae.save(path)
                os.write(there, b"!")
                while True:
                    wide.save(path)
                    vae.save(path)
            finally:
                os._exit(1)
        os.read(here, 1)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(here)
        os.close(there)
        assert path.read_bytes() in contents
        left = [name for name in files_in(tmp_path) if name != path.name]
        n_cut += len(left)
        assert all(name.endswith(".tmp") for name in left)
        _files.remove_temporaries(path)
        assert files_in(tmp_path) == [path.name]
    print(f"{n_kills} kills left a whole file; {n_cut} hit a write")
    assert n_cut, "no kill hit a write"


@pytest.mark.parametrize("error", [PermissionError(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", ["open", "fsync", "chmod", "replace"])
def test_a_failure_of_any_call_leaves_the_previous_file(
    path, other, monkeypatch, name, error
):
    before = path.read_bytes()

    def fail(*args):
        raise error

    module = _files if name == "open" else _files.os
    monkeypatch.setattr(module, name, fail, raising=False)
    with pytest.raises(type(error)):
        other.save(path)
    assert path.read_bytes() == before
    assert files_in(path.parent) == [path.name]


def test_a_full_disk_leaves_the_previous_file(path, other):
    before = path.read_bytes()
    other.save(path)
    size = path.stat().st_size
    path.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for limit in range(0, size, max(1, size // 50)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match="too large"):
                other.save(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert path.read_bytes() == before
            assert files_in(path.parent) == [path.name]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing/model", FileNotFoundError),
        ("file/model", NotADirectoryError),
        (".", IsADirectoryError),
        ("", IsADirectoryError),
        ("new/", IsADirectoryError),
        ("pipe", OSError),
    ],
)
def test_only_files_in_folders_are_written(vae, tmp_path, monkeypatch, name, error):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    os.mkfifo("pipe")
    with pytest.raises(error):
        vae.save(name)
    assert files_in(tmp_path) == ["file", "pipe"]
    assert not Path("pipe").is_file()
    assert not list(tmp_path.parent.glob(".*.tmp"))
    vae.save(b"bytes")
    SigmaVAE.load(b"bytes")


def test_links_and_permissions_are_kept(path, other, tmp_path):
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path.name)
    other.save(link)
    assert link.is_symlink()
    assert SigmaVAE.load(path).n_components == 3
    assert path.stat().st_mode & 0o777 == 0o640
    new = tmp_path / "new"
    other.save(str(new))
    umask = os.umask(0)
    os.umask(umask)
    assert new.stat().st_mode & 0o777 == 0o666 & ~umask


def test_threads_that_save_to_one_file_leave_a_whole_one(vae, other, path):
    def save(model):
        for _ in range(20):
            model.save(path)

    threads = [threading.Thread(target=save, args=(m,)) for m in (vae, other) * 2]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert SigmaVAE.load(path).n_components in (2, 3)
    assert files_in(path.parent) == [path.name]


# Reading


def test_only_regular_files_are_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        SigmaVAE.load(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="not a regular file"):
            SigmaVAE.load(path)


def rewrite(path, change):
    """Change the header and arrays of a file as a stranger would."""
    header, arrays = _files.read_model(path)
    change(header, arrays)
    _files.write_model(path, header, arrays)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("format", 6, "later version, 99.0. Upgrade"),
        ("format", "1", "TypeError"),
        ("n_components", 10**12, "weights are not those"),
        ("n_components", True, "'n_components' is True"),
        ("sample_shape", [10**9], "cannot have the shape"),
        ("sample_shape", [-1, -5], "'sample_shape' is -1"),
        ("sample_shape", 5, "TypeError"),
        ("input_shape", [1, 5], "cannot have the shape"),
        ("network", {"class": "eval", "params": {}}, "KeyError: 'eval'"),
        ("network/params/hidden_layer_sizes", [10**6] * 999, "more layers than"),
        ("network/params/hidden_layer_sizes", [10**9], "not those of its network"),
        ("network/params/activation", "system", "'activation' parameter"),
        ("network", {"own": "os.system"}, "Pass such an object"),
        ("noise", {"class": "BernoulliNoise", "params": {}}, None),
        ("noise/params/exponent", 0.5, "'exponent'"),
        ("params/sigma", -1.0, "'sigma' parameter"),
        ("params/sigma", {"pickle": "cos\nsystem"}, "KeyError: 'pickle'"),
        ("params/sigma", {"array": "missing"}, "KeyError: 'missing'"),
        ("params/device", "abacus", None),
        ("params/checkpoint_dir", "/", None),
        ("params/unheard_of", 1, "unheard_of"),
        ("linear_path", False, "weights are not those"),
        ("n_iter", -1, "'n_iter' is -1"),
        ("reconstruction_error", float("inf"), "'reconstruction_error' is inf"),
        ("start_score", -float("inf"), "'start_score' is -inf"),
        ("output", "eval", "'output' is 'eval'"),
        ("structure", [1], "TypeError"),
        ("n_axes", 1, "not orthonormal"),
        ("n_axes", None, "'n_axes' is None"),
    ],
    ids=str,
)
def test_lies_are_found_out(path, key, value, match):
    def lie(header, arrays):
        header["versions"]["sklearn_sigmavae"] = "99.0"
        *keys, last = key.split("/")
        for name in keys:
            header = header[name]
        header[last] = value

    rewrite(path, lie)
    if match is None:
        vae = SigmaVAE.load(path)
        assert (vae.device, vae.checkpoint_dir) == ("auto", None)
        return
    with pytest.raises(ModelFileError, match=match) as error:
        SigmaVAE.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("units.scale", np.zeros(1), "not positive"),
        ("units.scale", np.full(1, np.nan), "'units.scale' has entries that are not"),
        ("units.offset", np.zeros(4), "units are not those"),
        ("sigma", np.array(-1.0), "sigma is not that"),
        ("sigma", np.array(1e-30), "out of the range"),
        ("sigma", np.array([1.0, 1, 1, 1, 2]), "sigma is not that"),
        ("feature_names", np.frombuffer(b"a\0b", np.uint8), "names than features"),
        ("feature_names", np.frombuffer(b"\xff\0\0\0\0", np.uint8), "Unicode"),
        ("module.encoder.log_var", np.zeros(3, np.float32), "not those of its network"),
        ("module.evil", np.zeros(3, np.float32), "not those of its network"),
        ("tails.axes", np.zeros((5, 3), np.float32), "not those of its network"),
        ("tails.limit", np.array(0, np.float32), "no range"),
        ("rows.epoch", np.array([0, 1, 9], np.int32), "IndexError"),
        ("history.x", np.zeros(20_001, np.int8), "too long"),
    ],
    ids=str,
)
def test_lying_arrays_are_found_out(path, name, value, match):
    rewrite(path, lambda header, arrays: arrays.update({name: value}))
    with pytest.raises(ModelFileError, match=match):
        SigmaVAE.load(path)


def test_what_is_missing_is_missed(path):
    rewrite(path, lambda header, arrays: header["params"].pop("precision"))
    assert SigmaVAE.load(path).precision == "float32"
    content, (header, arrays) = path.read_bytes(), _files.read_model(path)
    needed = [*header, *(n for n in arrays if not n.startswith("history."))]
    for name in needed:
        rewrite(path, lambda *parts, name=name: [p.pop(name, 0) for p in parts])
        if name == "versions":
            SigmaVAE.load(path)
        else:
            with pytest.raises(ModelFileError):
                SigmaVAE.load(path)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"sklearn_sigmavae": "[" * 100_000}, "RecursionError"),
        ({"sklearn_sigmavae": "[]"}, "TypeError"),
        ({"other": "{}"}, "not written by sklearn_sigmavae"),
        ({"sklearn_sigmavae": " " * 2**21}, "header is too large"),
    ],
)
def test_other_headers_are_found_out(path, metadata, match):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + size]) | {"__metadata__": metadata}
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(ModelFileError, match=match):
        SigmaVAE.load(path)


@pytest.mark.parametrize(
    "n_files", [1000, pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_mutated_files_do_no_harm(path, n_files):
    # A process of its own: its hook for audits cannot be removed, and it may crash.
    script = Path(__file__).with_name("mutate_files.py")
    done = subprocess.run(
        [sys.executable, script, path, str(n_files)],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{n_files} files" in done.stdout
