"""Generate the Python stubs of every file below `protos/` into `common/`, or check that they are up to date.

    python scripts/protos.py                        # write the stubs
    python scripts/protos.py --check                # fail when the stubs in the tree are not what would be written
    python scripts/protos.py --descriptor-set FILE  # one descriptor set with imports and comments, for buf

The contract imports `google/longrunning/operations.proto`. The Python package that ships it names the file
`operations_proto.proto`, so it is copied under its real name into a directory of its own before protoc runs.
"""

import argparse
import filecmp
import importlib.resources
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import google.longrunning
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "common"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def sources() -> list[str]:
    """Every proto file of ours, by the path under which others import it."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def stage_includes(directory: Path) -> list[Path]:
    """Where protoc finds what ours import: protobuf's own types, google.api and google.rpc, google.longrunning."""
    longrunning = Path(next(iter(google.longrunning.__path__)))
    staged = directory / "google" / "longrunning" / "operations.proto"
    staged.parent.mkdir(parents=True)
    shutil.copyfile(longrunning / "operations_proto.proto", staged)
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return [PROTOS, directory, longrunning.parent.parent, Path(str(well_known))]


def run(arguments: list[str], includes: list[Path]) -> None:
    """Run protoc on all sources; exits with its status when it fails."""
    command = ["protoc", *(f"-I{path}" for path in includes), *arguments, *sources()]
    status = protoc.main(command)
    if status != 0:
        sys.exit(f"protoc failed with status {status}")


def generate(output: Path, includes: list[Path]) -> None:
    """Write all stubs below `output`. A file without services gets no `_grpc` stubs, which would be empty."""
    plugins = Path(sysconfig.get_path("scripts"))
    arguments = [
        f"--python_out={output}",
        f"--grpc_python_out={output}",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{output}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out=quiet:{output}",
    ]
    run(arguments, includes)
    for source in sources():
        if "\nservice " not in (PROTOS / source).read_text():
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):
                (output / source.removesuffix(".proto")).with_name(Path(source).stem + suffix).unlink(missing_ok=True)


def stubs_in(directory: Path) -> Iterator[str]:
    """Every generated file below `directory`, by its path there."""
    for path in directory.rglob("*_pb2*"):
        if path.name.endswith(SUFFIXES):
            yield path.relative_to(directory).as_posix()


def write_packages(output: Path) -> None:
    """Make an importable package of each directory that holds stubs."""
    for stub in stubs_in(output):
        package = (output / stub).parent
        while package != output:
            (package / "__init__.py").touch()
            package = package.parent


def differences(fresh: Path) -> list[str]:
    """What the tree's stubs lack, have too much, or have otherwise than `fresh`, in words."""
    wanted, present = set(stubs_in(fresh)), set(stubs_in(STUBS))
    found = [f"{name} is missing" for name in sorted(wanted - present)]
    found += [f"{name} belongs to no proto file" for name in sorted(present - wanted)]
    same = sorted(wanted & present)
    found += [f"{name} is out of date" for name in same if not filecmp.cmp(fresh / name, STUBS / name, shallow=False)]
    return found


def main() -> None:
    """Do what the arguments ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the stubs are out of date")
    parser.add_argument("--descriptor-set", type=Path, metavar="FILE", help="write a descriptor set instead of stubs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        includes = stage_includes(Path(temporary) / "include")
        fresh = Path(temporary) / "stubs"
        fresh.mkdir()
        if options.descriptor_set is not None:
            flags = [f"--descriptor_set_out={options.descriptor_set}", "--include_imports", "--include_source_info"]
            run(flags, includes)
            return
        generate(fresh, includes)
        if options.check:
            found = differences(fresh)
            if found:
                sys.exit("\n".join([*found, "run: python scripts/protos.py"]))
            return
        install(fresh)


def install(fresh: Path) -> None:
    """Bring the stubs in the tree to what was generated, and remove those of files that are gone."""
    for name in set(stubs_in(STUBS)) - set(stubs_in(fresh)):
        (STUBS / name).unlink()
    for name in stubs_in(fresh):
        target = STUBS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fresh / name, target)
    write_packages(STUBS)


if __name__ == "__main__":
    main()
