"""What pyproject.toml cannot say: search_spaces/ is also a part of the package, in a wheel."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["autoaug_ray*"]), "autoaug_ray.search_spaces"],
    package_dir={"autoaug_ray.search_spaces": "search_spaces"},
)
