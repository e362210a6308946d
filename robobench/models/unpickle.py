"""Read files of torch.save without importing or calling anything that they name.

A pickle may name any function and call it. Here, the few functions that rebuild tensors are replaced by ours, and every
other name becomes an inert class: its objects are empty dictionaries that take part in nothing.
"""

from __future__ import annotations

import collections
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Inert(dict[Any, Any]):
    """Stands for an object of a class or function that is not imported. Items of dictionaries are kept.

    Attributes:
        origin: dotted name of the class or function.
        state: attributes of the object.
    """

    origin = ""
    state: Any = None
    __hash__ = object.__hash__  # type: ignore[assignment]  # may be a key, as an enum is

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        """Ignore an item of a list or set."""

    add = append

    def extend(self, values: Any) -> None:
        """Ignore items of a list."""


def load_inert(path: Path) -> Any:
    """Load a file of torch.save on the CPU; unknown objects become `Inert`.

    Raises many types of errors for a damaged file.
    """
    import torch

    class Unpickler(pickle.Unpickler):
        allowed = _allowed(torch)

        def find_class(self, module: str, name: str) -> Any:
            dotted = f"{module}.{name}"
            if dotted in self.allowed:
                return self.allowed[dotted]
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            return type(name.rpartition(".")[2], (Inert,), {"origin": dotted})

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader: Any = types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="robobench")
    with warnings.catch_warnings(), _unchanged(torch.UntypedStorage):
        warnings.simplefilter("ignore")  # source of a pickled module cannot be found, TypedStorage
        return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)


@contextmanager
def _unchanged(cls: Any) -> Iterator[None]:
    """Restore the attributes of the only class of torch that a file gets, which a pickle could set."""
    before = dict(vars(cls))
    try:
        yield
    finally:
        for name, value in dict(vars(cls)).items():
            if name not in before:
                delattr(cls, name)
            elif value is not before[name]:
                setattr(cls, name, before[name])


def _allowed(torch: Any) -> dict[str, Callable[..., Any]]:
    """Return what a file may call, by dotted name: functions of this call, so that a file cannot change torch's."""

    def tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Any:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)

    def typed_tensor(
        storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> Any:
        return torch._utils._rebuild_tensor_v3(storage, offset, size, stride, False, {}, dtype)

    def parameter(data: Any, *rest: Any) -> Any:
        return data

    def subclass(rebuild: Callable[..., Any], kind: Any, arguments: Any, state: Any) -> Any:
        return rebuild(*arguments)

    return {
        "collections.OrderedDict": collections.OrderedDict,
        "torch.Size": tuple,
        "torch.storage.UntypedStorage": torch.UntypedStorage,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": typed_tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch._tensor._rebuild_from_type_v2": subclass,
    }
