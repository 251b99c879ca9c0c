"""What pyproject.toml cannot say: `benchmarks` is part of a checkout (editable installation) and not of the wheel."""

from setuptools import setup
from setuptools.command.build_py import build_py


class WithoutBenchmarks(build_py):
    """Build of the packages, those of `benchmarks` left out unless the installation is editable."""

    def run(self) -> None:
        if not self.editable_mode:
            self.packages = [name for name in self.packages if name.partition(".")[0] != "benchmarks"]
        super().run()


setup(cmdclass={"build_py": WithoutBenchmarks})
