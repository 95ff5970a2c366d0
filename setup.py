"""Build one package, `bayesian_cnn`, of the folders and scripts that a checkout has at its top.

Each file is copied, and its imports of the project's own modules get the package's name; what messages and help texts
say of scripts is said of the commands that an installed package has.
"""

import re
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = find_packages(exclude=["bayesian_cnn", "benchmarks", "examples", "experiments", "tests"])
SCRIPTS = [path.stem for path in Path().glob("*.py") if path.name != "setup.py"]
MODULES = "|".join([*(room for room in ROOMS if "." not in room), *SCRIPTS])
REPLACEMENTS = {
    rf"^(\s*)from ({MODULES})\b": r"\1from bayesian_cnn.\2",
    rf"^(\s*)import ({MODULES})\b": r"\1from bayesian_cnn import \2",
    r"python -m inference\.": "bayesian-cnn ",
    r"\bmain_bayesian\.py": "bayesian-cnn train",
    r"\bmain_frequentist\.py": "bayesian-cnn train --frequentist",
    r"\buncertainty_estimation\.py": "bayesian-cnn uncertainty",
}


class BuildPackage(build_py):  # type: ignore[misc]
    """Copies the scripts too, and rewrites what it has copied."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """The modules of a package: (package, name, path)."""
        scripts = [(package, name, f"{name}.py") for name in SCRIPTS if package == "bayesian_cnn"]
        return super().find_package_modules(package, package_dir) + scripts

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        """Copy a file into the build, and rewrite the copy."""
        path, copied = super().build_module(module, module_file, package)
        text = Path(path).read_text(encoding="utf-8")
        for pattern, replacement in REPLACEMENTS.items():
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        Path(path).write_text(text, encoding="utf-8")
        return path, copied

    def run(self) -> None:
        """Copy the files of all packages."""
        if self.editable_mode:
            raise SystemExit("an editable install is not possible: in a checkout, the scripts run from its root")
        super().run()


with tempfile.TemporaryDirectory() as folder:  # nothing stays in the checkout
    setup(
        packages=["bayesian_cnn", *(f"bayesian_cnn.{room}" for room in ROOMS)],
        package_dir={f"bayesian_cnn.{room}": room.replace(".", "/") for room in ROOMS},
        package_data={"bayesian_cnn": ["py.typed"], "bayesian_cnn.inference": ["networks/*"]},
        cmdclass={"build_py": BuildPackage},
        options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}},
    )
