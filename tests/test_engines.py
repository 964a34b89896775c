"""Engines: the same results in the same order, errors as they were raised."""

import contextlib
import functools
import operator
import sys

import pytest

from spatialllm_jax.engines import Local, engine_of
from spatialllm_jax.errors import UserError


def adder(amount):
    return functools.partial(operator.add, amount)


def fussy():
    def work(item):
        if item == 3:
            raise UserError("three is not wanted")
        return item

    return work


def unable():
    raise UserError("no model here")


def test_local_engines_agree():
    make = functools.partial(adder, 10)
    assert list(Local(1).map(make, range(40))) == list(Local(2).map(make, iter(range(40)))) == list(range(10, 50))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_work_are_the_callers(workers):
    with pytest.raises(UserError, match="three"):
        list(Local(workers).map(fussy, range(6)))
    with pytest.raises(UserError, match="no model"):
        list(Local(workers).map(unable, range(6)))


def test_a_job_may_end_early():
    with contextlib.closing(Local(2).map(functools.partial(adder, 1), range(10_000))) as results:
        assert next(results) == 1


def test_an_unknown_engine_is_told():
    with pytest.raises(UserError, match="--engine"):
        engine_of("cloud", 1)


def test_an_address_without_ray_is_told():
    with pytest.raises(UserError, match="--engine ray"):
        engine_of("local", 1, "auto")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"spatialllm-jax\[ray\]"):
        engine_of("ray", 1)


@pytest.mark.slow
def test_ray_agrees_and_tells_errors():
    pytest.importorskip("ray", reason='needs ray: pip install -e ".[ray]"')
    from tests import test_engines as here  # the name by which Ray's workers can import it

    ray = engine_of("ray", 2)
    assert list(ray.map(functools.partial(here.adder, 10), range(200))) == list(range(10, 210))
    assert list(ray.map(functools.partial(here.adder, 10), [])) == []
    with pytest.raises(UserError, match="three"):
        list(ray.map(here.fussy, range(6)))
    with pytest.raises(UserError, match="no model"):
        list(ray.map(here.unable, range(6)))
