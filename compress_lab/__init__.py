__version__ = "0.1.0"

from compress_lab.api import __dir__, __getattr__
