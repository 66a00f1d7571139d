"""Where the kernel tests run: on the CPU path, in Triton's interpreter (TRITON_INTERPRET=1), or on a GPU.

Triton reads TRITON_INTERPRET when a kernel is defined, for its own library when it is imported, so a process
runs either the CPU path or the interpreter: test_interpreter.py runs this folder again with the variable set.
"""

import pytest
import torch

from specdec.kernels.dispatch import INTERPRETED, runs_in_triton

if INTERPRETED:
    PLACES = [pytest.param("cpu", id="interpreter")]
else:
    PLACES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=PLACES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    place = torch.device(request.param)
    assert runs_in_triton(torch.empty(0, device=place)) == (INTERPRETED or place.type == "cuda")
    return place


@pytest.fixture
def large_memory(device):
    """For a test that takes gigabytes: beside it, and in it later, others want them."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()
