"""LinearMethod: the one seam through which every matrix product of a model goes.

T packed tokens, I input features, O output features. A model holds `Linear`s; how one multiplies is its method's
business, so that another arithmetic (row-invariant here; quantised weights, adapters) is another method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.few_row_linear import MAX_ROWS, few_row_linear
from specdec.machine_code import is_available
from specdec.panel_product import Panels, panel_product
from specdec.processor import has_products_of

INVARIANT_TILE_ROWS = 16
"""Rows of one product in the row-invariant form: enough to share a weight read, few enough to waste little."""
_HOPPER: Final = (9, 0)

Prepared = TypeVar("Prepared")


class LinearMethod(Protocol[Prepared]):
    """How x [T, I] times weight [O, I] is computed."""

    def prepare(self, weight: Tensor) -> Prepared:
        """The form of a loaded weight [O, I] that `apply` takes; may be opaque, may be the weight itself."""
        ...

    def apply(self, x: Tensor, weight: Prepared, bias: Tensor | None) -> Tensor:
        """x [T, I] -> [T, O], both of the weight's dtype."""
        ...

    def padded_rows(self, num_rows: int) -> int:
        """With how many rows, of which the last are nobody's, num_rows are best multiplied."""
        ...


class PlainLinear:
    """The library's product: fastest for the shape at hand, so a row's last bits may depend on T."""

    def prepare(self, weight: Tensor) -> Tensor:
        return weight

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def padded_rows(self, num_rows: int) -> int:
        return num_rows


# torch exports its packed oneDNN product to its own compiler only; the operators are the same since torch 2.0.
_reorder_linear_weight = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
_linear_pointwise = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
_is_bf16_supported = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001


class PackedLinear:
    """oneDNN with the weight reordered once at load, for bfloat16 on CPUs that multiply it.

    Measured on two cores of an AVX-512-BF16 server: about twice F.linear, which reorders at each call, for 1 to 8
    tokens.
    """

    # The blocked layout is chosen for products of about this many rows: decoding and verification.
    ROWS_HINT = 8
    # oneDNN makes and keeps something for every number of rows it meets. Beyond each bound, numbers of rows are
    # rounded up to its multiple, so that there are few.
    _ROUNDING = ((64, 8), (16, 4))

    def prepare(self, weight: Tensor) -> Tensor:
        packed: Tensor = _reorder_linear_weight(weight, self.ROWS_HINT)
        return packed

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = _linear_pointwise(x, weight, bias, "none", [], "")
        return y

    def padded_rows(self, num_rows: int) -> int:
        for bound, multiple in self._ROUNDING:
            if num_rows > bound:
                return -(-num_rows // multiple) * multiple
        return num_rows

    @staticmethod
    def supports(weight: Tensor) -> bool:
        """Whether this build of torch and this processor have the packed product for such a weight."""
        return (
            weight.device.type == "cpu"
            and weight.dtype is torch.bfloat16
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            and _is_bf16_supported()
        )


class PanelLinear:
    """The product of `panel_product.py`: 16-bit weights where an x86 has no instructions for them, or they are exact.

    Without such the library takes a row at a time (AVX2) or converts the weights at each call
    (AVX-512). All weights of SmolLM2-135M in bfloat16, milliseconds for so many tokens, each line in one run with two
    cores of a server:

                              1     4     8    12    17    330
        Zen 3, this          12    11    17                550
        Zen 3, FBGEMM        16    16    25                630
        Ice Lake, this       17    19    23    19    33    420
        Ice Lake, packed     24    50    80    89   122  1,590

    The Ice Lake server was shared: in another run this took 19 for 4, 21 for 8, 25 for 12, 31 for 17 and 501 for 330.
    It is row-invariant as it is.
    """

    def prepare(self, weight: Tensor) -> Panels:
        return Panels.of(weight)

    def apply(self, x: Tensor, weight: Panels, bias: Tensor | None) -> Tensor:
        return panel_product(x, weight, bias)

    def padded_rows(self, num_rows: int) -> int:
        return num_rows

    @staticmethod
    def supports(weight: Tensor) -> bool:
        """Whether it runs here, for such a weight."""
        return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16) and is_available()


