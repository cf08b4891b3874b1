"""Data parallel: the processes that ``torchrun`` started share every batch, and go on from the same sums.

Gradients are averaged by one all-reduce of one flat vector per step, and not by ``DistributedDataParallel``: that hooks
into the ``forward`` of one module, while flows and guides are called by other methods, several times in a step, and
some parameters in some steps only. The vector also carries what else a step has to agree on: the values of the loss,
which parameters have a gradient, and whether some process was asked to stop. So no process leaves a loop that another
one stays in.

Base draws come from one stream. All processes hold it in the same state, draw the noise of the whole batch, and keep
their rows: the total batch is the one that a single process would have drawn, a result differs from that process's
by rounding only, and a checkpoint fits any number of processes. All other randomness within a step, such as that of an
estimated log-determinant, comes from a stream of each process's own, seeded by the state of the common one and the
rank.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_flows_vi.infer.interruption import Interruption

__all__ = ["Ranks", "Share", "digest", "generator_states", "join", "launched", "set_generator_states"]

_T = TypeVar("_T")


class Ranks:
    """The processes that share a run; one alone is rank 0 of 1, and everything here then costs nothing.

    Args:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._agreement = _Agreement()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return self.rank == 0

    def interruption(self) -> Interruption:
        """A request to stop that all processes see after the same :meth:`Share.average`, whichever was asked."""
        return self._agreement if self.size > 1 else Interruption()

    def share(self, total: int, group: int = 1) -> Share:
        """This process's rows of a batch of ``total``, in whole groups of ``group``."""
        return Share(self, total) if self.size == 1 else _Part(self, total, group)

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over the processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_first(self, function: Callable[[], _T]) -> _T:
        """What ``function`` gives in the first process, or its ValueError or OSError, in all of them."""
        if self.size == 1:
            return function()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = function()
            except (ValueError, OSError) as error:
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        result: _T = box[0]
        return result

    def after_first(self, function: Callable[[], _T]) -> _T:
        """What ``function`` gives, called in the first process before the others: a download, say."""
        found: list[_T] = []
        self.from_first(lambda: found.append(function()))
        return found[0] if found else function()

    @torch.no_grad()
    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have in the first process."""
        if self.size == 1:
            return
        own = list(tensors)
        for tensor, value in zip(own, self.from_first(lambda: [t.detach().cpu() for t in own]), strict=True):
            if not self.first:
                tensor.copy_(value)

    def align_random(self) -> None:
        """Give torch's generators the states that they have in the first process."""
        if self.size > 1:
            set_generator_states(self.from_first(generator_states))

    def require_same(self, asked: Mapping[str, str]) -> None:
        """Raise a ValueError in all processes unless they were all asked for the same."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, dict(asked))
        for rank, other in enumerate(found):
            changed = [name for name in found[0] if other.get(name) != found[0][name]]
            if changed:
                raise ValueError(
                    f"expected the same call in every process, each of which takes its share of every batch, but "
                    f"{', '.join(changed)} of rank {rank} differ from those of rank 0: give all of them the same data, "
                    "settings and seed, or say parallel=False for runs that have nothing to do with each other"
                )

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()


class _Agreement(Interruption):
    """An interruption that counts as requested when all processes know of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = False

    def _request(self, number: int, frame: object) -> None:
        agreed = self.requested
        super()._request(number, frame)
        self.asked, self.requested = True, agreed


class Share:
    """The rows of a batch that a process takes; here of one that is alone, and takes them all.

    Entered by ``with`` around everything that draws, and that makes gradients.

    Attributes:
        ranks: the processes.
        total: rows of the batch.
        rows: those of this process, at least one.
        count: how many.
        weight: the part of the whole batch, zero for a process that is left without and takes a row for form's sake.
    """

    def __init__(self, ranks: Ranks, total: int) -> None:
        self.ranks, self.total = ranks, total
        self.rows, self.count, self.weight = slice(0, total), total, 1.0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def average(self, parameters: Sequence[Tensor], *values: Tensor) -> tuple[Tensor, ...]:
        """Values of the whole batch from ``values``, means over the rows; gradients are treated likewise, in place."""
        return values


