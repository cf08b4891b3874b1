"""Density estimation: flows fitted to data by maximum likelihood, images by their dequantised pixels."""

from pyro_flows_vi.density.cdf_flow import LogitBeta, cdf_flow
from pyro_flows_vi.density.dequantisation import (
    Dequantisation,
    UniformDequantisation,
    VariationalDequantisation,
    dequantise,
)
from pyro_flows_vi.density.flow_density import FlowDensity
from pyro_flows_vi.density.image_density import ImageDensity
from pyro_flows_vi.density.plot import plot_density
from pyro_flows_vi.density.problems import Problem, load_problem, problem_names
from pyro_flows_vi.density.published import PUBLISHED, Published, published
from pyro_flows_vi.density.records import load_record, load_records, save_record
from pyro_flows_vi.density.reverse import ReverseSettings, fit_reverse, reverse_density
from pyro_flows_vi.density.runs import evaluate_run, load_run, record_path, train_run
from pyro_flows_vi.density.settings import DensityFit, Evaluation, FitSettings
from pyro_flows_vi.density.table import render_tables
from pyro_flows_vi.density.targets import ENERGIES, TARGETS, Target, target

__all__ = [
    "ENERGIES",
    "PUBLISHED",
    "TARGETS",
    "DensityFit",
    "Dequantisation",
    "Evaluation",
    "FitSettings",
    "FlowDensity",
    "ImageDensity",
    "LogitBeta",
    "Problem",
    "Published",
    "ReverseSettings",
    "Target",
    "UniformDequantisation",
    "VariationalDequantisation",
    "cdf_flow",
    "dequantise",
    "evaluate_run",
    "fit_reverse",
    "load_problem",
    "load_record",
    "load_records",
    "load_run",
    "plot_density",
    "problem_names",
    "published",
    "record_path",
    "render_tables",
    "reverse_density",
    "save_record",
    "target",
    "train_run",
]