class FewRowLinear:
    """On a GPU whose memory a few rows keep busy: those by a kernel of our own, more by the library's product.

    Measured on an H200 with Llama 3 8B's weights in bfloat16 and cold caches, microseconds, cuBLAS's in brackets:

              qkv       output    gate and up    down      head
        1     16 (18)   13 (16)   56 (64)        35 (34)   229 (238)
        5     17 (18)   13 (16)   59 (62)        34 (33)   235 (241)
        16    17 (18)   13 (16)   59 (62)        34 (34)   239 (244)

    Gate and up are with what is behind them. One row of `down` has had other tiles since, with which it took 32 in an
    earlier run.
    """

    def prepare(self, weight: Tensor) -> Tensor:
        return weight

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Sums of many numbers for few outputs the library shares out among programs.
        is_long = x.shape[0] > 1 and x.shape[1] > 2 * weight.shape[0]
        if is_long or not self._takes(x):
            return F.linear(x, weight, bias)
        y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        few_row_linear(x, weight, bias, y)
        return y

    def apply_gated(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """x [T, I], weight [2 F, I] -> silu of the product's first half times its second, [T, F].

        None for more rows than are few.
        """
        if not self._takes(x):
            return None
        y = torch.empty(x.shape[0], weight.shape[0] // 2, dtype=x.dtype, device=x.device)
        few_row_linear(x, weight, bias, y, is_gated=True)
        return y

    def padded_rows(self, num_rows: int) -> int:
        return num_rows

    def _takes(self, x: Tensor) -> bool:
        return x.shape[0] <= MAX_ROWS

    @staticmethod
    def supports(weight: Tensor) -> bool:
        """Whether it is faster here, for such a weight: so it is on an H200 in bfloat16, and assumed for its kind."""
        return (
            weight.is_cuda
            and weight.dtype in (torch.bfloat16, torch.float16)
            and torch.cuda.get_device_capability(weight.device) == _HOPPER
        )


class RowInvariantLinear:
    """Every product has the same shape: tiles of INVARIANT_TILE_ROWS rows, the last one zero padded.

    A library picks its kernel and its order of summation by the shape of the whole product, never by the values, so
    with one constant shape a row's result depends on that row alone. `invariance.py` checks this on the host at hand.
    """

    def prepare(self, weight: Tensor) -> Tensor:
        return weight

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num_rows = x.shape[0]
        y = torch.empty(num_rows, weight.shape[0], dtype=x.dtype, device=x.device)
        for start in range(0, num_rows, INVARIANT_TILE_ROWS):
            rows = x[start : start + INVARIANT_TILE_ROWS]
            # A fresh buffer even for a full tile: alignment is then the allocator's, the same for every tile.
            tile = x.new_zeros(INVARIANT_TILE_ROWS, x.shape[1])
            tile[: rows.shape[0]] = rows
            y[start : start + rows.shape[0]] = F.linear(tile, weight, bias)[: rows.shape[0]]
        return y

    def padded_rows(self, num_rows: int) -> int:
        return num_rows


class Linear:
    """One weight [O, I] with its method; `weight` and `bias` are the tensors that the loader fills."""

    __slots__ = ("_prepared", "bias", "method", "weight")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        # What a method makes of a weight is its own business.
        method: LinearMethod[Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.method = method
        self.weight: Tensor | None = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.bias = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self._prepared: Any = None

    @classmethod
    def tied(cls, weight: Tensor, method: LinearMethod[Any]) -> Linear:
        """A head that shares the embedding's weight [O, I]."""
        linear = cls(0, 0, bias=False, method=method, dtype=weight.dtype, device=weight.device)
        linear.weight = weight
        return linear

    def finish_loading(self) -> None:
        """Hand the loaded weight to the method; the loader's own form is dropped where the method made another."""
        assert self.weight is not None, "a weight is prepared once"
        self._prepared = self.method.prepare(self.weight)
        self.weight = None

    def __call__(self, x: Tensor) -> Tensor:
        assert self._prepared is not None, "finish_loading comes before the first product"
        y: Tensor = self.method.apply(x, self._prepared, self.bias)
        return y

    def gated(self, x: Tensor, silu_mul: Callable[[Tensor], Tensor]) -> Tensor:
        """What silu_mul makes of the product with x [T, I], by the method itself where it can: [T, O / 2].

        The method has no other activation than SiLU.
        """
        assert self._prepared is not None, "finish_loading comes before the first product"
        if isinstance(self.method, FewRowLinear):
            y = self.method.apply_gated(x, self._prepared, self.bias)
            if y is not None:
                return y
        return silu_mul(self(x))


def linear_method(*, exact: bool, dtype: torch.dtype, device: torch.device) -> LinearMethod[Any]:
    """The method that fits: row-invariant when exactness is asked for, else the fastest the host has."""
    weight = torch.empty(0, dtype=dtype, device=device)
    if exact:
        return PanelLinear() if PanelLinear.supports(weight) else RowInvariantLinear()
    if device.type == "cpu" and not has_products_of(dtype) and PanelLinear.supports(weight):
        return PanelLinear()
    if FewRowLinear.supports(weight):
        return FewRowLinear()
    return PackedLinear() if PackedLinear.supports(weight) else PlainLinear()
