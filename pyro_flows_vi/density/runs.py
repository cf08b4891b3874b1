"""A density from beginning to end: fit it to a problem, evaluate it, and keep the record."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_flows_vi import flows
from pyro_flows_vi.density.flow_density import FlowDensity
from pyro_flows_vi.density.image_density import ImageDensity
from pyro_flows_vi.density.problems import Problem
from pyro_flows_vi.density.records import OBJECTIVES, SCHEMA, load_record, save_record
from pyro_flows_vi.density.reverse import ReverseSettings, fit_reverse, reverse_density
from pyro_flows_vi.density.settings import DensityFit, Evaluation
from pyro_flows_vi.infer.checkpoint import differences
from pyro_flows_vi.infer.records import check_folder, default_device, machine, versions
from pyro_flows_vi.infer.repeat import seeded

__all__ = ["evaluate_run", "load_run", "record_path", "train_run"]

PathLike = str | os.PathLike[str]

#: the level of the logit where none is asked for: that of the published table for MNIST
LOGIT_LEVELS = {"mnist": 1e-6}
#: draws of a density for KL(q‖p)
DRAWS = 20_000
LOWEST = torch.finfo(torch.float32).min
#: the share of the terms of a divergence, the largest ones, that ``..._most`` leaves out: a few points far out, at
#: which affine couplings make a density all but vanish, may decide the mean
FAR_SHARE = 1e-3


def record_path(folder: PathLike, data: str, row: str, seed: int = 0) -> Path:
    """Where the record of a run is kept; checkpoint and density are beside it, as ``.ckpt`` and ``.density``."""
    return Path(folder) / f"{data}-{row}-seed{seed}.json"


def train_run(
    problem: Problem,
    flow: str,
    folder: PathLike,
    *,
    name: str | None = None,
    num_transforms: int = 5,
    flow_options: Mapping[str, Any] | None = None,
    objective: str = "likelihood",
    images: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Path:
    """Fit a density to a problem and write its record.

    Args:
        problem: from :func:`pyro_flows_vi.density.problems.load_problem`.
        flow: a name of the registry.
        folder: for the record, the checkpoint and the density.
        name: of the row in the table; that of the flow by default.
        num_transforms: steps of the flow.
        flow_options: options of the flow.
        objective: ``"likelihood"``, or for a target of known density ``"reverse-kl"``: KL(q‖p), from draws of q alone.
        images: ``logit_level``, ``dequantisation`` and ``noise`` of :class:`~.image_density.ImageDensity`.
        settings: fields of :class:`~.settings.FitSettings`, or of :class:`~.reverse.ReverseSettings`.
        seed: of the fit.
        resume: go on from the checkpoint, if there is one.
        overwrite: start again, and replace an older run.
        device: the GPU, where there is one, unless given.
        progress: whether to show a progress bar.

    Returns:
        the path of the record.

    Raises:
        ValueError: for unknown names, options or settings, a ``folder`` that cannot be written to, or where an older
            run would be lost (see ``resume``).
        TrainingInterrupted: after Ctrl-C, when the state has been saved.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}: expected one of {', '.join(OBJECTIVES)}")
    where, asked = default_device(device), OBJECTIVES[objective].make(**(settings or {}))
    flows.describe(flow)
    row = (name or flow) + ("" if objective == "likelihood" else f"-{objective}")
    if not row.replace("-", "").replace("_", "").replace("+", "").isalnum():
        raise ValueError(f"expected a name of letters, digits, '-', '_' and '+', got {row!r}")
    path = record_path(folder, problem.name, row, seed)
    check_folder(path.parent)
    checkpoint, weights = path.with_suffix(".ckpt"), path.with_suffix(".density")
    if not resume and not overwrite:
        for old in (path, checkpoint):
            if old.exists():
                raise ValueError(
                    f"{old} holds an older run: resume it (resume), replace it (overwrite) or choose another folder"
                )
    recipe = {"flow": flow, "num_transforms": num_transforms, "options": dict(flow_options or {})}
    pixels = _pixels(problem, images or {})
    state: dict[str, Any] = {"checkpoint": checkpoint, "resume": resume, "seed": seed, "progress": progress}
    if isinstance(asked, ReverseSettings):
        density, training = _reverse(problem, recipe, asked, where, state)
    else:
        with seeded(seed):
            density = _make(problem, recipe, pixels).to(where)
        fit = density.fit(
            problem.train,
            validation=problem.validation,
            checkpoint_every=1 if len(problem.train) > 100_000 else 10,
            **state,
            **asked.as_dict(),
        )
        training = _training(fit)
    density.save(weights)
    default = OBJECTIVES[objective]().as_dict()
    record = {
        "schema": SCHEMA,
        "task": "density",
        "row": row,
        "seed": seed,
        "objective": objective,
        "flow": {**recipe, "options": density._recipe()["options"]},  # those that a density chooses too
        "images": pixels,
        "settings": asked.as_dict(),
        "overrides": {key: value for key, value in asked.as_dict().items() if value != default[key]},
        "data": problem.description,
        "versions": versions(),
        "machine": machine(where),
        "parameters": sum(p.numel() for p in density.parameters()),
        "training": training,
        "results": None,
    }
    save_record(path, record)
    return path


