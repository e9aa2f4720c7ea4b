"""Loads mutated copies of a saved model, and reports what came of it.

Usage: python mutate_files.py FILE N_FILES. It exits with 1 at the first file that does
harm: it raises anything but ModelFileError, executes code, hangs or takes memory.
"""

import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

from sklearn_sigmavae import ModelFileError, SigmaVAE

# Audit events that loading data does not cause.
FORBIDDEN = ("exec", "compile", "marshal.loads", "pickle.find_class", "ctypes.dlopen")
FORBIDDEN += ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen")
FORBIDDEN += ("socket.connect", "import", "os.remove", "os.rename", "shutil.rmtree")
SECONDS, MEGABYTES = 10, 100

HOSTILE = [None, True, -1, 0, 1.5, 10**18, 2**63, -(10**30), float("nan"), float("inf")]
HOSTILE += ["", "x" * 10_000, "../../etc/passwd", "__class__", "1", [], {}, [[]]]
HOSTILE += [[10**9] * 20, {"array": "sigma"}, {"array": "nothing"}, {"tuple": [1, 2]}]
HOSTILE += [{"dict": [[[], 1]]}, {"own": "os.system"}]
HOSTILE += [{"class": "SigmaVAE", "params": {}}, {"class": "MLP", "params": {}}]
HOSTILE += [{"class": "BernoulliNoise", "params": {}}, {"__reduce__": ["os.system"]}]


class Bomb:
    """Pickles that would make a file."""

    def __reduce__(self):
        return exec, ("open('bomb', 'w')",)


def split(content):
    """Header, names of arrays, and arrays of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return header, [name for name in header if name[0] != "_"], content[8 + size :]


def join(header, body, size=None):
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


def places(value):
    """All (container, key) pairs in nested dictionaries and lists."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found += [(value, key), *places(value[key])]
    return found


def change_somewhere(value, rng):
    container, key = rng.choice(places(value))
    how = rng.randrange(4)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[rng.choice(["x", "class", "own", "array", ""])] = container.pop(key)
    else:
        container[key] = copy.deepcopy(rng.choice(HOSTILE))


def flip(content, rng):
    changed = bytearray(content)
    # Anywhere, or in the header.
    end = rng.choice([len(content), 8 + int.from_bytes(content[:8], "little")])
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def change_size(content, rng):
    if rng.randrange(2):
        return content[: rng.randrange(len(content))]
    return content + rng.randbytes(rng.choice([1, 100, 10_000]))


def lie_about_size(content, rng):
    header, _, body = split(content)
    return join(header, body, rng.choice([0, 1, 2**22, 10**8, 2**63, 2**64 - 1]))


def lie_about_arrays(content, rng):
    header, names, body = split(content)
    name = rng.choice(names)
    change_somewhere(header[name], rng)
    if rng.random() < 0.3:
        dtypes = ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X"]
        header[name]["dtype"] = rng.choice(dtypes)
    if rng.random() < 0.3:
        header[name]["shape"] = rng.choice([[], [0], [2**40], [2**33, 2**33], [-1]])
    return join(header, body)


def swap_or_fill_arrays(content, rng):
    header, names, body = split(content)
    one, two = rng.sample(names, 2)
    if rng.randrange(2):
        header[one], header[two] = header[two], header[one]
        return join(header, body)
    start, end = header[one]["data_offsets"]
    filling = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x80"])
    return join(header, body[:start] + filling * (end - start) + body[end:])


def lie_about_model(content, rng):
    header, _, body = split(content)
    model = json.loads(header["__metadata__"]["sklearn_sigmavae"])
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        change_somewhere(model, rng)
    header["__metadata__"]["sklearn_sigmavae"] = json.dumps(model)
    return join(header, body)


def spoil_text(content, rng):
    header, _, body = split(content)
    text = header["__metadata__"]["sklearn_sigmavae"]
    start = rng.randrange(len(text))
    insert = rng.choice(["[" * 3000, "{" * 3000, "9" * 5000, "NaN", "\0", "\ud800", ""])
    text = text[:start] + insert + text[start + rng.randrange(50) :]
    header["__metadata__"]["sklearn_sigmavae"] = text
    return join(header, body)


def other_kinds(content, rng):
    stream = io.BytesIO()
    kind = rng.randrange(4)
    if kind == 0:
        return content[: 8 * rng.randrange(2)] + pickle.dumps(Bomb())
    if kind == 1:
        return rng.randbytes(rng.choice([0, 1, 7, 8, 9, 1000]))
    if kind == 2:
        torch.save({"weights": Bomb()}, stream)
    else:
        np.savez(stream, a=np.array([Bomb()], dtype=object))
    return stream.getvalue()


