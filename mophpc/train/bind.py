"""Tie a Task to an arena: its tensors alias the bytes that hop.

`collect` names everything that must survive a visit, `bind` builds a Task over an arena that
arrived, and `settle` puts back what a visit left elsewhere. What is not a tensor of the layout
travels as `rest`: JSON, then the bytes of tensors that the layout does not know (an optimizer's
state of a parameter that thawed late, say).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mophpc.errors import MophpcError, StateError
from mophpc.train.arena import Arena, Home, Layout, allocate, lay_out, views
from mophpc.train.device import CPU, Device
from mophpc.train.rest import DAMAGES, pack, read_template, write
from mophpc.train.rest import unpack as rest_of
from mophpc.train.task import Task, said
from mophpc.train.tree import Tensors, join, split

_STRUCTURE = ("optimizer", "absent", "late")
"""Parts of the rest that say which tensors there are, and where the optimizer has them."""


def modules_of(task: Task) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose tensors are state, with the prefix of their names."""
    yield "model", task.model
    if isinstance(task.loss, nn.Module):
        yield "loss", task.loss
    for name, extra in task.extras.items():
        if isinstance(extra, nn.Module):
            yield f"extras.{name}", extra


def flatten_rnns(task: Task) -> None:
    """Let cuDNN have the weights of each recurrent network in one piece, as it had them alone.

    It would copy them at each forward pass otherwise. They come back when the state settles.
    """
    for _, module in modules_of(task):
        for part in module.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters()


def clear_gradients(task: Task) -> None:
    """Let go of all gradients, also of parameters that no optimizer has; they do not hop."""
    # Not by `zero_grad`, which takes longer than all else here, to be seen by torch's profiler.
    for group in task.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    for _, module in modules_of(task):
        for parameter in module.parameters():
            parameter.grad = None


def module_tensors(task: Task) -> Tensors:
    """Return parameters and buffers by name; a tied one once, under its first name."""
    found: Tensors = {}
    seen: dict[int, str] = {}
    for prefix, module in modules_of(task):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) not in seen:
                seen[id(tensor)] = f"{prefix}.{name}"
                found[f"{prefix}.{name}"] = tensor
    return found


def collect(task: Task) -> tuple[Tensors, dict[str, Any]]:
    """Return a Task's state: its tensors by name, and everything else as JSON.

    Raises:
        StateError: a part of the state cannot be carried.
    """
    tensors = module_tensors(task)
    names = {id(tensor): name for name, tensor in tensors.items()}
    rest: dict[str, Any] = {"optimizer": [], "groups": []}
    for group in task.optimizer.param_groups:
        number = len(rest["groups"])
        plain = {key: value for key, value in group.items() if key != "params"}
        rest["groups"].append(split(plain, f"optimizer.group{number}", tensors))
        for parameter in group["params"]:
            name = _parameter_name(parameter, names)
            state = task.optimizer.state.get(parameter)
            if state:
                path = f"optimizer.{name.removeprefix('model.')}"
                rest["optimizer"].append([name, split(dict(state), path, tensors)])
    if task.lr_scheduler is not None:
        state = task.lr_scheduler.state_dict()
        rest["lr_scheduler"] = split(state, "lr_scheduler", tensors)
    rest["extras"] = {
        name: split(extra.state_dict(), f"extras.{name}", tensors)
        for name, extra in task.extras.items()
        if not isinstance(extra, nn.Module)
    }
    return {name: tensor.detach() for name, tensor in tensors.items()}, rest


def _parameter_name(parameter: Tensor, names: Mapping[int, str]) -> str:
    name = names.get(id(parameter))
    if name is None:
        raise StateError(
            f"the optimizer has a parameter of shape {tuple(parameter.shape)} that belongs to no "
            f"module of the Task; name its module in Task.extras, so that it hops"
        )
    return name


def layout_of(task: Task, device: Device = CPU) -> Layout:
    """Return the layout of a Task that has trained a batch, so that its optimizer has state.

    Args:
        task: as it is trained on the device.
        device: where it is trained.

    Raises:
        StateError: a part of the state cannot be carried.
    """
    tensors, rest = collect(task)
    template = write(rest | {"absent": [], "progress": [], "late": None})
    return replace(lay_out(tensors, device), template=template)


