from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
words = lambda key: settings.get(key, "").split()
point = lambda entry: entry if "=" in entry else f"{entry.rpartition('.')[2]}={entry}"  # a module, or name=module
groups = ("methods", "probes", "formats", "backends", "texts", "perturbations", "readers", "executors")
extras = {key.removesuffix("_requirements"): words(key) for key in settings if key.endswith("_requirements")}
setup(
    name=settings["lib_name"], version=settings["version"], description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=settings["author"], author_email=settings["author_email"], url=settings["git_url"], license="Apache-2.0",
    keywords=settings["keywords"], python_requires=f">={settings['min_python']}", packages=find_packages(include=["compress_lab*"]),
    package_data={
        "compress_lab": ["data/*.yml", "data/*.css", "data/new/**/*"],
        "compress_lab.evaluate": ["tasks/*.yaml", "licences.yaml"],
        "compress_lab.deploy": ["templates/*"],
        "compress_lab.report": ["templates/*", "data/*.yaml"],
    },
    install_requires=words("requirements"), extras_require={**extras, "dev": sum((packages for name, packages in extras.items() if name != "ray"), [])},
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": ["compress_lab=compress_lab._modidx:d"],
        **{f"compress_lab.{group}": [point(entry) for entry in words(group)] for group in groups},
    },
)
