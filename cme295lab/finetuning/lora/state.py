"""What hangs on a model with LoRA: the parts of its matrices, the adapters' names, and which one acts.

All parts hang on the model as one module, `model.lora`, and the base is frozen. A parameter is called
"lora.matrices.<path with / for .>.lora_A.<adapter>".
"""

from __future__ import annotations

from torch import Tensor, nn

from cme295lab.finetuning.attached import Attachment, attach, check_unattached, detach
from cme295lab.finetuning.lora.layers import LoraHook, LoraMatrix
from cme295lab.finetuning.lora.options import LoraOptions
from cme295lab.finetuning.lora.targets import Target, key_of

PLACE = "lora"


class Lora(Attachment):
    """The adapters of a model.

    Attributes:
        matrices: path with "/" for "." -> the parts of that matrix.
        options: adapter -> what it is like.
        active: the adapter that acts, or None.
        rows: adapters of the rows of a batch, inside `adapters_per_example`.
        merged: the adapter that is in the weights of the base, or None.
        weights_before: path -> the base's weight while something is merged.
    """

    place = PLACE

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ModuleDict()
        self.options: dict[str, LoraOptions] = {}
        self.usable_only: set[str] = set()
        self.active: str | None = None
        self.rows: tuple[str | None, ...] | None = None
        self.merged: str | None = None
        self.weights_before: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: an `nn.Sequential` calls all that hangs on it, this last."""
        return x

    def matrix(self, path: str) -> LoraMatrix:
        """The parts of one matrix.

        Raises:
            KeyError: if it has none.
        """
        found = self.matrices[key_of(path)]
        assert isinstance(found, LoraMatrix)
        return found

    def of(self, adapter: str) -> dict[str, LoraMatrix]:
        """Path -> the matrices that an adapter has a part in."""
        parts = [matrix for matrix in self.matrices.values() if isinstance(matrix, LoraMatrix)]
        return {matrix.target.path: matrix for matrix in parts if adapter in matrix.scales}

    def parameters_of(self, adapter: str) -> dict[str, nn.Parameter]:
        """Name in the model -> parameter."""
        named = self.named_parameters(prefix=self.place)
        return {name: parameter for name, parameter in named if name.rpartition(".")[2] == adapter}

    def check(self, adapter: str) -> None:
        """Refuse an adapter that is not there.

        Raises:
            ValueError: if it is not.
        """
        if adapter not in self.options:
            raise ValueError(f"there is no adapter {adapter!r}; there are {', '.join(self.options) or 'none'}")


def get_lora(model: nn.Module) -> Lora:
    """The adapters of a model.

    Raises:
        ValueError: if it has none.
    """
    lora = getattr(model, PLACE, None)
    if not isinstance(lora, Lora):
        raise ValueError("the model has no LoRA adapters: add_lora or load_adapter puts them in")
    return lora


def chosen_adapter(model: nn.Module, adapter: str | None) -> str:
    """A name that is there: the one given, or the active one.

    Raises:
        ValueError: if there is no such adapter, or none is active.
    """
    lora = get_lora(model)
    name = lora.active if adapter is None else adapter
    if name is None:
        raise ValueError(f"no adapter is active: name one of {', '.join(lora.options)}")
    lora.check(name)
    return name


def attach_lora(model: nn.Module) -> Lora:
    """The model's `Lora`, hung on it if it has none."""
    lora = getattr(model, PLACE, None)
    if not isinstance(lora, Lora):
        lora = Lora()
        attach(model, lora)
        lora.train(model.training)
    return lora


def matrix_for(model: nn.Module, lora: Lora, target: Target) -> LoraMatrix:
    """The parts of one matrix, with a hook on its layer if they are the first."""
    key = key_of(target.path)
    if key not in lora.matrices:
        matrix = LoraMatrix(target)
        lora.matrices[key] = matrix.train(lora.training)
        model.get_submodule(target.path).register_forward_hook(LoraHook(lora, matrix))
    return lora.matrix(target.path)


def take_off(model: nn.Module, lora: Lora) -> None:
    """Unhook and detach."""
    for matrix in lora.matrices.values():
        assert isinstance(matrix, LoraMatrix)
        unhook(model.get_submodule(matrix.target.path), matrix)
    detach(model, lora)


def check_can_add(model: nn.Module, adapter: str) -> None:
    """Refuse a model that cannot take an adapter of this name.

    Raises:
        ValueError: if the name would not do or is taken, an adapter is merged, or the model carries another method.
    """
    lora = getattr(model, PLACE, None)
    if isinstance(lora, Lora):
        check_not_merged(lora, "add an adapter")
        if adapter in lora.options:
            raise ValueError(f"there is an adapter {adapter!r} already: delete_adapter first, or take another name")
    else:
        check_unattached(model)
        if hasattr(model, PLACE):
            raise ValueError(f"the model has an attribute {PLACE!r} of its own, where its adapters would hang")
    check_adapter_name(adapter)


def check_adapter_name(adapter: str) -> None:
    """Refuse a name that would not do as part of a parameter's name, or as a folder.

    Raises:
        ValueError: if it is one.
    """
    if not isinstance(adapter, str) or not adapter.replace("-", "_").isidentifier():
        raise ValueError(f"adapter must be letters, digits, _ and -, and not start with a digit, got {adapter!r}")
    if hasattr(nn.ParameterDict(), adapter):  # of an instance, which has `training`, too
        raise ValueError(f"adapter must not be called {adapter!r}: PyTorch has that name for itself")


def check_not_merged(lora: Lora, what: str) -> None:
    """Refuse to do something while an adapter is in the base's weights.

    Raises:
        ValueError: if one is.
    """
    if lora.merged is not None:
        raise ValueError(f"adapter {lora.merged!r} is merged into the weights: unmerge before you {what}")


def check_no_rows(lora: Lora, what: str) -> None:
    """Refuse to do something inside `adapters_per_example`.

    Raises:
        ValueError: if rows of a batch go through adapters of their own now.
    """
    if lora.rows is not None:
        raise ValueError(f"adapters_per_example is on: leave it before you {what}")


def unhook(module: nn.Module, matrix: LoraMatrix) -> None:
    """Take the hook of one matrix off its layer; by what it is, since a copied model has copied hooks."""
    for key, hook in list(module._forward_hooks.items()):
        if isinstance(hook, LoraHook) and hook.matrix is matrix:
            del module._forward_hooks[key]
