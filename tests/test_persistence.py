"""Files under stress: crashes, full disks, damage, and strangers."""

import errno
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

from sklearn_sigmavae import ModelFileError, SigmaVAE, _persistence

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
@pytest.mark.parametrize("n_kills", [200])
def test_a_kill_at_any_time_leaves_a_whole_file(vae, tmp_path, n_kills):
    path = tmp_path / "model.safetensors"
    wide = small_vae(hidden_layer_sizes=(256, 256), max_iter=0).fit(X)
    contents = []
    for model in (vae, wide):
        model.save(path)
        contents.append(path.read_bytes())
    rng = np.random.default_rng(0)
    n_cut = 0
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
        SigmaVAE.load(path, device="cpu")
        left = [name for name in files_in(tmp_path) if name != path.name]
        n_cut += len(left)
        assert all(name.endswith(".tmp") for name in left)
        _persistence.remove_temporaries(path)
    print(f"{n_kills} of {n_kills} kills left a whole file; {n_cut} hit a write")
    assert n_cut, "no kill hit a write"


class _Fails:
    """Functions of the system of which a certain call fails."""

    def __init__(self, monkeypatch, error):
        self.error = error
        self.n_calls = 0
        self.fails_at = None
        for name in ("open", "fsync", "replace", "chmod"):
            self._watch(monkeypatch, _persistence.os, name)
        monkeypatch.setattr(_persistence, "open", self._open, raising=False)

    def _watch(self, monkeypatch, module, name):
        real = getattr(module, name)

        def watched(*args, **kwargs):
            self.count()
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    def count(self):
        self.n_calls += 1
        if self.n_calls == self.fails_at:
            raise self.error

    def _open(self, *args, **kwargs):
        file = open(*args, **kwargs)  # noqa: SIM115, closed by what it is wrapped in
        fails = self

        class Watched:
            def write(self, content):
                fails.count()
                # The system may take less than it is given.
                return file.write(content[: max(1, len(content) // 3)])

            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *args):
                file.close()

        return Watched()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_a_failure_of_any_call_leaves_the_previous_file(
    path, other, error, monkeypatch
):
    before = path.read_bytes()
    fails = _Fails(monkeypatch, error)
    other.save(path)
    n_calls = fails.n_calls
    assert n_calls >= 10
    after = path.read_bytes()
    assert after != before
    outcomes = []
    for i in range(1, n_calls + 1):
        path.write_bytes(before)
        fails.n_calls, fails.fails_at = 0, i
        try:
            other.save(path)
        except type(error):
            # Ctrl-C may come after the renaming; errors then are none.
            ctrl_c = isinstance(error, KeyboardInterrupt)
            assert path.read_bytes() in ((before, after) if ctrl_c else (before,))
            outcomes.append("error")
        else:
            # What comes after the renaming: the file is there.
            assert path.read_bytes() == after
            outcomes.append("saved")
        assert files_in(path.parent) == [path.name]
    print(f"{n_calls} calls: {outcomes.count('error')} errors, previous file intact")
    assert outcomes.count("error") >= n_calls - 2


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


def test_folders_that_cannot_be_written_to(vae, tmp_path):
    with pytest.raises(FileNotFoundError):
        vae.save(tmp_path / "missing" / "model")
    with pytest.raises(IsADirectoryError):
        vae.save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        vae.save(tmp_path / "file" / "model")
    assert files_in(tmp_path) == ["file"]
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            vae.save(tmp_path / "model")


@pytest.mark.parametrize("name", [".", "", "new/", "pipe"])
def test_only_files_are_replaced(vae, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(OSError, match=r"directory|Invalid"):
        vae.save(name)
    assert files_in(tmp_path) == ["pipe"]
    assert not (tmp_path / "pipe").is_file()
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


def test_files_that_are_not_there_are_the_system_s_to_tell(tmp_path):
    with pytest.raises(FileNotFoundError):
        SigmaVAE.load(tmp_path / "missing")
    with pytest.raises(ModelFileError, match="not a regular file"):
        SigmaVAE.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        SigmaVAE.load(tmp_path / "pipe")


def rewrite(path, change):
    """Change the header and arrays of a file as a stranger would."""
    header, arrays = _persistence.read_model(path)
    change(header, arrays)
    _persistence.write_model(path, header, arrays)


def _set(header, key, value):
    *keys, last = key.split("/")
    for name in keys:
        header = header[name]
    header[last] = value


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("format", 3, "later version, 99.0. Upgrade"),
        ("format", "1", "'format' is '1'"),
        ("n_components", 10**12, "number of components"),
        ("n_components", True, "'n_components' is True"),
        ("n_components", 3, "weights are not those"),
        ("sample_shape", [6], "no shape that can be"),
        ("sample_shape", [10**9], "no shape that can be"),
        ("sample_shape", [0], "'sample_shape'"),
        ("sample_shape", 5, "'sample_shape'"),
        ("input_shape", [1, 5], "no shape"),
        ("network", {"class": "eval", "params": {}}, "unknown class, 'eval'"),
        ("network", {"class": "MLP", "params": {"depth": 3}}, "depth"),
        ("network/params/hidden_layer_sizes", [10**6] * 999, "more layers than"),
        ("network/params/hidden_layer_sizes", [10**9], "not those of its network"),
        ("network/params/activation", "system", "'activation' parameter"),
        ("network", {"own": "os.system"}, "Pass such an object"),
        ("noise", {"class": "BernoulliNoise", "params": {}}, None),
        ("noise/params/exponent", 0.5, "'exponent'"),
        ("params/sigma", -1.0, "'sigma' parameter"),
        ("params/device", "abacus", None),
        ("params/unheard_of", 1, "unheard_of"),
        ("params/sigma", {"pickle": "cos\nsystem"}, "unknown kind, 'pickle'"),
        ("params/sigma", {"array": "missing"}, "KeyError"),
        ("params", 3, "'params' is 3"),
        ("linear_path", False, "weights are not those"),
        ("n_iter", -1, "'n_iter' is -1"),
        ("reconstruction_error", float("inf"), "'reconstruction_error'"),
        ("output", "eval", "'output' is 'eval'"),
        ("structure", [1], "cannot be loaded"),
    ],
    ids=str,
)
def test_lies_are_found_out(path, key, value, match):
    def lie(header, arrays):
        header["versions"]["sklearn_sigmavae"] = "99.0"
        _set(header, key, value)

    rewrite(path, lie)
    if match is None:
        SigmaVAE.load(path)
        return
    with pytest.raises(ModelFileError, match=match) as error:
        SigmaVAE.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("units.scale", np.zeros(1), "not positive"),
        ("units.scale", np.full(1, np.nan), "'units.scale' has entries that are not"),
        ("units.scale", np.ones(1, np.float32), "no 'units.scale' of type float64"),
        ("units.offset", np.zeros(4), "units are not those"),
        ("sigma", np.array(-1.0), "sigma is not that"),
        ("sigma", np.array(1e-30), "out of the range"),
        ("sigma", np.array([1.0, 1, 1, 1, 2]), "sigma is not that"),
        ("sigma", np.ones(3), "sigma has shape"),
        ("feature_names", np.frombuffer(b"a\0b", np.uint8), "names than features"),
        ("feature_names", np.frombuffer(b"\xff\0\0\0\0", np.uint8), "Unicode"),
        ("module.encoder.log_var", np.zeros(2), "not those of its network"),
        ("module.encoder.log_var", np.zeros(3, np.float32), "not those of its network"),
        ("module.evil", np.zeros(3, np.float32), "module.evil|evil"),
        ("rows.epoch", np.array([0, 1, 9], np.int32), "cannot be loaded"),
    ],
    ids=str,
)
def test_lying_arrays_are_found_out(path, name, value, match):
    rewrite(path, lambda header, arrays: arrays.update({name: value}))
    with pytest.raises(ModelFileError, match=match):
        SigmaVAE.load(path)