class _Part(Share):
    """The share of one process of several."""

    def __init__(self, ranks: Ranks, total: int, group: int) -> None:
        super().__init__(ranks, max(1, total // group) * group)
        groups = self.total // group
        start, stop = (-(-groups * place // ranks.size) for place in (ranks.rank, ranks.rank + 1))  # rounded up
        self.weight = (stop - start) / groups
        start = min(start, groups - 1)
        self.rows = slice(group * start, group * max(stop, start + 1))
        self.count = self.rows.stop - self.rows.start

    def __enter__(self) -> Share:
        states = generator_states()
        self._streams = {name: torch.Generator(name) for name in states}
        for name, stream in self._streams.items():
            stream.set_state(states[name])
        common = b"".join(state.numpy().tobytes() for state in states.values())
        own = hashlib.blake2b(common, digest_size=8, salt=self.ranks.rank.to_bytes(8, "big"))
        torch.manual_seed(int.from_bytes(own.digest(), "big") >> 1)
        self._draws = _CommonDraws(self, self._streams)
        self._draws.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._draws.__exit__(*error)
        if not self._draws.used:  # or the next step's own streams would be those of this one
            torch.rand((), generator=self._streams["cpu"])
        set_generator_states({name: stream.get_state() for name, stream in self._streams.items()})

    def average(self, parameters: Sequence[Tensor], *values: Tensor) -> tuple[Tensor, ...]:
        device = parameters[0].device
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        numbers = [value.detach().reshape(1) for value in values]
        means = torch.cat([part.reshape(-1).to(device) for part in (*gradients, *numbers)])
        means = means * self.weight if self.weight else torch.zeros_like(means)  # of its row, even NaN counts nothing
        agreement = self.ranks._agreement
        flags = torch.tensor([agreement.asked, *(p.grad is not None for p in parameters)]).to(means)
        flat = self.ranks.sum(torch.cat([means, flags]))
        sizes = [part.numel() for part in (*gradients, *numbers)]
        *parts, flags = flat.split([*sizes, len(flags)])
        asked, *moved = flags.tolist()
        agreement.requested = asked > 0.0
        for p, part, some in zip(parameters, parts, moved, strict=False):
            p.grad = part.view_as(p).to(p) if some else None  # as in one process, where unused parameters have none
        return tuple(part.to(v).reshape(v.shape) for part, v in zip(parts[len(parameters) :], values, strict=True))


class _CommonDraws(TorchFunctionMode):
    """Lets ``torch.randn`` of a share's rows draw those of the whole batch, from the common stream."""

    def __init__(self, share: Share, streams: dict[str, torch.Generator]) -> None:
        super().__init__()
        self.share, self.streams, self.used = share, streams, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn and args and not kwargs.keys() & {"generator", "out"}:
            size = args if isinstance(args[0], int) else tuple(args[0])
            device = torch.device(kwargs.get("device") or torch.get_default_device())
            if size[:1] == (self.share.count,) and device.type in self.streams:
                self.used = True
                whole = func((self.share.total, *size[1:]), **kwargs, generator=self.streams[device.type])
                return whole[self.share.rows]
        return func(*args, **kwargs)


def join(parallel: bool = True) -> Ranks:
    """The processes among which a run is shared: those that ``torchrun`` started, or of the process group there is.

    The first call in a process that ``torchrun`` started connects it with the others, over NCCL where each has a GPU of
    its own, which becomes the current one, and over Gloo otherwise.

    Args:
        parallel: ``False`` for a run of this process alone.
    """
    distributed = torch.distributed
    if not parallel or not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized():
        if not launched():
            return Ranks()
        devices, here = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        own = devices >= int(os.environ["LOCAL_WORLD_SIZE"])
        if devices:
            torch.cuda.set_device(here % devices)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if own and distributed.is_nccl_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def launched() -> bool:
    """Whether ``torchrun`` started this process and others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def digest(*values: Any) -> str:
    """A fingerprint of tensors, by their bytes, and of other values, by their words."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def generator_states() -> dict[str, Tensor]:
    """The states of the generators that a step may draw from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generator_states(states: dict[str, Tensor]) -> None:
    """Let the generators go on from there; that of a GPU where one is in use."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
