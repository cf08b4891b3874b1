"""Images (MNIST, its static binarisation, Frey faces, small digits that need no file) and tables of numbers.

>>> from pyro_flows_vi import datasets
>>> digits = datasets.load("digits")
>>> digits.describe()["train"], digits.image_shape, digits.binarisation
(1297, (8, 8), 'dynamic')
"""

from pyro_flows_vi.datasets.catalogue import BINARISATION_SEED, SPLIT_SEED, load, names
from pyro_flows_vi.datasets.dataset import Dataset
from pyro_flows_vi.datasets.tabular import Table, load_table, table_names

__all__ = ["BINARISATION_SEED", "SPLIT_SEED", "Dataset", "Table", "load", "load_table", "names", "table_names"]