def settle(
    task: Task,
    layout: Layout,
    memory: Home | Arena,
    progress: Sequence[float] = (),
    device: Device = CPU,
) -> bytes:
    """Bring the whole state of `task` into `memory`; return the rest of it, with `progress`.

    Tensors that already alias their slot cost nothing. The others were made during the visit (an
    optimizer's first step, a module that assigns its buffers) and are copied once.

    Raises:
        StateError: a part of the state cannot be carried.
    """
    tensors, rest = collect(task)
    home = Home.of(memory)
    places = views(layout, home)
    late: list[tuple[str, Tensor]] = []
    moves: list[tuple[Tensor, Tensor]] = []
    known = {slot.name: slot for slot in layout.slots}
    tenants: dict[int, int] = {}  # by offset, the address of the tensor whose place it is
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise StateError(f"tensor '{name}' has no data")
        slot, address = known.get(name), tensor.data_ptr()
        fits = slot is not None and slot.fits(tensor)
        if fits and not tensor.numel():
            continue  # and the tensor behind it has the same offset
        # Tied in the layout and no longer: the place is the first one's.
        if slot is not None and fits and tenants.setdefault(slot.offset, address) == address:
            if address == places[name].data_ptr():
                continue
            moves.append((places[name], tensor))
        else:
            late.append((name, tensor))
    # A tensor may lie in another's place (`self.older = self.newest`), which is about to change.
    late = [(name, t.clone() if home.holds(t) else t) for name, t in late]
    moves = [(place, t.clone() if home.holds(t) else t) for place, t in moves]
    for place, tensor in moves:
        place.copy_(tensor)
    absent = [name for name in known if name not in tensors]
    absent += [name for name, _ in late if name in known]
    rest |= {"absent": absent, "progress": list(progress)}
    return _pack(rest, dict(late), layout.template, device)


def _pack(rest: dict[str, Any], late: Tensors, template: str, device: Device) -> bytes:
    layout = lay_out(late, device) if late else None
    head = pack(rest | {"late": layout and layout.to_json()}, template)
    if layout is None:
        return head
    tail = np.zeros(layout.nbytes, dtype=np.uint8)
    for name, place in views(layout, tail).items():
        place.copy_(late[name])
    return head + tail.tobytes()


def unpack(
    layout: Layout, memory: Home | Arena, raw: bytes, places: Tensors | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """Return all tensors of a state by name, aliasing `memory`, and everything else as JSON.

    Args:
        layout: where the tensors lie.
        memory: (layout.nbytes,) bytes.
        raw: what `settle` returned.
        places: `views(layout, memory)`, if they are there already.

    Raises:
        StateError: `raw` is not what `settle` returned.
    """
    try:
        rest, end = rest_of(raw, layout.template)
        absent = frozenset(rest["absent"])
        home = Home.of(memory)
        tensors = views(layout, home) if places is None else places
        if absent:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in absent}
        if rest["late"] is not None:
            beyond = np.frombuffer(raw, dtype=np.uint8, offset=end)
            tail = allocate(len(beyond))  # aligned, as the tensors were
            tail[:] = beyond
            late = torch.from_numpy(tail)
            late_home = Home(late.to(home.device.device), late)
            tensors = tensors | views(Layout.from_json(rest["late"]), late_home)
    except (*DAMAGES, RuntimeError) as error:
        raise StateError(f"the state that arrived is damaged: {error}") from error
    return tensors, rest