MUTATIONS = [flip, flip, change_size, change_size, lie_about_size, lie_about_arrays]
MUTATIONS += [swap_or_fill_arrays] * 2 + [lie_about_model] * 2
MUTATIONS += [spoil_text, other_kinds]


def bombs(content):
    """Files of megabytes that would become far more in memory."""
    header, _, body = split(content)
    model = json.loads(header["__metadata__"]["sklearn_sigmavae"])

    def with_model(**changes):
        text = json.dumps(model | changes, separators=(",", ":"))
        return join(header | {"__metadata__": {"sklearn_sigmavae": text}}, body)

    def with_arrays(arrays):
        return save(load(content) | arrays, metadata=header["__metadata__"])

    def with_layers(sizes):
        network = {"class": "MLP", "params": {"hidden_layer_sizes": sizes}}
        return with_model(network=network)

    lists, many = [[]] * 690_000, np.ones(20_000_000, np.uint8)
    columns = {f"history.{i}": np.ones(20_000, bool) for i in range(1000)}
    return {
        "names": with_arrays({"feature_names": np.zeros_like(many)}),
        "epochs": with_arrays({"history.x": many.astype(bool)}),
        "columns": with_arrays(columns),
        "weights": with_arrays({"module.x": many}),
        "lists": with_model(structure=lists),
        "parameters": with_model(params={"sigma": lists}),
        "long header": with_model(structure=lists * 20),
        "layers": with_layers([1] * 900_000),
        "wide layers": with_layers([10**5] * 20),
        "components": with_model(n_components=100),
        "many components": with_model(n_components=10**12),
    }


def peak():
    """Largest memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(path, n_files):
    torch.set_num_threads(1)
    rng, content, outcomes = random.Random(0), Path(path).read_bytes(), Counter()
    rows = np.zeros((3, SigmaVAE.load(path, device="cpu").n_features_in_))
    watching, events = False, []

    def hook(event, args):
        # The repr of an object without __init__ parses the signature of object's.
        is_signature = args[:1] == (b"def foo(self, *args, **kwargs): pass",)
        if watching and event.startswith(FORBIDDEN) and not is_signature:
            events.append((event, str(args)[:200]))

    sys.addaudithook(hook)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        target = Path(folder, "mutated.safetensors")
        for i in range(n_files + 1000):
            if i == 1000:
                before = peak()
            mutation = rng.choice(MUTATIONS)
            mutated = mutation(content, random.Random(i))
            target.write_bytes(mutated)
            # Modules that only errors need are imported by the first of them.
            watching = i >= 1000
            start = time.monotonic()
            signal.alarm(SECONDS)
            try:
                SigmaVAE.load(target, device="cpu").transform(rows)
                outcome = "loads"
            except ModelFileError:
                outcome = "ModelFileError"
            except BaseException as error:
                sys.exit(f"{mutation.__name__}, {i}: {type(error).__name__}: {error}")
            signal.alarm(0)
            watching = False
            slowest = max(slowest, time.monotonic() - start)
            if events or os.listdir(folder) != [target.name]:
                sys.exit(f"{mutation.__name__}, {i}: {events} {os.listdir(folder)}")
            if i >= 1000:
                outcomes[outcome] += 1
        grown = peak() - before
        # Made in a process of its own, whose memory does not count here.
        if not os.fork():
            for name, bomb in bombs(content).items():
                Path(folder, name).write_bytes(bomb)
            os._exit(0)
        os.wait()
        target.unlink()
        # From the smallest: each peak is that of one.
        for bomb in sorted(Path(folder).iterdir(), key=os.path.getsize):
            before_bomb = peak()
            with contextlib.suppress(ModelFileError):
                SigmaVAE.load(bomb, device="cpu")
            beyond = peak() - before_bomb - bomb.stat().st_size / 2**20
            print(f"{bomb.name}: {beyond:.0f} MB beyond the size of the file")
            grown = max(grown, beyond)
        os.chdir("/")
    if grown > MEGABYTES:
        sys.exit(f"Memory has grown by {grown:.0f} MB")
    print(
        f"{n_files} files, {outcomes['ModelFileError']} refused, "
        f"{outcomes['loads']} still a model; nothing executed, slowest "
        f"{1000 * slowest:.0f} ms, memory grown by {max(0, grown):.0f} MB"
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
