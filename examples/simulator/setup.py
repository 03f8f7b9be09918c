"""Build with ``python setup.py build_ext --inplace``; needs Cython and kvmattr, no numpy headers."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import kvmattr

setup(
    name="simulator",
    ext_modules=cythonize(
        [
            Extension(
                "simulator",
                ["simulator.pyx"],
                include_dirs=[kvmattr.get_include()],
                extra_compile_args=["-O3"],
            )
        ]
    ),
)
