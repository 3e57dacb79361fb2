"""Packages of the wheel; everything else is declared in setup.cfg.

resources/ and weights/ lie beside the code and go inside the package; weights/research never leaves the repository.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["napari_fmseg*"]), "napari_fmseg.resources", "napari_fmseg.weights"])
