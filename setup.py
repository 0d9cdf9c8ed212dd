"""Builds the CPU kernel with the package; where that fails, the package installs without it and uses foreach."""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Contraction is off so that every processor gives the same bits, whether or not it has fused multiply-add.
FLAGS = ["-O3", "-g0", "-std=c11", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


class BuildLibrary(build_ext):
    """A plain shared library, which knows nothing of Python: one file name for all versions."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ext.export_symbols


class PlatformWheel(bdist_wheel):
    """One wheel for all Pythons of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            "hatam.fused._cpu",
            ["src/hatam/fused/cpu.c"],
            depends=[f"src/hatam/fused/cpu{part}.h" for part in ("", "_bfloat16", "_loops", "_chunk")],
            extra_compile_args=FLAGS,
            libraries=["m"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
