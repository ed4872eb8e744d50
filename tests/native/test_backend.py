"""The library's start, its devices and how it was built, and what importing it does not bring along."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og
from offgrid_llama._capi import lib, lib_dir
from offgrid_llama.native import backend

if TYPE_CHECKING:
    from helpers.children import RunChild

HEAVY = ["numpy", "jinja2", "llguidance", "rich", "typer", "huggingface_hub", "fastapi"]


def test_devices() -> None:
    """There is a CPU with memory; every device has a name, a kind and a backend."""
    devices = og.devices()
    assert any(device.type == "CPU" for device in devices)
    for device in devices:
        assert device.name
        assert device.description
        assert device.backend
        assert device.type in ("CPU", "GPU", "IGPU", "ACCEL", "META")
        assert 0 <= device.memory_free <= device.memory_total
    (cpu,) = [device for device in devices if device.type == "CPU"]
    assert cpu.memory_total > 2**20
    assert backend.has_gpu() == any(device.type in ("GPU", "IGPU") for device in devices)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cpu.name = "other"  # type: ignore[misc]


def test_features() -> None:
    """Each backend tells the features that it was compiled with, by name and value."""
    features = backend.features()
    assert set(features) >= {device.backend for device in og.devices()}
    assert features["CPU"]
    assert all(name for named in features.values() for name in named)


def test_features_are_those_of_the_processor() -> None:
    """On Linux the vector units that the CPU backend uses are ones that the processor has."""
    info = Path("/proc/cpuinfo")
    if not info.exists() or "\nflags" not in info.read_text(encoding="utf-8"):
        pytest.skip("no /proc/cpuinfo with flags")
    flags = set(info.read_text(encoding="utf-8").lower().replace("_", "").split())
    for name in ("AVX", "AVX2", "FMA", "F16C", "AVX512"):
        if backend.features()["CPU"].get(name) == "1":
            assert {"AVX512": "avx512f"}.get(name, name.lower()) in flags


def test_build_info(llama_cpp_dir: Path) -> None:
    """The build tells llama.cpp's commit, which is the submodule's, the compiler and the options."""
    info = og.build_info()
    assert info.llama_cpp
    assert info.compiler.split()[0] in ("GNU", "Clang", "AppleClang", "MSVC")
    assert any(flag.startswith("CMAKE_BUILD_TYPE=") for flag in info.flags)
    assert all("=" in flag for flag in info.flags)
    assert info.commit == "" or len(info.commit) == 40
    git = subprocess.run(["git", "-C", llama_cpp_dir, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if info.commit and git.returncode == 0 and (llama_cpp_dir / ".git").exists():
        assert info.commit == git.stdout.strip()
    assert og.build_info() == info


def test_default_threads() -> None:
    """The default is at least one thread, and never more than the processors that this process may use."""
    limit = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert limit is not None
    assert 1 <= backend.default_threads() <= limit


def test_default_threads_counts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hardware threads of one core count as one; processors that tell nothing count by themselves."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity on this system")
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 2: "2"}

    def read_text(self: Path, encoding: str | None = None) -> str:
        number = int(self.parts[5].removeprefix("cpu"))
        if number not in siblings:
            raise FileNotFoundError(self)
        return siblings[number]

    monkeypatch.setattr(Path, "read_text", read_text)
    for cpus, cores in [({0, 4}, 1), ({0, 1, 4}, 2), ({0, 1, 2}, 3), ({7, 8}, 2), (set(), 1)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cpus=cpus: cpus)
        assert backend.default_threads() == cores


def test_the_libraries_lie_beside_the_extension() -> None:
    """The folder has libllama and libggml: the package's own."""
    names = [path.name for path in lib_dir().iterdir()]
    for library in ("llama", "ggml-base"):
        assert any(library in name for name in names)


def test_start_in_many_threads(run_child: RunChild) -> None:
    """Threads that start the library at once all find it started; a second start does nothing."""
    child = run_child(
        """
        import threading
        import offgrid_llama as og
        from offgrid_llama.native import backend
        barrier = threading.Barrier(8)
        found = []
        def work():
            barrier.wait()
            found.append(len(og.devices()))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        backend.start()
        assert len(found) == 8 and len(set(found)) == 1 and found[0] >= 1
        print("done")
        """
    )
    assert (child.returncode, child.stdout.strip()) == (0, "done"), child.stderr


def test_no_debugger_is_started(run_child: RunChild) -> None:
    """Starting the library asks ggml not to start a debugger on a crash, unless the user decided."""
    source = """
        import os
        os.environ.pop("GGML_NO_BACKTRACE", None)
        import sys
        if sys.argv[1]:
            os.environ["GGML_NO_BACKTRACE"] = sys.argv[1]
        import offgrid_llama as og
        og.devices()
        print(os.environ["GGML_NO_BACKTRACE"])
        """
    for value, expected in [("", "1"), ("0", "0")]:
        assert run_child(source, value).stdout.strip() == expected


def test_importing_brings_nothing_heavy(run_child: RunChild) -> None:
    """Importing the library loads none of its optional packages, and NumPy only with the first logits."""
    child = run_child(
        """
        import sys
        import offgrid_llama
        print(*(name for name in sys.argv[1:] if name in sys.modules))
        """,
        *HEAVY,
    )
    assert (child.returncode, child.stdout.split()) == (0, []), child.stderr


def test_numpy_comes_with_the_first_logits(smollm2_path: Path, run_child: RunChild) -> None:
    """A whole generation needs no NumPy; asking for logits brings it."""
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model:
            og.generate(model, "Hello", max_tokens=2, n_threads=1).text
            assert "numpy" not in sys.modules
            with og.Context(model, n_ctx=64, n_threads=1) as context:
                batch = og.Batch(1)
                batch.add(5, 0, [0], logits=True)
                context.decode(batch)
                context.argmax(-1)
                assert "numpy" not in sys.modules
                context.logits(-1)
                assert "numpy" in sys.modules
        print("done")
        """,
        smollm2_path,
    )
    assert (child.returncode, child.stdout.strip()) == (0, "done"), child.stderr


def test_every_public_name_is_there() -> None:
    """Every name of __all__ is an attribute, and no other name is one by accident."""
    for name in og.__all__:
        assert getattr(og, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = og.nonsense
    assert lib.llama_max_devices() >= 1
    assert threading.active_count() >= 1


def test_what_is_supported() -> None:
    """Linux maps and locks memory; RPC is there if it was built; llama.cpp's line names the CPU backend."""
    found = backend.supports()
    assert found <= {"mmap", "mlock", "rpc"}
    assert ("rpc" in found) is ("GGML_RPC=ON" in og.build_info().flags)
    if os.uname().sysname == "Linux":
        assert found >= {"mmap", "mlock"}
    assert "CPU : " in backend.system_info()