@pytest.mark.parametrize("name", ["sigma", "units.offset", "module.encoder.log_var"])
def test_missing_arrays_are_missed(path, name):
    rewrite(path, lambda header, arrays: arrays.pop(name))
    with pytest.raises(ModelFileError, match=name.split(".")[-1]):
        SigmaVAE.load(path)


def test_missing_entries_are_missed(path):
    header, _ = _persistence.read_model(path)
    content = path.read_bytes()
    for key in header:
        rewrite(path, lambda header, arrays, key=key: header.pop(key))
        if key == "versions":
            SigmaVAE.load(path)
        else:
            with pytest.raises(ModelFileError, match=f"lacks '{key}'"):
                SigmaVAE.load(path)
        path.write_bytes(content)


def test_parameters_that_a_file_does_not_know_have_their_defaults(path):
    rewrite(path, lambda header, arrays: header["params"].pop("precision"))
    assert SigmaVAE.load(path).precision == "float32"


def test_deep_nesting_is_found_out(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    outer = json.loads(content[8 : 8 + size])
    outer["__metadata__"]["sklearn_sigmavae"] = "[" * 100_000
    header = json.dumps(outer).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(ModelFileError, match="RecursionError"):
        SigmaVAE.load(path)


@pytest.mark.parametrize(
    "n_files",
    [1000, pytest.param(20_000, marks=pytest.mark.slow)],
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
