"""Artifacts are made once, in processes that may be kept, and none is blamed for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pytest

from alula.core import Recipe, Signature, TensorSpec
from alula.sources import Source
from alula.tuning.messages import BuildRequest, Built, Described, DescribeRequest
from alula.tuning.process import ChildError
from alula.tuning.workshop import StepError, Workshop

SIGNATURE = Signature((TensorSpec("x", "float32", ("b", 4)),), (TensorSpec("y", "float32", ("b", 2)),))
PLAIN = Recipe("openvino", "int8", "nncf")
DENSE = Recipe("openvino", "int8", "nncf", None, "dense")
NARROW = Recipe("openvino", "int8", "nncf", "bf16", "dense")


class StandIn:
    """A child process that answers at once, or as it is told to."""

    def __init__(self, name: str, shop: Shop) -> None:
        self.name, self.shop = name, shop
        self.alive, self.resident_bytes = True, 0
        self.names = [name]

    @property
    def reproduce(self) -> str:
        return f"again < {self.names[-1]}"

    def begin(self, name: str) -> None:
        self.names.append(name)

    def ask(self, request: object, expected: type, *, timeout_s: float) -> Any:
        if isinstance(request, DescribeRequest):
            return Described(signature=SIGNATURE)
        assert isinstance(request, BuildRequest)
        self.shop.built.append(request.recipe)
        answer = self.shop.answers.pop(0) if self.shop.answers else Built(seconds=1.0)
        if isinstance(answer, ChildError):
            self.alive = not (answer.died or answer.timed_out)
            raise answer
        return answer

    def close(self) -> None:
        self.alive = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Shop(Workshop):
    """A workshop whose processes are stand-ins; its exports are there already."""

    def __init__(self, folder: Path) -> None:
        self.children: list[StandIn] = []
        self.built: list[Recipe] = []
        self.answers: list[Built | ChildError] = []
        super().__init__(
            Source(kind="timm", spec="resnet18"),
            folder,
            calibration=(),
            validation=(),
            threads=1,
            saturating=False,
            memory_limit_bytes=2**30,
            timeout_s=lambda: 60.0,
            report=lambda text: None,
        )
        self.children.clear()

    def child(self, name: str, *, bound: bool = False) -> Any:
        assert bound == name.startswith("build"), "what makes artifacts is bound to the budget's CPUs"
        self.children.append(StandIn(name, self))
        return self.children[-1]

    def export(self, target: object) -> Path:
        return self.folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_each_artifact_has_a_process_of_its_own(shop: Shop) -> None:
    shop.artifact(PLAIN)
    shop.artifact(DENSE)
    assert [child.name for child in shop.children] == [
        "build-openvino-int8-nncf",
        "build-openvino-int8-nncf-dense",
    ]
    assert not any(child.alive for child in shop.children)


def test_a_kept_process_makes_the_next_artifact_and_ends_with_the_block(shop: Shop) -> None:
    with shop.keeping_processes():
        shop.artifact(PLAIN)
        shop.artifact(DENSE)
        (kept,) = shop.children
        # Each request in a file of its own, so that a failure is repeated alone.
        assert kept.names == ["build-openvino-int8-nncf", "build-openvino-int8-nncf-dense"]
        assert kept.alive
        shop.artifact(Recipe("onnxruntime", "int8", "static"))
        assert [child.alive for child in shop.children] == [True, False]
    assert not kept.alive


def test_what_dies_in_a_kept_process_is_tried_in_a_new_one(shop: Shop) -> None:
    with shop.keeping_processes():
        shop.artifact(PLAIN)
        shop.answers = [ChildError("It crashed.", died=True)]
        shop.artifact(DENSE)
        assert shop.built == [PLAIN, DENSE, DENSE]
        assert [child.alive for child in shop.children] == [False, True]
        shop.answers = [ChildError("It crashed.", died=True), ChildError("Again.", died=True)]
        with pytest.raises(StepError, match="Again"):
            shop.artifact(Recipe("openvino", "int8", "nncf", "mixed"))
        assert len(shop.built) == 5  # the new process has no excuse


@pytest.mark.parametrize(
    "error", [ChildError("It cannot be made."), ChildError("No answer.", timed_out=True)]
)
def test_what_fails_or_hangs_in_a_kept_process_is_not_tried_again(shop: Shop, error: ChildError) -> None:
    with shop.keeping_processes():
        shop.artifact(PLAIN)
        shop.answers = [error]
        with pytest.raises(StepError, match=str(error)) as raised:
            shop.artifact(DENSE)
        assert raised.value.reproduce == "again < build-openvino-int8-nncf-dense"
    assert shop.built == [PLAIN, DENSE]


def test_a_process_that_has_grown_is_not_kept(shop: Shop) -> None:
    with shop.keeping_processes():
        shop.artifact(PLAIN)
        shop.children[0].resident_bytes = 2**29
        shop.artifact(DENSE)
        shop.artifact(Recipe("openvino", "int8", "nncf", "mixed"))
    assert len(shop.children) == 2


def test_recipes_with_the_same_files_share_one_artifact(shop: Shop) -> None:
    made = shop.artifact(NARROW)
    assert shop.artifact(DENSE) == shop.artifact(NARROW) == made
    assert shop.built == [NARROW]
    # Another search in the same folder finds it too.
    again = Shop(shop.folder)
    assert again.artifact(DENSE) == made
    assert again.built == []


def test_what_cannot_be_made_cannot_be_made_under_another_name(shop: Shop) -> None:
    shop.answers = [ChildError("It cannot be traced.")]
    for recipe in (Recipe("torchscript", "int8", "fx"), Recipe("torch", "int8", "fx")):
        with pytest.raises(StepError, match="cannot be traced"):
            shop.artifact(recipe)
    assert len(shop.built) == 1
    shop.artifact(Recipe("torch", "int8", "fx", "fbgemm"))
    assert len(shop.built) == 2


def test_what_had_no_time_is_tried_under_another_name(shop: Shop) -> None:
    shop.answers = [ChildError("No answer.", timed_out=True)]
    with pytest.raises(StepError):
        shop.artifact(NARROW)
    shop.artifact(DENSE)
    assert shop.built == [NARROW, DENSE]
