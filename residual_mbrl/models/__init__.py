"""MJCF models that ship with the package."""

from importlib import resources
from pathlib import Path

ARM = Path(str(resources.files(__name__))) / "arm.xml"
"""A 7-joint arm of our own design with a payload at its flange."""

CUBE = ARM.with_name("cube.xml")
"""A cube of 105 mm and the table that it is tossed on."""