def load_run(path: PathLike, problem: Problem) -> FlowDensity:
    """The fitted density of a record.

    Raises:
        ValueError: for other data, and a density that is missing, damaged or another run's.
    """
    path = Path(path)
    record = load_record(path)
    changed = differences(record["data"], problem.description)
    if changed:
        raise ValueError(f"{path}: the record is of other data: {'; '.join(changed)}; load the same data")
    made = (ImageDensity if record["images"] is not None else FlowDensity).load(path.with_suffix(".density"))
    found = {key: made.recipe[key] for key in ("flow", "num_transforms")}
    changed = differences({key: record["flow"][key] for key in found}, found)
    if changed:
        raise ValueError(f"{path.with_suffix('.density')}: the density is of another run: {'; '.join(changed)}")
    return made


def evaluate_run(
    path: PathLike,
    problem: Problem,
    *,
    num_samples: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Score the test rows of a problem with the density of a record, and add the result to it.

    Args:
        path: the record.
        problem: what it was fitted to.
        num_samples: draws of the noise for each image.
        seed: of these, and of the draws of KL(q‖p).
        device: the GPU, where there is one, unless given.

    Returns:
        the record, with ``results``.

    Raises:
        ValueError: as :func:`load_run`.
    """
    density = load_run(path, problem).to(default_device(device))
    record, began = load_record(path), time.perf_counter()
    if isinstance(density, ImageDensity):
        results = _images(density, problem.test, num_samples, seed)
    else:
        if problem.target is not None:
            density = density.double()  # in which not even a point far out, at which affine scales explode, overflows
        found = density.evaluate(problem.test)
        results = _pair("nats", found)
        if problem.target is not None:
            results |= _divergences(density, problem, found.values, seed)
    record["results"] = {
        **results,
        "num_rows": len(problem.test),
        "seconds": time.perf_counter() - began,
        "versions": versions(),
    }
    save_record(path, record)
    return record


def _make(problem: Problem, recipe: dict[str, Any], pixels: dict[str, Any] | None) -> FlowDensity:
    options = {"num_transforms": recipe["num_transforms"], **recipe["options"]}
    if pixels is None:
        return FlowDensity(recipe["flow"], problem.dim, **options)
    return ImageDensity(recipe["flow"], problem.shape, **pixels, **options)


def _reverse(
    problem: Problem, recipe: dict[str, Any], asked: ReverseSettings, where: torch.device, state: dict[str, Any]
) -> tuple[FlowDensity, dict[str, Any]]:
    """A density fitted by KL(q‖p), and what a record says of that."""
    if problem.target is None or problem.target.log_prob is None:
        raise ValueError(
            f"reverse-kl needs a known density, and {problem.name!r} has none; try u1, u2, u3, u4 or moons"
        )
    with seeded(state["seed"]):
        density = reverse_density(
            recipe["flow"],
            problem.dim,
            num_transforms=recipe["num_transforms"],
            init_scale=asked.init_scale,
            **recipe["options"],
        ).to(where)
    result = fit_reverse(density, problem.target.log_prob, **state, **asked.as_dict())
    return density, {
        "steps": result.steps,
        "elbo": result.elbo,
        "elbo_se": result.elbo_se,
        "kept": result.kept,
        "stop_reason": result.stop_reason,
        "skipped_steps": result.skipped_steps,
        "seconds": result.seconds,
        "curves": result.history,
    }


def _pixels(problem: Problem, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    known = {"logit_level": LOGIT_LEVELS.get(problem.name, 0.05), "dequantisation": "uniform", "noise": None}
    if problem.kind != "images":
        if asked:
            raise ValueError(f"{problem.name!r} are no images, so {', '.join(asked)} cannot be set")
        return None
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)} of images: expected one of {', '.join(known)}")
    return {"levels": problem.levels, **known, **asked}


def _images(density: ImageDensity, test: Tensor, num_samples: int, seed: int) -> dict[str, Any]:
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed}
    found: dict[str, Evaluation | None] = {"nats_of_logits": None, **density.measures(test, **options)}
    return {key: value for name in found for key, value in _pair(name, found[name]).items()} | options


@torch.no_grad()
def _divergences(density: FlowDensity, problem: Problem, log_q: Tensor, seed: int) -> dict[str, Any]:
    """KL(p‖q) on the test rows and KL(q‖p) on draws of q; ``None`` where p is unknown, or 0 at a draw."""
    assert problem.target is not None
    log_prob = problem.target.log_prob
    if log_prob is None:
        return {f"{name}{tail}": None for name in ("kl_forward", "kl_reverse") for tail in ("", "_se", "_most")}
    log_p = torch.cat([log_prob(part.double()) for part in problem.test.split(1000)])
    with seeded(seed):
        draws, ours = density.rsample_and_log_prob(DRAWS)
    theirs = torch.cat([log_prob(part.double().cpu()) for part in draws.split(1000)])
    reverse = ours.double().cpu() - theirs
    known = bool(reverse.isfinite().all())
    found: dict[str, Any] = {}
    for name, terms in (("kl_forward", log_p - log_q), ("kl_reverse", reverse if known else None)):
        mean = None if terms is None else Evaluation.of(terms)
        found |= _pair(name, mean)
        found[f"{name}_most"] = None if terms is None else -Evaluation.of(-terms).without_lowest(FAR_SHARE)
    return found


def _pair(name: str, found: Evaluation | None) -> dict[str, float | None]:
    mean, se = (None, None) if found is None else (found.mean, found.se)
    return {name: mean, f"{name}_se": se}


def _training(fit: DensityFit) -> dict[str, Any]:
    return {
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "best_validation": fit.best,
        "stop_reason": fit.stop_reason,
        "skipped_steps": fit.skipped_steps,
        "seconds": fit.seconds,
        # JSON has no infinity: a likelihood of an epoch that overflowed is the lowest number that single precision has
        "curves": {name: [v if v > LOWEST else LOWEST for v in values] for name, values in fit.curves.items()},
    }
