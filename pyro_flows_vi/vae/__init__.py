"""Variational autoencoders with flow posteriors: model, training, evaluation, records and tables."""

from pyro_flows_vi.vae.evaluation import NLLEstimate, nll
from pyro_flows_vi.vae.finish import finish_row
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from pyro_flows_vi.vae.model import VAE, ELBOTerms
from pyro_flows_vi.vae.plot import plot_curves
from pyro_flows_vi.vae.posterior import Encoding, FlowPosterior
from pyro_flows_vi.vae.protocols import PROTOCOLS, Protocol, protocol
from pyro_flows_vi.vae.published import PUBLISHED, Published, published
from pyro_flows_vi.vae.records import load_record, load_records, save_record
from pyro_flows_vi.vae.row_run import record_path
from pyro_flows_vi.vae.rows import ROWS, Row, build_vae, row
from pyro_flows_vi.vae.runs import evaluate_row, load_row, train_row, train_row_seeds
from pyro_flows_vi.vae.table import render_table
from pyro_flows_vi.vae.training import SeedsFailed, TrainingData, TrainingInterrupted, load_weights, train, train_seeds

__all__ = [
    "PROTOCOLS",
    "PUBLISHED",
    "ROWS",
    "VAE",
    "Bernoulli",
    "Categorical",
    "ELBOTerms",
    "Encoding",
    "FlowPosterior",
    "Gaussian",
    "History",
    "Likelihood",
    "NLLEstimate",
    "Protocol",
    "Published",
    "Row",
    "SeedsFailed",
    "TrainingData",
    "TrainingInterrupted",
    "build_vae",
    "evaluate_row",
    "finish_row",
    "load_record",
    "load_records",
    "load_row",
    "load_weights",
    "nll",
    "plot_curves",
    "protocol",
    "published",
    "record_path",
    "render_table",
    "row",
    "save_record",
    "train",
    "train_row",
    "train_row_seeds",
    "train_seeds",
]