class Draft:
    """A Task around memory whose bytes may not be there yet.

    Args:
        build: makes the Task.
        layout: where the tensors lie.
        memory: (layout.nbytes,) bytes; not read, nor written before the Task trains.
        lean: build on the meta device, where initial weights cost nothing.

    Raises:
        StateError: the Task is not one of this layout.
    """

    def __init__(
        self, build: Callable[[], Task], layout: Layout, memory: Home | Arena, *, lean: bool
    ) -> None:
        self._layout = layout
        self._lean = lean
        self.home = Home.of(memory)
        with torch.device("meta") if lean else nullcontext():
            self._task = build()
        self._own = module_tensors(self._task)
        self._places = views(layout, self.home, separate=self._task.compile is not False)
        for name, tensor in self._own.items():
            if name in self._places:
                _alias(tensor, self._places[name])
        # What arrives has nearly always the structure of the template: then little is left to do.
        self._expected = read_template(layout.template)
        self._is_bound = bool(self._expected) and all(name in self._places for name in self._own)
        if self._is_bound:
            self._is_bound = _fits(self._task, self._expected)
        if self._is_bound:
            _bind_optimizer(self._task, self._own, self._expected, self._places)
            if lean:
                _check_no_meta(self._task)

    def finish(self, raw: bytes) -> tuple[Task, list[float]]:
        """Take the rest of the state, once all of it is here; return the Task and its progress.

        Args:
            raw: what `settle` returned.

        Raises:
            StateError: the Task is not the one whose state this is.
        """
        tensors, rest = unpack(self._layout, self.home, raw, self._places)
        try:
            return self._take(rest, tensors)
        except MophpcError:
            raise
        except Exception as error:  # whatever a `load_state_dict` does with what is not its own
            raise StateError(
                f"what build made cannot take over the state that arrived: {said(error)}"
            ) from error

    def _take(self, rest: Mapping[str, Any], tensors: Tensors) -> tuple[Task, list[float]]:
        task = self._task
        if self._is_bound and all(rest[key] is self._expected[key] for key in _STRUCTURE):
            _update_groups(task, rest, tensors)
        else:
            self._rebind(rest, tensors)
        if task.lr_scheduler is not None:
            task.lr_scheduler.load_state_dict(join(rest["lr_scheduler"], tensors))
        for name, state in rest["extras"].items():
            task.extras[name].load_state_dict(join(state, tensors))
        return task, rest["progress"]

    def _rebind(self, rest: Mapping[str, Any], tensors: Tensors) -> None:
        for name, tensor in self._own.items():
            if name not in tensors:
                raise StateError(f"build made '{name}', which the state that arrived does not have")
            if tensors[name] is not self._places.get(name):
                _alias(tensor, tensors[name])
        _bind_optimizer(self._task, self._own, rest, tensors)
        if self._lean:
            _check_no_meta(self._task)


def bind(
    build: Callable[[], Task], layout: Layout, memory: Home | Arena, raw: bytes, *, lean: bool
) -> tuple[Task, list[float]]:
    """Build a Task whose tensors alias `memory`; return it and the progress that came with it.

    Args:
        build: makes the Task.
        layout: where the tensors lie.
        memory: (layout.nbytes,) bytes; written to as the Task trains.
        raw: what `settle` returned.
        lean: build on the meta device, where initial weights cost nothing.

    Raises:
        StateError: the Task is not the one whose state this is.
    """
    return Draft(build, layout, memory, lean=lean).finish(raw)


def bind_new(task: Task, layout: Layout, memory: Home | Arena, device: Device = CPU) -> Task:
    """Move a Task that `build` has just made into `memory`."""
    settle(task, layout, memory, device=device)
    places = views(layout, memory, separate=task.compile is not False)
    for name, tensor in module_tensors(task).items():
        if name in places:
            _alias(tensor, places[name])
    return task


def _fits(task: Task, rest: Mapping[str, Any]) -> bool:
    return len(task.optimizer.param_groups) == len(rest["groups"])


def _bind_optimizer(
    task: Task, own: Tensors, rest: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    if not _fits(task, rest):
        raise StateError(
            f"build made {len(task.optimizer.param_groups)} parameter groups where the state that "
            f"arrived has {len(rest['groups'])}"
        )
    _update_groups(task, rest, tensors)
    task.optimizer.state.clear()
    for name, state in rest["optimizer"]:
        task.optimizer.state[own[name]] = join(state, tensors)


def _update_groups(task: Task, rest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for group, plain in zip(task.optimizer.param_groups, rest["groups"], strict=True):
        group.update(join(plain, tensors))


def _alias(tensor: Tensor, place: Tensor) -> None:
    """Make `tensor` use the bytes of `place`; whoever refers to `tensor` sees them."""
    if tuple(tensor.shape) != tuple(place.shape) or tensor.dtype != place.dtype:
        raise StateError(
            f"build made a tensor of {tuple(tensor.shape)} {tensor.dtype} where the state that "
            f"arrived has {tuple(place.shape)} {place.dtype}"
        )
    if not tensor.is_meta:
        tensor.data = place
        return
    # A meta tensor cannot take real data; swapping keeps its identity, so that the optimizer,
    # closures and tied modules need no repair.
    if isinstance(tensor, nn.Parameter):
        place = nn.Parameter(place, requires_grad=tensor.requires_grad)
    place.__dict__.update(tensor.__dict__)
    torch.utils.swap_tensors(tensor, place)  # type: ignore[no-untyped-call]  # untyped in torch


def _check_no_meta(task: Task) -> None:
    for prefix, module in modules_of(task):
        for path, part in module.named_modules():
            for key, value in vars(part).items():
                if isinstance(value, Tensor) and value.is_meta:
                    raise StateError(f"{prefix}.{path}.{key} is a tensor that is not registered")
