"""Image data sets: MNIST, its static binarisation, Frey faces, and small digits that need no file.

>>> from pyro_flows_vi import datasets
>>> digits = datasets.load("digits")
>>> digits.describe()["train"], digits.image_shape, digits.binarisation
(1297, (8, 8), 'dynamic')
"""

from pyro_flows_vi.datasets.catalogue import BINARISATION_SEED, SPLIT_SEED, load, names
from pyro_flows_vi.datasets.dataset import Dataset

__all__ = ["BINARISATION_SEED", "SPLIT_SEED", "Dataset", "load", "names"]
