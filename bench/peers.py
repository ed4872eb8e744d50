"""Build the peers that the benchmarks compare with, and find them again: one command, `python bench/peers.py`.

Into `build/peers` come llama.cpp's own tools, built from the submodule with the options of our build, and the package
`llama_cpp` out of llama-cpp-python's sdist, unpacked and not compiled. None of them runs its own llama.cpp: `same/`
holds symbolic links from every name that they ask for to the libraries in the installed offgrid_llama, so that all
sides run the same files (`Peers.environment`). Our libraries carry no version (`libllama.so`), the tools want one
(`libllama.so.0`): both names lead to one inode, which the dynamic linker loads once. `harness.libraries` proves it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "vendor"))

from fetch_llama_cpp import SDIST, download, fetch  # noqa: E402

TARGETS = ["llama-bench", "llama-batched-bench", "llama-completion", "llama-quantize", "llama-tokenize", "mtmd"]
CMAKE_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",
    # RUNPATH, not RPATH: LD_LIBRARY_PATH comes before it.
    "CMAKE_EXE_LINKER_FLAGS": "-Wl,--enable-new-dtags",
    "CMAKE_SHARED_LINKER_FLAGS": "-Wl,--enable-new-dtags",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


@dataclass(frozen=True)
class Peers:
    """Where the peers lie, and the environment in which they run on our libraries."""

    folder: Path

    @property
    def bin(self) -> Path:
        """The folder of llama.cpp's tools."""
        return self.folder / "bin"

    @property
    def llama_cpp_python(self) -> Path:
        """The folder that holds the `llama_cpp` package."""
        return self.folder / "llama-cpp-python"

    @property
    def same(self) -> Path:
        """The folder of links to our libraries."""
        return self.folder / "same"

    def environment(self) -> dict[str, str]:
        """Return the environment for every side: same libraries, nothing else changed."""
        self.link()
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.same),
            "LLAMA_CPP_LIB_PATH": str(self.same),
            "MTMD_CPP_LIB": str(self.bin),
            "PYTHONPATH": os.pathsep.join([str(self.llama_cpp_python), str(Path(__file__).parent)]),
        }

    def link(self) -> None:
        """Link each of our libraries under its own name and under the versioned one that the tools ask for."""
        from offgrid_llama import _capi

        self.same.mkdir(parents=True, exist_ok=True)
        for old in self.same.iterdir():
            old.unlink()
        for library in _capi.lib_dir().glob("lib*.so"):
            (self.same / library.name).symlink_to(library)
            (self.same / f"{library.name}.0").symlink_to(library)

    def check(self) -> None:
        """End with the cure if something is missing."""
        for path in (self.bin / "llama-bench", self.llama_cpp_python / "llama_cpp"):
            if not path.exists():
                sys.exit(f"{path} is missing: run `python bench/peers.py` first")


def build(peers: Peers, targets: list[str], jobs: int) -> None:
    """Configure and build the tools; a second time compiles only what changed."""
    print(fetch())
    options = [f"-D{name}={value}" for name, value in CMAKE_OPTIONS.items()]
    subprocess.run(["cmake", "-S", ROOT / "vendor/llama.cpp", "-B", peers.folder, "-G", "Ninja", *options], check=True)
    subprocess.run(["cmake", "--build", peers.folder, "-j", str(jobs), "--target", *targets], check=True)


def unpack(peers: Peers, sdist: Path) -> None:
    """Unpack the `llama_cpp` package, pure Python over ctypes, out of llama-cpp-python's sdist."""
    with tarfile.open(sdist) as archive:
        members = []
        for member in archive.getmembers():
            path = member.name.partition("/")[2]
            if path.startswith("llama_cpp/"):
                member.name = path
                members.append(member)
        archive.extractall(peers.llama_cpp_python, members=members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build/peers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--server", action="store_true", help="build llama-server and llama-tts too")
    parser.add_argument("--sdist", type=Path, help=f"a local file of {SDIST}; without it pip brings one")
    args = parser.parse_args()

    peers = Peers(args.folder.resolve())
    build(peers, [*TARGETS, *(["llama-server", "llama-tts"] if args.server else [])], args.jobs)
    if args.sdist:
        unpack(peers, args.sdist)
    elif not peers.llama_cpp_python.exists():
        with tempfile.TemporaryDirectory() as folder:
            unpack(peers, download(Path(folder)))
    peers.check()
    print(f"tools: {peers.bin}\nllama-cpp-python: {peers.llama_cpp_python}")


if __name__ == "__main__":
    main()
